"""Workers that cannot hand over a batch, die or hang end a run in seconds, with one line."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from forked import ForkedCommand
from toy_runs import options_file
from unimetric.data.workers import check_handover
from unimetric.errors import WorkerError

LIMIT = 120


def children(process: int) -> list[int]:
    """The processes that a process has started and that live, on Linux."""
    listed = Path(f"/proc/{process}/task/{process}/children")
    return [int(number) for number in listed.read_text().split()]


def wait_for_workers(run: Path, process: ForkedCommand) -> list[int]:
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline and process.poll() is None:
        if (run / "checkpoint.safetensors").exists() and (found := children(process.pid)):
            return found
        time.sleep(0.005)
    raise AssertionError(process.communicate())


def one_line(error: str) -> str:
    assert "Traceback" not in error, error
    (line,) = [line for line in error.splitlines() if line.startswith("unimetric: error:")]
    return line


def train(sources: list[Path], run: Path, options: Path, **environment: str) -> ForkedCommand:
    command = ["train", *sources, "--out", run, "--config", options, "--data.workers", 2]
    return ForkedCommand(command, run.with_name("log"), environment={**os.environ, "COLUMNS": "500", **environment})


def test_a_temporary_folder_whose_name_is_too_long_for_a_socket(sources: list[Path], tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 130)
    deep.mkdir()
    run, options = tmp_path / "run", options_file(tmp_path / "options.yaml")
    process = train(sources, run, options, TMPDIR=str(deep))
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 1
    line = one_line(error)
    assert "TMPDIR" in line
    assert "--data.workers 0" in line
    assert not run.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="asks for free memory that processes share on Linux only")
def test_batches_larger_than_the_shared_memory_are_refused() -> None:
    check_handover(10**15, workers=0)
    check_handover(1, workers=1)
    with pytest.raises(WorkerError, match=r"/dev/shm has .* free for 3 batches .*--data.workers 0 .*--shm-size"):
        check_handover(10**15, workers=1)


@pytest.mark.soak
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a small /dev/shm")
def test_too_little_shared_memory(sources: list[Path], tmp_path: Path) -> None:
    run, options = tmp_path / "run", options_file(tmp_path / "options.yaml", training={"batch_size": 32})
    train = [sys.executable, "-m", "unimetric", "train", *sources, "--out", run, "--config", options]
    mount = 'mount -t tmpfs -o size=300k tmpfs /dev/shm && exec "$0" "$@"'
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-m", "bash", "-c", "true"], check=False).returncode
    ):
        pytest.skip("no mount namespaces here")
    command = ["unshare", "-m", "bash", "-c", mount, *map(str, train), "--data.workers", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    assert done.returncode == 1, done.stderr
    line = one_line(done.stderr)
    assert "/dev/shm" in line
    assert "--data.workers 0" in line
    assert "--shm-size" in line
    assert not run.exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_worker_that_is_killed_ends_the_run(sources: list[Path], tmp_path: Path) -> None:
    run, options = tmp_path / "run", options_file(tmp_path / "options.yaml", training={"epochs": 1000})
    process = train(sources, run, options)
    os.kill(wait_for_workers(run, process)[0], signal.SIGKILL)
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 1, error
    line = one_line(error)
    assert "a worker that decodes images was killed by SIGKILL, perhaps for lack of memory" in line
    assert f"unimetric train --resume {run}" in line


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)])
def test_a_signal_ends_the_wait_for_a_worker_that_hangs(
    number: signal.Signals, sources: list[Path], tmp_path: Path
) -> None:
    run, options = tmp_path / "run", options_file(tmp_path / "options.yaml", training={"epochs": 1000})
    process = train(sources, run, options)
    workers = wait_for_workers(run, process)
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    process.send_signal(number)
    _, error = process.communicate(timeout=LIMIT)
    assert process.returncode == 130, error
    assert "nothing is lost; continue with: unimetric train --resume" in error.splitlines()[-1]
    assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
