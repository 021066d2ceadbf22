"""SIGKILL at any moment, a power cut, a full disk, a cut-off file: nothing is lost, and nothing damaged is taken."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

import unimetric.files as files
from fork_server import Commands
from toy_runs import assert_same_run, at_step, log_rows, options_file, read_json, unimetric
from unimetric.errors import UserError
from unimetric.losses import LOSSES, make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.checkpoint import Progress, load_checkpoint, save_checkpoint, saved_step

KILLS = 2  # of each run
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "curricularface": {
        "data": {"workers": 1},
        "sampling": {"name": "adaptive", "options": {"round_steps": 3, "sharpness": 20.0, "floor": 0.0}},
        "training": {"start": "discriminant"},
    },
    "margin": {"data": {"validation_fraction": 0.3}, "training": {"selection": "best", "epochs": 4}},
    "proxy-anchor": {"data": {"workers": 2}, "sampling": {"name": "temperature"}},
    "multi-similarity": {"training": {"schedule": "cosine", "warmup_steps": 3}},
    "softtriple": {
        "data": {"workers": 1, "validation_fraction": 0.3},
        "training": {"selection": "best", "validate_every": 2, "epochs": 4},
    },
}

QUICK = ("curricularface", "softtriple")


@pytest.mark.parametrize(
    "loss", [loss if loss in QUICK else pytest.param(loss, marks=pytest.mark.soak) for loss in VARIANTS]
)
def test_killed_at_random_moments_and_resumed_is_the_same_run(
    loss: str, seeds: Iterator[int], commands: Commands, sources: list[Path], tmp_path: Path
) -> None:
    options = options_file(tmp_path / "options.yaml", loss={"name": loss}, **VARIANTS[loss])
    expected, run = tmp_path / "expected", tmp_path / "run"
    begin = ["train", *sources, "--config", options, "--out"]
    whole = commands.run(*begin, expected)
    assert whole["code"] == 0, commands.log.read_text()
    steps = read_json(expected / "metrics.json")["training_steps"]
    for seed in seeds:
        moments = random.Random(f"{loss} {seed}")
        for _ in range(KILLS):
            # Most of the remaining run; the next kill comes a checkpoint or two later.
            left = 1 - (saved_step(run / "checkpoint.safetensors") or 0) / steps
            moment = moments.uniform(0, whole["seconds"] * (0.2 + 0.8 * left))
            code = go_on(commands, begin, run, kill_after=moment)
            print(f"kill after {moment:.3f} s: exit code {code}")
            assert code in (0, -signal.SIGKILL), commands.log.read_text()
        assert go_on(commands, begin, run) == 0, commands.log.read_text()
        assert_same_run(expected, run)
        assert [path for path in run.rglob("*") if path.name.startswith(".")] == []
        assert_no_row_twice(run)
        shutil.rmtree(run)


def go_on(commands: Commands, begin: list[object], run: Path, kill_after: float | None = None) -> int:
    """Start the run, or resume it beside half-written temporary files; returns the exit code."""
    command = ["train", "--resume", run] if (run / "config.yaml").exists() else [*begin, run]
    if run.exists():
        for name in (".checkpoint.safetensors.0a1b2c3d", ".config.yaml.0a1b2c3d"):
            (run / name).write_bytes(b"half")
    return int(commands.run(*command, kill_after=kill_after)["code"])


def assert_no_row_twice(run: Path) -> None:
    kinds = [(row["step"], *sorted({*row} - {"step"})) for row in log_rows(run)]
    assert len(kinds) == len({*kinds})


class Killed(BaseException):
    """Nothing of ours runs after it."""


@pytest.mark.parametrize("call", ["touch", "save_file", "fsync", "replace", "flush_folder"])
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_around_every_call_of_saving(call: str, after: bool, commands: Commands, tmp_path: Path) -> None:
    """Of the parts of writing a checkpoint, whichever is the last: the old one or the new one is there, and whole."""
    embedder, loss, optimiser = parts("curricularface")
    path = tmp_path / "checkpoint.safetensors"
    save_checkpoint(path, embedder, loss, optimiser, Progress(step=1), "same")
    train_step(embedder, loss, optimiser)
    place: Any = {"touch": Path, "fsync": os, "replace": Path, "flush_folder": files}.get(call)
    if call == "save_file":
        from unimetric.training import tensors as place
    original = getattr(place, call)

    def killed(*arguments: Any, **more: Any) -> Any:
        if after:
            original(*arguments, **more)
        os._exit(9)

    child = os.fork()
    if child == 0:
        try:
            setattr(place, call, killed)
            save_checkpoint(path, embedder, loss, optimiser, Progress(step=2), "same")
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    renamed = call == "flush_folder" or (call == "replace" and after)
    assert saved_step(path) == (2 if renamed else 1)
    progress = load_checkpoint(path, *parts("curricularface"), "same")
    assert progress.step == (2 if renamed else 1)


def test_a_checkpoint_reaches_the_disk_before_it_takes_its_name(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Content, then name, then folder; and the log's rows before all of them."""
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace

    def flushed(handle: int) -> None:
        done.append(f"flush {Path(f'/proc/self/fd/{handle}').readlink().name.split('.safetensors')[0]}")
        fsync(handle)

    def renamed(self: Path, target: Path) -> Path:
        done.append(f"rename to {Path(target).name}")
        return replace(self, target)

    if not Path("/proc/self/fd").is_dir():
        pytest.skip("what a file handle stands for is in /proc on Linux only")
    monkeypatch.setattr(os, "fsync", flushed)
    monkeypatch.setattr(Path, "replace", renamed)
    options = options_file(tmp_path / "options.yaml", training={"steps": 2})
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    end = done.index("rename to checkpoint.safetensors")
    assert done[end - 2 : end + 2] == [
        "flush log.jsonl",
        "flush .checkpoint",
        "rename to checkpoint.safetensors",
        "flush run",
    ]


def parts(name: str) -> tuple[Embedder, nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    backbone = make_backbone("test_vit", weights="random", image_size=16)
    embedder = Embedder(backbone, "linear", {}, 8).train()
    loss = make_loss(name, 3, 8)
    learned = [parameter for parameter in [*embedder.parameters(), *loss.parameters()] if parameter.requires_grad]
    return embedder, loss, torch.optim.AdamW(learned, lr=0.01)


def train_step(embedder: Embedder, loss: nn.Module, optimiser: torch.optim.Optimizer, step: int = 0) -> None:
    torch.manual_seed(step)
    value = loss(embedder(torch.randn(6, 3, 16, 16)), torch.tensor([0, 0, 1, 1, 2, 2]))
    optimiser.zero_grad()
    value.backward()
    optimiser.step()


@pytest.mark.parametrize("name", list(LOSSES))
def test_every_loss_goes_on_to_the_bit(name: str, tmp_path: Path) -> None:
    whole, path = parts(name), tmp_path / "checkpoint.safetensors"
    for step in range(6):
        if step == 3:
            save_checkpoint(path, *whole, Progress(step=3), "same")
        train_step(*whole, step)
    again = parts(name)
    assert load_checkpoint(path, *again, "same").step == 3
    for step in range(3, 6):
        train_step(*again, step)
    for one, other in zip(whole[:2], again[:2], strict=True):
        expected, found = one.state_dict(), other.state_dict()
        assert [entry for entry, value in expected.items() if not value.equal(found[entry])] == []


def test_no_part_of_a_checkpoint_passes_for_a_whole_one(tmp_path: Path) -> None:
    """Cut off in the length, the header, at and around every tensor's border, and within tensors."""
    whole, path = parts("curricularface"), tmp_path / "checkpoint.safetensors"
    train_step(*whole)
    save_checkpoint(path, *whole, Progress(step=1), "same")
    content = path.read_bytes()
    header_end = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:header_end])
    borders = {header_end + end for entry in header.values() if "dtype" in entry for end in entry["data_offsets"]}
    lengths = {*range(9), *range(9, header_end, 97), header_end}
    lengths |= {border + near for border in borders for near in (-1, 0, 1)} | {*range(header_end, len(content), 499)}
    target = parts("curricularface")
    before = {name: value.clone() for name, value in target[0].state_dict().items()}
    cut_off = sorted(length for length in lengths if length < len(content))
    assert len(cut_off) > 40
    for length in cut_off:
        # As it is cut off, and as a file system may leave it: of full length, the rest zeros.
        for damaged in (content[:length], content[:length] + bytes(len(content) - length)):
            if damaged == content:
                continue
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="is damaged"):
                load_checkpoint(path, *target, "same")
    assert all(before[name].equal(value) for name, value in target[0].state_dict().items())
    path.write_bytes(content)
    assert load_checkpoint(path, *target, "same").step == 1


def test_no_flipped_bit_is_taken_for_a_weight(tmp_path: Path) -> None:
    whole, path = parts("curricularface"), tmp_path / "checkpoint.safetensors"
    train_step(*whole)
    save_checkpoint(path, *whole, Progress(step=1), "same")
    content = path.read_bytes()
    draw = random.Random(0)
    for _ in range(80):
        place = draw.randrange(len(content))
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        target = parts("curricularface") if place < 3000 else whole
        try:
            load_checkpoint(path, *target, "same")
        except UserError as error:
            assert str(path) in str(error)
        else:
            with safe_open(path, framework="pt") as file:
                assert json.loads(file.metadata()["progress"])["step"] == 1


def test_a_disk_that_fills_up_keeps_the_last_checkpoint(
    small_disk: Path,
    sources: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, run, expected = options_file(tmp_path / "options.yaml"), small_disk / "run", tmp_path / "expected"
    filler = small_disk / "filler"

    def fill() -> None:
        free = shutil.disk_usage(small_disk).free
        filler.write_bytes(bytes(free - 100_000))  # room for half of a checkpoint

    with at_step(7, fill):
        assert unimetric("train", *sources, "--out", run, "--config", options) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert [line for line in said if "error" in line] == said[-1:]
    assert "Traceback" not in "".join(said)
    assert f"cannot write {run / 'checkpoint.safetensors'}: the disk is full; free some space" in said[-1]
    assert f"the checkpoint of step 4 is kept, continue with: unimetric train --resume {run}" in said[-1]
    assert saved_step(run / "checkpoint.safetensors") == 4
    assert [path.name for path in run.iterdir() if path.name.startswith(".")] == []
    filler.unlink()
    assert unimetric("train", "--resume", run) == 0
    assert unimetric("train", *sources, "--out", expected, "--config", options) == 0
    assert_same_run(expected, run)
