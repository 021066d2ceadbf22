"""Ctrl-C and SIGTERM at real processes with workers: saved, told how to go on, exit code 130."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest
from safetensors import safe_open
from torch.nn.modules.module import register_module_forward_pre_hook

from forked import ForkedCommand
from toy_runs import assert_same_run, at_step, interrupt, options_file, removed, unimetric


@pytest.mark.parametrize(
    ("number", "everybody"),
    [
        pytest.param(signal.SIGINT, True, id="ctrl-c"),
        pytest.param(signal.SIGTERM, True, id="sigterm to the group", marks=pytest.mark.soak),
        pytest.param(signal.SIGTERM, False, id="sigterm to the process"),
    ],
)
def test_a_signal_leaves_a_run_that_goes_on(
    number: signal.Signals, everybody: bool, sources: list[Path], tmp_path: Path
) -> None:
    options = options_file(tmp_path / "options.yaml", training={"epochs": 10})
    run = tmp_path / "my run"
    command = ["train", *sources, "--out", run, "--config", options, "--data.workers", 2]
    process = ForkedCommand(command, tmp_path / "log", environment={**os.environ, "COLUMNS": "500"})
    deadline = time.monotonic() + 120
    while not (run / "checkpoint.safetensors").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    if everybody:
        os.killpg(process.pid, number)  # as a terminal and a batch system do: the workers get it too
    else:
        process.send_signal(number)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130, error
    last = error.strip().splitlines()[-1]
    match = re.fullmatch(
        r"unimetric: stopped after step (\d+) of 40, nothing is lost; continue with: (unimetric train --resume .*)",
        last,
    )
    assert match, error
    assert match[2] == f"unimetric train --resume '{run}'"
    assert "Traceback" not in error
    with safe_open(run / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["progress"])["step"] == int(match[1])
    if number == signal.SIGINT:
        assert unimetric("train", "--resume", run, "--data.workers", 0) == 0
        expected = tmp_path / "expected"
        assert unimetric("train", *sources, "--out", expected, "--config", options) == 0
        assert_same_run(expected, run)


def test_sigterm_before_the_first_step_leaves_a_run_that_goes_on(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = options_file(tmp_path / "options.yaml", training={"epochs": 1, "start": "discriminant"})
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    def interrupted(*arguments: object) -> None:
        """Before the first images are embedded, on which the head starts."""
        signal.raise_signal(signal.SIGTERM)
        raise AssertionError("went on")

    with removed(register_module_forward_pre_hook(interrupted)):
        assert unimetric("train", *sources, "--out", run, "--config", options) == 130
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last == f"unimetric: stopped; continue with: unimetric train --resume {run}"
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert unimetric("train", "--resume", run) == 0
    assert unimetric("train", *sources, "--out", tmp_path / "expected", "--config", options) == 0
    assert_same_run(tmp_path / "expected", run)


def test_a_second_ctrl_c_stops_at_once(sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    went_on: list[bool] = []

    def twice() -> None:
        interrupt()
        interrupt()
        went_on.append(True)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    options = options_file(tmp_path / "options.yaml")
    with at_step(6, twice):
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 130
    assert not went_on
    assert f"continue with: unimetric train --resume {tmp_path / 'run'}" in capsys.readouterr().err
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
