"""Numbers that go wrong: reported with step, images and cause; the run stops there or skips the step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

import unimetric.training.loop as loop
from forked import forked_ranks
from toy_runs import assert_same_run, log_rows, options_file, read_json, tensors, unimetric
from unimetric.data.loading import _TrainingImages
from unimetric.losses import CurricularFace

BAD = "c1/2.png"

LINEAR = {"method": "linear", "options": {}}


def spoil(monkeypatch: pytest.MonkeyPatch, factor: float, image: str = BAD) -> None:
    """Let one train image of the first dataset come with pixels that are no numbers."""
    original = _TrainingImages.__getitem__

    def item(self: _TrainingImages, key: tuple[int, int]) -> Any:
        pixels, label, number = original(self, key)
        return (pixels.float() * factor if str(self.paths[number]).endswith(f"a/{image}") else pixels), label, number

    monkeypatch.setattr(_TrainingImages, "__getitem__", item)


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def test_stops_with_step_image_and_cause(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, run = options_file(tmp_path / "options.yaml"), tmp_path / "run"
    spoil(monkeypatch, float("inf"))
    command = ["train", *sources, "--out", run, "--config", options]
    assert unimetric(*command) == 1
    error = last_line(capsys)
    match = re.search(r"the loss is nan at step (\d+): pixels are not finite: remove or repair the file; ", error)
    assert match, error
    assert f"suspected images: {sources[0] / BAD}" in error
    # The same folder can hold a run at once.
    monkeypatch.undo()
    if not (run / "config.yaml").exists():
        assert unimetric(*command) == 0


def fail_at(monkeypatch: pytest.MonkeyPatch, steps: set[int], factor: float = float("nan")) -> None:
    """Let the loss be no number at steps, computed once or again, the first being 1."""
    original, forward = loop.train_step, CurricularFace.forward
    failing = [False]

    def step(run: Any, model: Any, optimiser: Any, batch: Any, progress: Any) -> Any:
        failing[0] = progress.step + 1 in steps
        return original(run, model, optimiser, batch, progress)

    def broken(self: CurricularFace, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        value = forward(self, embeddings, labels)
        if failing[0]:
            self.t.fill_(float("nan"))  # as it would be with embeddings that are no numbers
        return value * factor if failing[0] else value

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr(CurricularFace, "forward", broken)


def test_the_last_checkpoint_is_kept_and_the_run_goes_on_by_skipping(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options, run, other = options_file(tmp_path / "options.yaml"), tmp_path / "run", tmp_path / "other"
    fail_at(monkeypatch, {6, 7, 11})
    assert unimetric("train", *sources, "--out", run, "--config", options) == 1
    error = last_line(capsys)
    assert "the loss is nan at step 6" in error
    assert "look at --loss.options of curricularface (margin 0.3, scale 32" in error
    assert "lower --training.learning_rate (0.0001)" in error
    assert f"the checkpoint of step 4 is kept, continue with: unimetric train --resume {run}" in error
    kept = tensors(run / "checkpoint.safetensors")
    assert all(bool(value.isfinite().all()) for value in kept.values() if value.is_floating_point())
    assert unimetric("train", "--resume", run, "--training.non_finite", "skip") == 0
    said = capsys.readouterr().err
    assert said.count("skipped: the loss is nan") == 3
    assert "3 of 12 steps were skipped" in said
    assert read_json(run / "metrics.json")["counts"]["skipped_steps"] == 3
    assert [(row["step"], row["skipped_steps"]) for row in log_rows(run) if "skipped_steps" in row] == [
        (6, 1),
        (7, 2),
        (11, 3),
    ]
    assert unimetric("train", *sources, "--out", other, "--config", options, "--training.non_finite", "skip") == 0
    assert_same_run(other, run)


def test_a_skipped_step_changes_nothing(sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the run in which the optimiser was not asked and the moving averages stood still at this step."""
    options = options_file(tmp_path / "options.yaml", training={"non_finite": "skip"})
    with monkeypatch.context() as patch:
        fail_at(patch, {6})
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 0
    original = loop.train_step

    def step(run: Any, model: Any, optimiser: Any, batch: Any, progress: Any) -> Any:
        return None if progress.step == 5 else original(run, model, optimiser, batch, progress)

    monkeypatch.setattr(loop, "train_step", step)
    assert unimetric("train", *sources, "--out", tmp_path / "expected", "--config", options) == 0
    expected, found = (tensors(tmp_path / name / "checkpoint.safetensors") for name in ("expected", "run"))
    assert expected.keys() == found.keys()
    assert [name for name, value in expected.items() if not value.equal(found[name])] == []


def test_ten_in_a_row_are_not_the_images(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = options_file(tmp_path / "options.yaml", training={"non_finite": "skip"})
    fail_at(monkeypatch, set(range(2, 20)))
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 1
    error = last_line(capsys)
    assert "at step 11" in error
    assert "it is the 10th step in a row that fails" in error


DRIVER = """
import sys
import pytest
from pathlib import Path
sys.path[:0] = [{tests!r}, {here!r}]
from test_non_finite import spoil
from unimetric.cli import main
spoil(pytest.MonkeyPatch(), float("nan"))
sys.exit(main(sys.argv[1:]))
"""


def test_one_process_with_a_bad_batch_stops_both(sources: list[Path], tmp_path: Path) -> None:
    here = Path(__file__).parent
    driver, run = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(tests=str(here.parent), here=str(here)))
    options = options_file(tmp_path / "options.yaml", model=LINEAR)
    command = ["train", *sources, "--out", run, "--config", options, "--device.processes", 2]
    with forked_ranks(command, tmp_path, str(driver)) as processes:
        error = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert processes[0].returncode == 1, error
    lines = [line for line in error.splitlines() if "unimetric: error: " in line]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert f"pixels are not finite: remove or repair the file; suspected images: {sources[0] / BAD}" in lines[0]


def test_divided_proxies_in_half_precision_stop_both(sources: list[Path], tmp_path: Path) -> None:
    """Each process holds other proxies; both stop with one message."""
    here = Path(__file__).parent
    driver, run = tmp_path / "driver.py", tmp_path / "run"
    driver.write_text(DRIVER.format(tests=str(here.parent), here=str(here)))
    options = options_file(
        tmp_path / "options.yaml",
        model=LINEAR,
        training={"shard_proxies": True},
        device={"processes": 2, "precision": "bf16"},
    )
    command = ["train", *sources, "--out", run, "--config", options]
    with forked_ranks(command, tmp_path, str(driver)) as processes:
        error = "".join(process.communicate(timeout=120)[1] for process in processes)
    assert processes[0].returncode == 1, error
    assert f"suspected images: {sources[0] / BAD}" in error


def test_an_extension_that_fails_leaves_nothing_behind(
    sources: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    base, run = tmp_path / "base", tmp_path / "run"
    options = options_file(tmp_path / "options.yaml", training={"steps": 2}, data={"replay_per_class": 2})
    assert unimetric("train", sources[0], "--out", base, "--config", options) == 0
    fail_at(monkeypatch, {2}, factor=float("inf"))
    assert unimetric("extend", base, "--data", sources[1], "--out", run, "--steps", "3", "--workers", "0") == 1
    assert "the loss is inf at step 2" in last_line(capsys)
    assert not run.exists()


def test_vectors_that_are_not_finite_at_the_end_are_named_and_the_model_is_saved(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The loss of the only step is finite; the weights after it are too large.
    options = options_file(tmp_path / "options.yaml", training={"steps": 1, "learning_rate": 1e30})
    run = tmp_path / "run"
    assert unimetric("train", *sources, "--out", run, "--config", options) == 2
    error = last_line(capsys)
    assert re.search(
        r"\.png: the model's vector is not finite, as of 35 of 35 images: .*--training\.learning_rate", error
    )
    assert f"the trained model is saved in {run / 'model'}" in error
    assert (run / "model/adapter.safetensors").is_file() and not (run / "metrics.json").exists()
