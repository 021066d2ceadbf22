"""Behaviour of one run: which weights move, what is clipped, refused, skipped, selected, and that it learns."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_pre_hook

from toy_runs import at_step, interrupt, log_rows, make_images, options_file, read_json, removed, tensors, unimetric
from unimetric import Embedder
from unimetric.config import run_config
from unimetric.data.catalog import Item
from unimetric.data.splits import Split
from unimetric.errors import UserError
from unimetric.evaluation.evaluate_split import Evaluator
from unimetric.losses import CurricularFace
from unimetric.training.loop import noise_seed
from unimetric.training.setup import load_split


class Parts:
    """The embedder and the loss of a run, and their state before its first step."""

    def __init__(self) -> None:
        self.modules: dict[str, torch.nn.Module] = {}
        self.before: dict[str, torch.Tensor] = {}

    def __call__(self, module: torch.nn.Module, _: object) -> None:
        prefix = {Embedder: "", CurricularFace: "loss."}.get(type(module))
        if prefix is not None and prefix not in self.modules:
            self.modules[prefix] = module
            self.before |= {name: value.clone() for name, value in self._state(prefix)}

    def _state(self, prefix: str) -> list[tuple[str, torch.Tensor]]:
        return [(prefix + name, value) for name, value in self.modules[prefix].state_dict().items()]

    def changed(self) -> set[str]:
        after = [entry for prefix in self.modules for entry in self._state(prefix)]
        return {name for name, value in after if not value.equal(self.before[name])}


@pytest.mark.parametrize("method", ["puma", "linear"])
def test_steps_change_what_is_trained_and_nothing_else(method: str, sources: list[Path], tmp_path: Path) -> None:
    made = Parts()
    model = {} if method == "puma" else {"method": "linear", "options": {}}
    options = options_file(tmp_path / "options.yaml", model=model, training={"steps": 3})
    with removed(register_module_forward_pre_hook(made)):
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    changed = made.changed()
    learned = {name for name in made.before if not name.startswith("backbone.")}
    assert changed == learned
    assert all(parameter.grad is None for parameter in made.modules[""].backbone.parameters())


@pytest.mark.parametrize("clip", [1e-4, 0.0])
def test_gradient_values_are_clipped(clip: float, sources: list[Path], tmp_path: Path) -> None:
    largest: list[float] = []

    def measure(optimiser: torch.optim.Optimizer, *_: object) -> None:
        gradients = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
        largest.append(max(float(gradient.abs().max()) for gradient in gradients))

    options = options_file(tmp_path / "options.yaml", training={"steps": 3, "clip_value": clip})
    with removed(register_optimizer_step_pre_hook(measure)):
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    assert len(largest) == 3
    if clip:
        assert largest == pytest.approx([clip] * 3)
    else:
        assert min(largest) > 1e-3


def test_learning_rates_follow_the_schedule(sources: list[Path], tmp_path: Path) -> None:
    seen: list[dict[str, float]] = []

    def look(optimiser: torch.optim.Optimizer, *_: object) -> None:
        seen.append({group["name"]: group["lr"] for group in optimiser.param_groups})

    training = {"epochs": 3, "decay_epochs": 1, "decay_factor": 0.5}
    options = options_file(tmp_path / "options.yaml", training=training)
    with removed(register_optimizer_step_pre_hook(look)):
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    assert [rates["method"] for rates in seen] == pytest.approx([1e-3] * 4 + [5e-4] * 4 + [2.5e-4] * 4)
    assert [rates["proxies"] for rates in seen] == pytest.approx([100 * rates["method"] for rates in seen])
    rows = log_rows(tmp_path / "run")
    assert [(row["step"], row["epoch"], row["rate_factor"]) for row in rows] == [(10, 2, 0.25), (12, 2, 0.25)]


def test_it_learns(sources: list[Path], tmp_path: Path) -> None:
    data = [make_images(tmp_path / "many", classes=16, images=8, seed=5)]
    training = {"epochs": 12, "batch_size": 16, "learning_rate": 2e-4, "proxy_multiplier": 1000.0}
    options = options_file(tmp_path / "options.yaml", training=training)
    assert unimetric("train", *data, "--out", tmp_path / "run", "--config", options) == 0
    losses = [row["loss"] for row in log_rows(tmp_path / "run")]
    assert losses[-1] < 0.7 * losses[0]
    frozen = ["--model.method", "frozen", "--model.options", "{}", "--data.sources", json.dumps([str(data[0])])]
    assert unimetric("evaluate", "--out", tmp_path / "frozen", "--config", options, *frozen) == 0
    start, end = (read_json(folder / "metrics.json") for folder in (tmp_path / "frozen", tmp_path / "run"))
    assert end["unified"]["map@r"] > start["unified"]["map@r"]


def unreadable(source: Path, target: Path, names: list[str]) -> Path:
    shutil.copytree(source, target)
    for name in names:
        (target / name).write_bytes((target / name).read_bytes()[:60])
    return target


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_images_are_named_counted_and_skipped(workers: int, sources: list[Path], tmp_path: Path) -> None:
    # c0 and c2 are trained on, c6 is tested on.
    data = unreadable(sources[0], tmp_path / "data", ["c0/1.png", "c2/0.png", "c6/3.png"])
    options = options_file(tmp_path / "options.yaml", data={"workers": workers})
    assert unimetric("train", data, "--out", tmp_path / "run", "--config", options) == 0
    metrics = read_json(tmp_path / "run/metrics.json")
    assert [entry["path"] for entry in metrics["skipped"]] == [
        str(data / name) for name in ("c0/1.png", "c2/0.png", "c6/3.png")
    ]
    assert all(entry["reason"] for entry in metrics["skipped"])
    counts = metrics["counts"]
    assert (counts["skipped_train_files"], counts["skipped_files"], counts["train_images"]) == (2, 3, 20)
    assert counts["queries"] == counts["gallery"] == 19


def test_strict_stops_at_an_unreadable_image(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = unreadable(sources[0], tmp_path / "data", ["c2/0.png"])
    options = options_file(tmp_path / "options.yaml")
    assert unimetric("train", data, "--out", tmp_path / "run", "--config", options, "--data.strict", "true") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert str(data / "c2/0.png") in error
    assert "--data.strict is set" in error
    assert not (tmp_path / "run/metrics.json").exists()


def test_a_batch_without_any_readable_image_is_passed_over(sources: list[Path], tmp_path: Path) -> None:
    names = [f"c{number}/{image}.png" for number in range(4) for image in range(5)][:-1]
    data = unreadable(sources[0], tmp_path / "data", names)
    options = options_file(tmp_path / "options.yaml", training={"batch_size": 4, "epochs": 2})
    assert unimetric("train", data, "--out", tmp_path / "run", "--config", options) == 0
    # JSON has no NaN.
    for line in (tmp_path / "run/log.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda text: pytest.fail(text))
    assert read_json(tmp_path / "run/metrics.json")["counts"]["skipped_train_files"] == 19


def test_no_readable_train_image_at_all(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"c{number}/{image}.png" for number in range(4) for image in range(5)]
    data = unreadable(sources[0], tmp_path / "data", names)
    options = options_file(tmp_path / "options.yaml")
    assert unimetric("train", data, "--out", tmp_path / "run", "--config", options) == 2
    assert "none of 20 train images can be read" in capsys.readouterr().err.splitlines()[-1]


class Validations:
    """Gives scores of our choice to the validations of a run, and keeps the weights and items that were measured."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
        self.weights: list[dict[str, torch.Tensor]] = []
        self.items: list[set[Item]] = []
        original = Evaluator.__call__

        def measure(given: Evaluator, embedder: Embedder, query: Any, gallery: Any, description: str) -> Any:
            measurement = original(given, embedder, query, gallery, description)
            if description == "Validating":
                learned = {n: v.clone() for n, v in embedder.state_dict().items() if not n.startswith("backbone.")}
                measurement.metrics["harmonic"]["recall@1"] = scores[len(self.weights)]
                self.weights.append(learned)
                self.items.append({*query, *gallery})
            return measurement

        monkeypatch.setattr(Evaluator, "__call__", measure)


@pytest.mark.parametrize(("selection", "kept"), [("best", 1), ("last", 3)])
def test_selection(
    selection: str, kept: int, sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations = Validations(monkeypatch, [0.2, 0.6, 0.6, 0.4])
    options = options_file(
        tmp_path / "options.yaml",
        data={"validation_fraction": 0.3},
        training={"epochs": 4, "selection": selection},
    )
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    saved = tensors(tmp_path / "run/model/adapter.safetensors")
    agree = [all(saved[name].equal(weights[name]) for name in saved) for weights in validations.weights]
    assert agree == [index == kept for index in range(4)]  # of equals, the first
    assert [row["validation_harmonic"] for row in log_rows(tmp_path / "run") if "validation_harmonic" in row] == [
        0.2,
        0.6,
        0.6,
        0.4,
    ]


def split_of(run: Path) -> Split:
    """The images that a run has used."""
    return load_split(run_config(yaml.safe_load((run / "config.yaml").read_text()), "config.yaml"))


def test_selection_never_sees_the_test_classes(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    validations = Validations(monkeypatch, [0.1] * 9)
    options = options_file(
        tmp_path / "options.yaml",
        data={"validation_fraction": 0.3},
        training={"epochs": 5, "selection": "best", "validate_every": 2},
    )
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    split = split_of(tmp_path / "run")
    assert len(validations.items) == 3  # after epochs 2, 4 and the last
    for items in validations.items:
        classes = {(item.dataset, item.label) for item in items}
        assert len(classes) == 2
        assert not classes & {(item.dataset, item.label) for item in (*split.query, *split.gallery, *split.train)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training": {"selection": "best"}}, "set --data.validation_fraction"),
        ({"model": {"method": "frozen", "options": {}}}, "nothing to train"),
        ({"data": {"split": "test-only"}}, "--data.split is 'test-only'"),
        ({"device": {"processes": 9}}, "--training.batch_size is 8: 9 processes share"),
        ({"device": {"processes": 32, "machines": 2}, "training": {"batch_size": 64}}, "64 processes share"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_is_written(
    changes: dict[str, Any],
    words: str,
    sources: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = options_file(tmp_path / "options.yaml", **changes)
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 2
    assert words in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 10**5), st.integers(0, 63)), unique=True, max_size=50))
def test_every_use_of_every_step_draws_its_own_noise(keys: list[tuple[int, int, int]]) -> None:
    assert len({noise_seed(*key) for key in keys}) == len(keys)


def test_the_largest_seed(sources: list[Path], tmp_path: Path) -> None:
    options = options_file(tmp_path / "options.yaml", training={"seed": 2**63 - 1, "steps": 1})
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0


def test_unreadable_validation_images_are_named_and_counted(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = Path(shutil.copytree(sources[0], tmp_path / "data"))
    changes: dict[str, Any] = {"data": {"validation_fraction": 0.3}, "training": {"epochs": 3}}
    options = options_file(tmp_path / "options.yaml", **changes)
    assert unimetric("train", data, "--out", tmp_path / "first", "--config", options) == 0
    bad = split_of(tmp_path / "first").validation[2].path
    bad.write_bytes(b"no image")
    # Stopped after its first validation and continued: it is still known.
    steps = read_json(tmp_path / "first/metrics.json")["training_steps"] // 3
    with at_step(steps + 1, interrupt):
        assert unimetric("train", data, "--out", tmp_path / "run", "--config", options) == 130
    assert unimetric("train", "--resume", tmp_path / "run") == 0
    metrics = read_json(tmp_path / "run/metrics.json")
    assert [entry["path"] for entry in metrics["skipped"]] == [str(bad)]
    counts = metrics["counts"]
    assert (counts["skipped_files"], counts["skipped_validation_files"], counts["skipped_train_files"]) == (1, 1, 0)
    capsys.readouterr()
    assert unimetric("train", data, "--out", tmp_path / "strict", "--config", options, "--strict") == 2
    assert str(bad) in capsys.readouterr().err.splitlines()[-1]


def test_a_run_without_test_classes_saves_its_model(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_file(tmp_path / "options.yaml", training={"steps": 2}, data={"split": "train-only"})
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    captured = capsys.readouterr()
    assert "no classes were held out to measure it on" in captured.err
    assert captured.out == ""
    metrics = read_json(tmp_path / "run/metrics.json")
    assert (metrics["separate"], metrics["harmonic"], metrics["unified"]) == ({}, None, None)
    assert (metrics["counts"]["queries"], metrics["counts"]["train_images"], metrics["training_steps"]) == (0, 70, 2)
    assert "## Measured" not in (tmp_path / "run/model/README.md").read_text()
    assert Embedder.from_pretrained(tmp_path / "run").encode(sources[0] / "c0/0.png").shape == (1, 16)


@pytest.mark.parametrize("there", ["nothing", "a folder", "files of others"])
def test_an_error_before_the_first_checkpoint_leaves_no_run(there: str, sources: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "runs/first"
    if there != "nothing":
        run.mkdir(parents=True)
    if there == "files of others":
        (run / "tensorboard").mkdir()
        for name in ("notes.txt", "tensorboard/old"):
            (run / name).write_text("mine")
    before = {path: path.is_file() and path.read_text() for path in tmp_path.rglob("*")}
    options = options_file(tmp_path / "options.yaml")
    before[options] = options.read_text()
    command = ["train", *sources, "--out", run, "--config", options]

    def broken(module: torch.nn.Module, _: object) -> None:
        if isinstance(module, CurricularFace):
            raise UserError("it does not work")

    with removed(register_module_forward_pre_hook(broken)):
        assert unimetric(*command) == 2
    after = {path for path in tmp_path.rglob("*") if not path.name.startswith("events.out.")}
    assert after == set(before)
    assert all(not path.is_file() or path.read_text() == before[path] for path in after)
    assert unimetric(*command) == 0


def test_a_full_disk_at_the_first_checkpoint_leaves_no_run(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill() -> None:
        assert (tmp_path / "run/config.yaml").exists()
        monkeypatch.setattr(os, "fsync", full)

    options = options_file(tmp_path / "options.yaml", training={"steps": 1})
    with at_step(1, fill):
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 2
    assert "the disk is full" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_without_a_terminal_every_epoch_says_a_line(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_file(tmp_path / "options.yaml", training={"epochs": 2})
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch ")]
    assert len(said) == 2
    assert re.fullmatch(r"epoch 1, step 4 of 8: loss \d+\.\d{3}, \d+ s, about \d+ s left", said[0])
    assert re.fullmatch(r"epoch 2, step 8 of 8: loss \d+\.\d{3}, \d+ s", said[1])
    last = [row["loss"] for row in log_rows(tmp_path / "run")][-1]
    assert f"loss {last:.3f}," in said[1]


def test_only_proxies_that_can_be_divided_are(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_file(tmp_path / "options.yaml", training={"shard_proxies": True}, loss={"name": "arcface"})
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 2
    assert "--training.shard_proxies is true, but --loss.name is 'arcface'" in capsys.readouterr().err
