"""A whole benchmark on toy images: chosen, run, skipped, resumed, failed, refused."""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path
from types import GenericAlias
from typing import Any, BinaryIO

import pytest
import yaml
from filelock import FileLock

from toy_runs import OPTIONS, make_images, one_thread, read_json, start, unimetric

__all__ = ["one_thread"]

LINEAR = {"model": {"method": "linear"}}
POPEN = subprocess.Popen


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("images")
    return [make_images(root / "a", classes=8, images=4), make_images(root / "b", classes=8, images=4, seed=1)]


def matrix(path: Path, entries: dict[str, Any], **training: Any) -> Path:
    model = {name: value for name, value in OPTIONS["model"].items() if name not in ("method", "options")}
    base = {**OPTIONS, "model": model, "training": {**OPTIONS["training"], "epochs": 1, **training}}
    path.write_text(yaml.safe_dump({"title": "Toy", "base": base, "axes": {"method": entries}}, sort_keys=False))
    return path


class InThisProcess:
    """A stand-in for `subprocess.Popen` that runs the command in this process, since starting one takes seconds."""

    __class_getitem__ = classmethod(GenericAlias)  # for annotations of modules that are first imported meanwhile

    def __init__(self, command: list[str], *, stdout: BinaryIO, **options: Any) -> None:
        assert command[:3] == [sys.executable, "-m", "unimetric"]
        with io.TextIOWrapper(stdout, write_through=True) as log, redirect_stdout(log), redirect_stderr(log):
            self.code = unimetric(*command[3:])

    def poll(self) -> int:
        return self.code

    def wait(self) -> int:
        return self.code


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", InThisProcess)


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
    out, error = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(error):
        patch.setattr(subprocess, "Popen", InThisProcess)
        patch.setenv("COLUMNS", "500")
        assert unimetric("benchmark", path, *images, "--out", root / "out") == 1, error.getvalue()
    assert "failed: too fast, seed 0: the loss is nan" in error.getvalue()
    assert f"see {root / 'out/too-fast/all/seed-0.log'}" in error.getvalue()
    assert "Toy" in out.getvalue()
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


@pytest.mark.usefixtures("in_this_process")
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


def wait_for(log: Path, text: str, meanwhile: Callable[[], bool] = lambda: True) -> None:
    deadline = time.monotonic() + 400
    while meanwhile() and time.monotonic() < deadline:
        if log.is_file() and text in log.read_text(errors="replace"):
            return
        time.sleep(0.02)
    raise AssertionError(log.read_text() if log.is_file() else f"{log} is not there")


@contextmanager
def watching(log: Path, text: str, act: Callable[[], None]) -> Iterator[None]:
    """Act, in a thread, when a log says something new, while this thread does something else."""
    with ThreadPoolExecutor(1) as executor:
        watcher = executor.submit(lambda: (wait_for(log, text), act()))
        yield
        watcher.result()


def killed(command: list[str], **options: Any) -> Any:
    """A stand-in for `subprocess.Popen`: a process with the same options that dies at once."""
    return POPEN(["sh", "-c", "kill -KILL $$"], **options)


def waiting(command: list[str], **options: Any) -> Any:
    """A stand-in for `subprocess.Popen`: a process that ends with 130 at SIGTERM, and asks this one to stop."""
    return POPEN(["sh", "-c", f"trap 'exit 130' TERM; kill -INT {os.getpid()}; while :; do sleep 0.1; done"], **options)


def last_epoch(log: Path) -> int:
    return int(re.findall(r"epoch (\d+),", log.read_text())[-1])


def test_a_stopped_benchmark_waits_for_its_run_and_a_second_one_is_refused(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["benchmark", matrix(tmp_path / "toy.yaml", {"linear": LINEAR}), *images, "--out", tmp_path / "out"]
    monkeypatch.setattr(subprocess, "Popen", waiting)
    before = signal.getsignal(signal.SIGTERM)
    assert unimetric(*command) == 130
    assert signal.getsignal(signal.SIGTERM) == before
    assert "nothing is lost; run the same command again to continue" in capsys.readouterr().err
    assert (tmp_path / "out/table.md").is_file()

    with FileLock(tmp_path / "out/.lock"):
        assert unimetric(*command) == 2
    assert "another benchmark is running there: wait for it, stop it" in capsys.readouterr().err


@pytest.mark.usefixtures("in_this_process")
def test_a_run_that_was_cut_off_is_resumed_and_one_that_was_killed_is_named(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["benchmark", matrix(tmp_path / "toy.yaml", {"linear": LINEAR}), *images, "--out", tmp_path / "out"]
    run, log = tmp_path / "out/linear/all/seed-0", tmp_path / "out/linear/all/seed-0.log"
    assert unimetric(*command) == 0
    expected = read_json(run / "metrics.json")
    (run / "metrics.json").unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess, "Popen", killed)
        assert unimetric(*command) == 1
    printed = " ".join(capsys.readouterr().err.split())
    assert "linear, seed 0: resumed" in printed
    assert "failed: linear, seed 0: ended by SIGKILL, perhaps for lack of memory" in printed
    assert unimetric(*command) == 0
    assert log.read_text().count("--resume") == 2
    assert read_json(run / "metrics.json")["separate"] == expected["separate"]


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux signals a child when its parent dies")
def test_a_benchmark_that_was_killed_goes_on(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = matrix(tmp_path / "toy.yaml", {"linear": LINEAR}, epochs=40), tmp_path / "out"
    command, log = ["benchmark", path, *images, "--out", out], out / "linear/all/seed-0.log"

    # Imported before the run, which takes no longer than that.
    import_module("unimetric.training.loop")
    # The benchmark itself is killed: its run saves and ends.
    process = start(*command)
    wait_for(log, "epoch 3,", lambda: process.poll() is None)
    assert unimetric(*command) == 2
    assert "another benchmark is running there" in capsys.readouterr().err
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=120)

    # Ctrl-C: the run waits for the first one to end, goes on, and saves.
    wait_for(log, "nothing is lost")
    with watching(log, f"epoch {last_epoch(log) + 2},", lambda: os.kill(os.getpid(), signal.SIGINT)):
        assert unimetric(*command) == 130
    assert log.read_text().count("nothing is lost") == 2

    monkeypatch.setattr(subprocess, "Popen", InThisProcess)
    assert unimetric(*command) == 0
    assert log.read_text().count("Continuing") == 2
    assert read_json(out / "linear/all/seed-0/metrics.json")["training_steps"] == 160
    assert not read_json(out / "results.json")["notes"][-1].startswith("Failed")


def test_mistakes_exit_with_2(images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = matrix(tmp_path / "toy.yaml", {"x": {"model": {"method": "puma", "options": {"prompt": 1}}}})
    for arguments, words in (
        (("leave-one-uot",), "nor a packaged benchmark; did you mean 'leave-one-out'"),
        ((path, *images), "toy.yaml, x: unknown option 'prompt' of puma; did you mean 'prompts'"),
        ((path, tmp_path / "nowhere"), "nowhere"),
    ):
        assert unimetric("benchmark", *arguments, "--out", tmp_path / "out") == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_no_choice_without_all_of_its_runs(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {
        "linear": {**LINEAR, "choose": {"training.learning_rate": [1e-9, 1e-3]}},
        "other": {**LINEAR, "choose_like": "linear"},
    }
    monkeypatch.setattr(subprocess, "Popen", killed)
    assert unimetric("benchmark", matrix(tmp_path / "toy.yaml", entries), *images, "--out", tmp_path / "out") == 1
    said = " ".join(capsys.readouterr().err.split())
    why = "the choice waits for failed runs (learning_rate 1e-09; learning_rate 0.001): fix those, or take them out"
    assert f"failed: linear, seed 0: not started: {why}" in said
    assert f"failed: other, seed 0: not started: {why}" in said


def test_a_packaged_name_beside_a_file_of_that_name(
    images: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    local = matrix(tmp_path / "leave-one-out.yaml", {"only this": {"model": {"method": "frozen"}}})
    for name, entry, note in (("leave-one-out", "PUMA", True), (local.name, "only this", False)):
        assert unimetric("benchmark", name, *images, "--out", tmp_path / "out", "--dry_run") == 0
        said = capsys.readouterr()
        assert entry in said.out
        assert ("is the packaged benchmark" in said.err) is note
