"""A whole benchmark on toy images: chosen, run, skipped, resumed, failed, refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from toy_runs import OPTIONS, make_images, read_json, start, unimetric

LINEAR = {"model": {"method": "linear"}}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("images")
    return [make_images(root / "a", classes=8, images=4), make_images(root / "b", classes=8, images=4, seed=1)]


def matrix(path: Path, entries: dict[str, Any], **training: Any) -> Path:
    model = {name: value for name, value in OPTIONS["model"].items() if name not in ("method", "options")}
    base = {**OPTIONS, "model": model, "training": {**OPTIONS["training"], "epochs": 1, **training}}
    path.write_text(yaml.safe_dump({"title": "Toy", "base": base, "axes": {"method": entries}}, sort_keys=False))
    return path


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, error = process.communicate(timeout=240)
    return process.returncode, out, error


@pytest.fixture(scope="module")
def finished(images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A benchmark that chooses and has a run that fails; only to be read."""
    root = tmp_path_factory.mktemp("finished")
    entries = {
        "frozen": {"model": {"method": "frozen"}},
        "too fast": {**LINEAR, "training": {"learning_rate": 1e30, "clip_value": 0.0, "steps": 40}},
        "linear": {**LINEAR, "seeds": [0, 1], "choose": {"training.learning_rate": [1e-9, 1e-3]}},
    }
    path = matrix(root / "toy.yaml", entries)
    code, out, error = finish(start("benchmark", path, *images, "--out", root / "out"))
    assert code == 1, error
    assert "failed: too fast, seed 0: the loss is nan" in error
    assert f"see {root / 'out/too-fast/all/seed-0.log'}" in error
    assert "Toy" in out
    return path, root / "out"


def test_what_is_kept(finished: tuple[Path, Path]) -> None:
    _, out = finished
    metrics = read_json(out / "linear/all/seed-1/metrics.json")
    assert metrics["configuration"]["training"]["seed"] == 1
    assert len(metrics["provenance"]["code"]["sha256"]) == 64
    assert metrics["provenance"]["weights_fingerprint"] == metrics["model"]["fingerprint"]
    assert metrics["cost"]["wall_seconds"] > metrics["training_seconds"] - 0.1
    assert metrics["cost"]["peak_memory_bytes"] > 1e8
    frozen = read_json(out / "frozen/all/seed-0/metrics.json")
    measured = [entry["provenance"]["measured_fingerprint"] for entry in (frozen, metrics)]
    assert measured[0] == measured[1]
    results = read_json(out / "results.json")
    assert [row["name"] for row in results["rows"]] == ["frozen", "too fast", "linear"]
    assert all(run["command"].startswith("unimetric ") for run in results["runs"])


def test_the_choice_is_made_on_train_classes_and_stated(finished: tuple[Path, Path]) -> None:
    _, out = finished
    trials = sorted((out / "linear").glob("all-choose-*/seed-0/metrics.json"))
    assert len(trials) == 2
    scores = {}
    for path in trials:
        metrics = read_json(path)
        assert metrics["configuration"]["evaluation"]["classes"] == "validation"
        # Half of the four train classes of each dataset, four images each.
        assert metrics["counts"]["queries"] == 16
        scores[metrics["configuration"]["training"]["learning_rate"]] = metrics["harmonic"]["recall@1"]
    expected = 1e-9 if scores[1e-9] >= scores[1e-3] else 1e-3
    for seed in (0, 1):
        metrics = read_json(out / f"linear/all/seed-{seed}/metrics.json")
        assert metrics["configuration"]["training"]["learning_rate"] == expected
        assert metrics["counts"]["queries"] == 32
    assert (
        f"linear: chose learning_rate {expected:g} by harmonic Recall@1 on held-out" in (out / "table.md").read_text()
    )


def test_the_table_says_what_the_runs_say(finished: tuple[Path, Path]) -> None:
    _, out = finished
    lines = {line["entry"]: line for line in csv.DictReader((out / "table.csv").open())}
    unified = [read_json(out / f"linear/all/seed-{seed}/metrics.json")["unified"]["recall@1"] for seed in (0, 1)]
    assert float(lines["linear"]["recall@1 unified mean"]) == pytest.approx(sum(unified) / 2)
    assert lines["too fast"]["recall@1 unified mean"] == ""
    assert len(list(csv.DictReader((out / "results.csv").open()))) == 5


def test_what_is_done_is_skipped(finished: tuple[Path, Path], images: list[Path]) -> None:
    path, out = finished
    before = {file: file.stat().st_mtime_ns for file in out.glob("*/*/*/metrics.json")}
    assert len(before) == 5
    assert unimetric("benchmark", path, *images, "--out", out) == 1
    assert {file: file.stat().st_mtime_ns for file in out.glob("*/*/*/metrics.json")} == before


def test_other_options_are_refused(
    finished: tuple[Path, Path], images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out = finished
    other = matrix(tmp_path / "toy.yaml", {"frozen": {"model": {"method": "frozen", "image_size": 48}}})
    assert unimetric("benchmark", other, *images, "--out", out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "was made with --model.image_size 32, but frozen, seed 0 is planned with 48: put the option back" in error


def wait_for(path: Path, process: subprocess.Popen[str], text: str = "") -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if path.is_file() and text in path.read_text(errors="replace"):
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_benchmark_that_was_stopped_goes_on(number: signal.Signals, images: list[Path], tmp_path: Path) -> None:
    path, out = matrix(tmp_path / "toy.yaml", {"linear": LINEAR}, epochs=40), tmp_path / "out"
    process = start("benchmark", path, *images, "--out", out)
    wait_for(out / "linear/all/seed-0.log", process, "epoch 3")
    assert unimetric("benchmark", path, *images, "--out", out) == 2  # one at a time
    os.killpg(process.pid, number)
    code, _, error = finish(process)
    if number == signal.SIGINT:
        assert code == 130
        assert "unimetric: stopped, nothing is lost; run the same command again to go on" in error
    # A killed benchmark's run saves, and goes on from there; the lock is held until it has ended.
    code, _, error = finish(start("benchmark", path, *images, "--out", out))
    assert code == 0, error
    log = (out / "linear/all/seed-0.log").read_text()
    assert "nothing is lost" in log
    assert "Continuing" in log
    assert read_json(out / "linear/all/seed-0/metrics.json")["training_steps"] == 160
    assert not json.loads((out / "results.json").read_text())["notes"][-1].startswith("Failed")


def test_mistakes_exit_with_2(images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = matrix(tmp_path / "toy.yaml", {"x": {"model": {"method": "puma", "options": {"prompt": 1}}}})
    for arguments, words in (
        (("leave-one-uot",), "nor a packaged benchmark; did you mean 'leave-one-out'"),
        ((path, *images), "toy.yaml, x: unknown option 'prompt' of --model.method puma; did you mean 'prompts'"),
        ((path, tmp_path / "nowhere"), "nowhere"),
    ):
        assert unimetric("benchmark", *arguments, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
