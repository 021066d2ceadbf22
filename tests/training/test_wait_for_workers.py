"""A signal, or the death of a worker, leaves no lock behind on which the end of a run waits for ever."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from forked import ForkedCommand
from toy_runs import make_images

SCRIPT = """
import multiprocessing.synchronize, os, signal, sys, threading
multiprocessing.set_start_method("fork", force=True)
from pathlib import Path
sys.path.insert(0, {folder!r})
from test_loading import items_in, loader
from unimetric.errors import ProcessLost
from unimetric.training.interrupt import StopRequest

{before}
batches = 0
with StopRequest() as stop, loader(items_in(Path(sys.argv[1])), workers=2) as loading:
    for batch in stop.batches(loading):
        batches += 1
        if stop.requested:
            break
print(batches, stop.requested, file=sys.stderr)
"""

KILLED_WITH_TORCH_S_LOCK = """
def killed(event):
    event._cond.acquire()
    os.kill(os.getpid(), signal.SIGKILL)

multiprocessing.synchronize.Event.is_set = killed  # only workers look
"""

STOPPED_WITH_A_QUEUE_S_LOCK = """
enter, stopped = threading.Condition.__enter__, []

def enter_and_stop(condition):
    taken = enter(condition)
    if sys._getframe(1).f_code.co_name == "put" and not stopped:
        stopped.append(True)
        signal.raise_signal(signal.SIGTERM)
    return taken

threading.Condition.__enter__ = enter_and_stop
"""

FULL_SHARED_MEMORY = """
import torch

def full(storage):
    raise RuntimeError("No space left on device")

torch.UntypedStorage._share_fd_cpu_ = torch.UntypedStorage._share_filename_cpu_ = full
"""

STOPPED_BEFORE_A_WORKER_HAS_BEGUN = """
os.register_at_fork(after_in_child=lambda: os.kill(os.getpid(), signal.SIGTERM))
"""


def run(before: str, folder: Path) -> tuple[int | None, str]:
    """Exit code and standard error of a process that goes through the three batches of an epoch."""
    images = make_images(folder / "a", classes=3, images=4)
    script = folder / "script.py"
    script.write_text(SCRIPT.format(before=before, folder=str(Path(__file__).parents[1] / "data")))
    process = ForkedCommand([images], folder / "log", script=str(script))
    _, error = process.communicate(timeout=120)
    return process.returncode, error


@pytest.mark.skipif(sys.platform == "win32", reason="kills")
def test_a_worker_that_is_killed_with_torch_s_lock_ends_the_run(tmp_path: Path) -> None:
    code, error = run(KILLED_WITH_TORCH_S_LOCK, tmp_path)
    assert code == 1
    assert error.rstrip().endswith(
        "ProcessLost: a worker that decodes images was killed by SIGKILL, perhaps for lack of memory"
    )


def test_a_batch_that_cannot_be_handed_over_ends_the_run(tmp_path: Path) -> None:
    code, error = run(FULL_SHARED_MEMORY, tmp_path)
    assert code == 1
    lines = error.splitlines()
    named = "unimetric: a worker cannot hand over a batch (No space left on device): free space in /dev/shm"
    assert any(line.startswith(named) and "--data.workers 0" in line for line in lines)
    assert lines[-1].endswith("ProcessLost: a worker that decodes images ended with exit code 1")


def test_a_signal_while_work_is_handed_over_ends_the_run(tmp_path: Path) -> None:
    assert run(STOPPED_WITH_A_QUEUE_S_LOCK, tmp_path) == (0, "1 True\n")


@pytest.mark.skipif(not hasattr(os, "register_at_fork"), reason="signals forked workers")
def test_a_signal_to_a_worker_that_has_not_begun_is_the_main_process_s(tmp_path: Path) -> None:
    assert run(STOPPED_BEFORE_A_WORKER_HAS_BEGUN, tmp_path) == (0, "3 False\n")
