"""When one of several processes dies, is killed or cannot go on, all end, it is said once, and the run can go on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forked import ForkedCommand, forked_ranks
from toy_runs import options_file, start

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


def others_of(process: subprocess.Popen[str]) -> list[int]:
    """Process ids that a training process has started, by rank."""
    return [int(number) for number in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]


def wait_until(condition: Callable[[], bool], process: ForkedCommand | subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while not condition() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.poll() is None, process.communicate()


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the other processes by /proc")
@pytest.mark.parametrize("killed", ["first", "second"])
def test_a_killed_process_ends_the_run_which_goes_on_with_another_number(
    killed: str, sources: list[Path], tmp_path: Path
) -> None:
    # Long enough not to end before it is killed.
    options = options_file(tmp_path / "options.yaml", training={"epochs": 500})
    run = tmp_path / "run"
    process = start("train", *sources, "--out", run, "--config", options, "--device.processes", 2)
    wait_until((run / "checkpoint.safetensors").exists, process)
    (other,) = others_of(process)
    os.kill(process.pid if killed == "first" else other, signal.SIGKILL)
    moment = time.monotonic()
    # The pipe ends when the last process that holds it has ended.
    _, error = process.communicate(timeout=LIMIT)
    assert time.monotonic() - moment < LIMIT
    assert process.returncode == (-signal.SIGKILL if killed == "first" else 1)
    said = [line for line in error.splitlines() if line.startswith("unimetric: error")]
    words = "process 2 of 2 was killed by SIGKILL" if killed == "second" else "the first of 2 processes is gone"
    assert len(said) == 1, error
    assert words in said[0]
    assert f"continue with: unimetric train --resume {run}" in said[0]
    assert "Traceback" not in error
    if killed == "second":
        # Where it stopped is not known: it ends soon after.
        stop = ForkedCommand(["train", "--resume", run, "--device.processes", 1], tmp_path / "log")
        time_of_checkpoint = (run / "checkpoint.safetensors").stat().st_mtime_ns
        wait_until(lambda: (run / "checkpoint.safetensors").stat().st_mtime_ns > time_of_checkpoint, stop)
        stop.send_signal(signal.SIGTERM)
        _, error = stop.communicate(timeout=LIMIT)
        assert stop.returncode == 130, error
        assert f"Continuing {run} after step" in error


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
