"""When one of several processes dies, is killed or cannot go on, all end, it is said once, and the run can go on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forked import ForkedCommand, forked_ranks
from toy_runs import options_file

LIMIT = 60  # seconds

SECOND_FAILS = """
import os, sys
import torch
from unimetric.cli import main
from unimetric.errors import WorkerError
from unimetric.training import loop

def fail(run, progress):
    raise WorkerError("no shared memory")

if os.environ["LOCAL_RANK"] == "1":
    loop.train_steps = fail
torch.set_num_threads(1)
sys.exit(main(sys.argv[1:]))
"""


def others_of(process: ForkedCommand) -> list[int]:
    """Process ids that a training process has started, by rank."""
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_until(condition: Callable[[], bool], process: ForkedCommand) -> None:
    deadline = time.monotonic() + 200
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the other process by /proc")
def test_a_killed_process_ends_the_run_which_goes_on_with_another_number(sources: list[Path], tmp_path: Path) -> None:
    options, run = long_run(tmp_path), tmp_path / "run"
    command = ["train", *sources, "--out", run, "--config", options, "--device.processes", 2]
    process = ForkedCommand(command, tmp_path / "log", environment={**os.environ, "COLUMNS": "500"})
    wait_until((run / "checkpoint.safetensors").exists, process)
    (other,) = others_of(process)
    os.kill(other, signal.SIGKILL)
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    check_loss(error, "process 2 of 2 was killed by SIGKILL", run)
    # Where it stopped is not known: it ends soon after.
    stop = ForkedCommand(["train", "--resume", run, "--device.processes", 1], tmp_path / "log-of-one")
    time_of_checkpoint = (run / "checkpoint.safetensors").stat().st_mtime_ns
    wait_until(lambda: (run / "checkpoint.safetensors").stat().st_mtime_ns > time_of_checkpoint, stop)
    stop.send_signal(signal.SIGTERM)
    _, error = stop.communicate(timeout=LIMIT)
    assert stop.returncode == 130, error
    assert f"Continuing {run} after step" in error


def test_the_other_process_ends_when_the_first_is_killed(sources: list[Path], tmp_path: Path) -> None:
    options, run = long_run(tmp_path), tmp_path / "run"
    command = ["train", *sources, "--out", run, "--config", options, "--device.processes", 2]
    with forked_ranks(command, tmp_path) as (first, second):
        wait_until((run / "checkpoint.safetensors").exists, first)
        first.kill()
        _, error = second.communicate(timeout=LIMIT)
    assert second.returncode == 1, error
    check_loss(error, "the first of 2 processes is gone", run)


def long_run(folder: Path) -> Path:
    """Options of a run that does not end before a process is killed."""
    return options_file(folder / "options.yaml", training={"epochs": 500})


def check_loss(error: str, words: str, run: Path) -> None:
    """It is said once, in words, with what to do."""
    (said,) = [line for line in error.splitlines() if line.startswith("unimetric: error")]
    assert words in said
    assert f"continue with: unimetric train --resume {run}" in said
    assert "Traceback" not in error


def test_a_bad_image_in_one_process_is_said_once_and_ends_all(sources: list[Path], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for source in sorted(sources[0].iterdir()):
        (images / source.name).symlink_to(source)
    (images / "c0").unlink()
    (images / "c0").mkdir()
    (images / "c0/0.png").write_bytes(b"no image")
    options = options_file(tmp_path / "options.yaml", data={"strict": True, "split": "train-only"})
    command = ["train", images, "--out", tmp_path / "run", "--config", options, "--device.processes", 2]
    with forked_ranks(command, tmp_path) as processes:
        error = "".join(process.communicate(timeout=200)[1] for process in processes)
    assert [process.returncode for process in processes] == [2, 2], error
    (said,) = [line for line in error.splitlines() if "error" in line]
    assert str(images / "c0/0.png") in said
    assert "--data.strict is set" in said
    assert not (tmp_path / "run").exists()


def test_workers_that_fail_in_one_process_end_all_with_exit_code_1(sources: list[Path], tmp_path: Path) -> None:
    script = tmp_path / "second_fails.py"
    script.write_text(SECOND_FAILS)
    options = options_file(tmp_path / "options.yaml", data={"split": "train-only"})
    command = ["train", *sources, "--out", tmp_path / "run", "--config", options, "--device.processes", 2]
    with forked_ranks(command, tmp_path, str(script)) as processes:
        error = "".join(process.communicate(timeout=200)[1] for process in processes)
    assert [process.returncode for process in processes] == [1, 1], error
    assert [line for line in error.splitlines() if "error" in line] == ["unimetric: error: no shared memory"]
