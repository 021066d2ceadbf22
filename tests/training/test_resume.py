"""A run that was stopped and continued is, to the bit, the run that was not."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

import unimetric.formats.run_folder as run_folder
from toy_runs import assert_same_run, at_step, interrupt, log_rows, options_file, read_json, tensors, unimetric
from unimetric.config import RunConfig
from unimetric.errors import UserError

STEPS = 12  # 3 epochs of 4 batches of 8, from 35 images
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "plain": {},
    "pairs": {"loss": {"name": "multi-similarity"}},
    "margin": {"loss": {"name": "margin"}},
    "classes": {"sampling": {"name": "class-balanced", "options": {"images_per_class": 2}}},
    "shares": {"sampling": {"name": "temperature"}},
    "nested": {"model": {"nested_sizes": [4, 8]}, "loss": {"options": {"sampled_classes": 0.5}}},
    # Rounds end within epochs, at their ends and across them.
    "adaptive": {
        "data": {"workers": 1},
        "sampling": {"name": "adaptive", "options": {"round_steps": 3, "sharpness": 20.0, "floor": 0.0}},
    },
    # Five train classes are left, 25 images: 3 batches an epoch.
    "best": {
        "data": {"validation_fraction": 0.3},
        "training": {"selection": "best", "epochs": 4, "schedule": "cosine", "warmup_steps": 3},
    },
    "average": {"data": {"validation_fraction": 0.3}, "training": {"average_over": 0.5}},
}


@pytest.fixture(scope="session")
def whole(sources: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """Options file and finished run folder of a variant, trained without a break."""
    done: dict[str, tuple[Path, Path]] = {}

    def run(variant: str) -> tuple[Path, Path]:
        if variant not in done:
            root = tmp_path_factory.mktemp(variant.replace("-", "_"))
            options = options_file(root / "options.yaml", **VARIANTS[variant])
            assert unimetric("train", *sources, "--out", root / "run", "--config", options) == 0
            done[variant] = options, root / "run"
        return done[variant]

    return run


class PowerCut(BaseException):
    """Nothing of ours runs after it; no `Exception`, because those are tidied up after."""


def power_cut() -> None:
    raise PowerCut


def cases(quick: list[tuple[str, int]], soak: list[tuple[str, int]]) -> list[Any]:
    return [*quick, *(pytest.param(*case, marks=pytest.mark.soak) for case in soak)]


@pytest.mark.parametrize(
    ("variant", "step"),
    # At the end of an epoch, within one, at the last step but one, and at the last.
    cases(
        [
            *[("plain", 4), ("plain", 11), ("plain", 12), ("best", 5), ("average", 5), ("pairs", 6), ("classes", 6)],
            *[("shares", 6), ("nested", 6), ("adaptive", 3), ("adaptive", 7)],
        ],
        [
            *[("plain", 1), ("plain", 6), ("best", 3), ("best", 12), ("margin", 6), ("adaptive", 2), ("adaptive", 4)],
            ("adaptive", 9),
        ],
    ),
)
def test_stopped_and_resumed_is_the_same_run(
    variant: str,
    step: int,
    whole: Callable[[str], tuple[Path, Path]],
    sources: list[Path],
    tmp_path: Path,
) -> None:
    options, expected = whole(variant)
    run = tmp_path / "run"
    with at_step(step, interrupt):
        code = unimetric("train", *sources, "--out", run, "--config", options)
    if step < STEPS:
        assert code == 130
        assert not (run / "metrics.json").exists()
        assert unimetric("train", "--resume", run) == 0
    else:
        assert code == 0  # the last step is done: nothing is left to stop
    assert_same_run(expected, run)


@pytest.mark.parametrize("step", [1, 5, *(pytest.param(step, marks=pytest.mark.soak) for step in (4, 12))])
def test_killed_between_checkpoints_goes_on_from_the_last_one(
    step: int,
    whole: Callable[[str], tuple[Path, Path]],
    sources: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options, expected = whole("best")
    run = tmp_path / "run"
    with at_step(step, power_cut), pytest.raises(PowerCut):
        unimetric("train", *sources, "--out", run, "--config", options)
    assert (run / "checkpoint.safetensors").exists() == (step > 3)
    capsys.readouterr()
    assert unimetric("train", "--resume", run) == 0
    said = capsys.readouterr().err
    assert ("no checkpoint yet" in said) == (step <= 3)
    assert (f"after step {(step - 1) // 3 * 3} of 12" in said) == (step > 3)
    assert_same_run(expected, run)


def test_interrupted_twice(whole: Callable[[str], tuple[Path, Path]], sources: list[Path], tmp_path: Path) -> None:
    options, expected = whole("plain")
    run = tmp_path / "run"
    for step, command in ((3, ["train", *sources, "--out", run, "--config", options]), (7, ["train", "--resume", run])):
        with at_step(step, lambda: signal.raise_signal(signal.SIGTERM)):
            assert unimetric(*command) == 130
    assert unimetric("train", "--resume", run) == 0
    assert_same_run(expected, run)


def test_adaptive_sampling_follows_the_losses(whole: Callable[[str], tuple[Path, Path]]) -> None:
    """Half of the batches for each dataset in the first round; then, so sharp, nearly all for one."""
    _, run = whole("adaptive")
    (row,) = [row for row in log_rows(run) if row["step"] == 10]
    assert row["share/a"] + row["share/b"] == pytest.approx(1)
    assert abs(row["share/a"] - row["share/b"]) > 0.05


def test_resuming_a_finished_run_changes_nothing(whole: Callable[[str], tuple[Path, Path]], tmp_path: Path) -> None:
    for variant in ("plain", "best"):
        _, expected = whole(variant)
        run = tmp_path / variant
        shutil.copytree(expected, run)
        (run / "metrics.json").unlink()
        with at_step(STEPS + 1, power_cut):
            assert unimetric("train", "--resume", run) == 0
        assert_same_run(expected, run)


def test_a_resumed_run_reports_the_peak_memory_of_all_its_processes(
    whole: Callable[[str], tuple[Path, Path]], sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options, _ = whole("plain")
    run = tmp_path / "run"
    with monkeypatch.context() as patch, at_step(5, interrupt):
        patch.setattr("unimetric.training.provenance._peak_resident_bytes", lambda: 10**15)
        assert unimetric("train", *sources, "--out", run, "--config", options) == 130
    assert unimetric("train", "--resume", run) == 0
    assert read_json(run / "metrics.json")["cost"]["peak_memory_bytes"] == 10**15


def test_resume_remembers_where_it_computes(
    whole: Callable[[str], tuple[Path, Path]], tmp_path: Path, sources: list[Path]
) -> None:
    options, _ = whole("plain")
    run = tmp_path / "run"
    with at_step(2, interrupt):
        assert unimetric("train", *sources, "--out", run, "--config", options) == 130
    assert unimetric("train", "--resume", run, "--evaluation.ks", "[1,3]") == 0
    assert "recall@3" in read_json(run / "metrics.json")["unified"]
    assert "- 3" in (run / "config.yaml").read_text()


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--training.epochs", "4", "--training.epochs is 4, but"),
        ("--training.seed", "1", "--training.seed is 1, but"),
        ("--loss.name", "arcface", "--loss.name is 'arcface', but"),
        ("--model.options.adapter_drop", "0.25", "--model.options is"),
        ("--data.split", "random-half", "other images"),
        ("--out", "elsewhere", "--out and --resume"),
    ],
)
def test_resume_refuses_other_options(
    option: str,
    value: str,
    words: str,
    whole: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _, expected = whole("plain")
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert unimetric("train", "--resume", run, option, value) == 2
    error = capsys.readouterr().err
    assert words in error
    assert str(run) in error or option == "--out"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_resume_refuses_other_images(
    whole: Callable[[str], tuple[Path, Path]], sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options, _ = whole("plain")
    moved = [Path(shutil.copytree(source, tmp_path / "data" / source.name)) for source in sources]
    run = tmp_path / "run"
    assert unimetric("train", *moved, "--out", run, "--config", options, "--training.epochs", 1) == 0
    # Moved data are the same data.
    (tmp_path / "data").rename(tmp_path / "elsewhere")
    moved = [tmp_path / "elsewhere" / source.name for source in sources]
    assert unimetric("train", *moved, "--resume", run) == 0
    (moved[0] / "c0/0.png").unlink()
    capsys.readouterr()
    assert unimetric("train", "--resume", run) == 2
    assert f"{run / 'checkpoint.safetensors'} belongs to other images" in capsys.readouterr().err


HOLDER = """
import sys
from filelock import FileLock
lock = FileLock(sys.argv[1])
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""


def test_a_run_that_another_process_trains_is_refused_until_that_one_has_died(
    whole: Callable[[str], tuple[Path, Path]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, expected = whole("plain")
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    command = [sys.executable, "-c", HOLDER, str(run / "train.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        assert unimetric("train", "--resume", run) == 2
        assert (
            f"another process trains in {run}: wait for it to end, stop it, or if there is none"
            in capsys.readouterr().err
        )
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        holder.kill()
    assert unimetric("train", "--resume", run) == 0


def test_a_run_that_another_process_begins_meanwhile_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes with one --out find the folder empty; the second one removes nothing of the first one's run."""
    run = run_folder.RunFolder(tmp_path / "run")
    begun = {"config.yaml": "{}", "log.jsonl": "", "csv": ""}

    def begin(*words: object, **style: object) -> None:
        for name, text in begun.items():
            (run.path / name).write_text(text)

    run.path.mkdir()
    # Reported when the lock is found taken.
    monkeypatch.setattr(run_folder, "log_status", begin)
    monkeypatch.setattr(run_folder, "LOCK_SECONDS", 0.1)
    with (
        FileLock(run.path / "train.lock"),
        pytest.raises(UserError, match="another process trains"),
        run.new_run(RunConfig()),
    ):
        pass
    assert {path.name for path in run.path.iterdir()} == {*begun, "train.lock"}


def test_a_finished_run_without_its_checkpoint_is_not_trained_anew(
    whole: Callable[[str], tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = whole("plain")
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    (run / "checkpoint.safetensors").unlink()
    assert unimetric("train", "--resume", run) == 2
    assert f"{run / 'checkpoint.safetensors'} is missing, but the run" in capsys.readouterr().err
    assert read_json(run / "metrics.json") == read_json(expected / "metrics.json")


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "another", "flipped header"])
def test_damaged_checkpoint(
    damage: str, whole: Callable[[str], tuple[Path, Path]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, expected = whole("plain")
    run = tmp_path / "run"
    shutil.copytree(expected, run)
    file = run / "checkpoint.safetensors"
    content = file.read_bytes()
    file.write_bytes(
        {
            "cut": content[:-1],
            "empty": b"",
            "garbage": b"no safetensors" * 100,
            "another": (run / "model/adapter.safetensors").read_bytes(),
            "flipped header": content[:10] + b"\xff" + content[11:],
        }[damage]
    )
    capsys.readouterr()  # of the training before
    assert unimetric("train", "--resume", run) == 2
    error = capsys.readouterr().err
    assert f"{file} is damaged" in error
    assert error.count("\n") == 1


def test_checkpoint_holds_everything(whole: Callable[[str], tuple[Path, Path]]) -> None:
    _, run = whole("best")
    names = set(tensors(run / "checkpoint.safetensors"))
    assert {"loss.proxies", "loss.t", "model.head.weight", "best.head.weight", "optimiser.0.exp_avg"} <= names


def test_a_log_that_a_power_cut_left_damaged(
    whole: Callable[[str], tuple[Path, Path]], sources: list[Path], tmp_path: Path
) -> None:
    options, expected = whole("plain")
    run = tmp_path / "run"
    with at_step(11, interrupt):
        assert unimetric("train", *sources, "--out", run, "--config", options) == 130
    log = run / "log.jsonl"
    log.write_bytes(b"\0\0\0\n[1]\n3\n{}\n\xff\n" + log.read_bytes() + b"\0\0\n")
    assert unimetric("train", "--resume", run) == 0
    assert_same_run(expected, run)
