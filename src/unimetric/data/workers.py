"""Processes that decode training images: checked before they start, noticed when they die, killed at the end."""

import atexit
import multiprocessing
import multiprocessing.queues
import os
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from multiprocessing.connection import Listener, wait
from pathlib import Path
from typing import Any, Generic, TypeVar, cast

import torch
from torch.utils.data import DataLoader

from unimetric.errors import ProcessLost, WorkerError, cause

T_co = TypeVar("T_co", covariant=True)

PREFETCH = 2
"""Batches that each worker prepares ahead of the training."""

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - where Linux keeps memory that processes share
_GRACE = 1.0
"""Seconds to wait for the end of a worker."""


def check_handover(batch_bytes: int, workers: int, processes: int = 1) -> None:
    """Check that workers can hand over batches: through a socket in ``TMPDIR`` and shared memory.

    Each of the training processes on this machine has so many ``workers``; 0 needs nothing.

    Raises:
        WorkerError: a socket cannot be made, or the free shared memory does not hold all batches under way.
    """
    if not workers or sys.platform == "win32":
        return
    try:
        with Listener(family="AF_UNIX"):
            pass
    except OSError as error:
        raise WorkerError(
            f"--data.workers is {workers}, but worker processes cannot open a socket in TMPDIR "
            f"({tempfile.gettempdir()}: {cause(error)}): set TMPDIR to a short path that can be written, for example "
            "/tmp, or use --data.workers 0"  # noqa: S108 - advice
        ) from error
    if sys.platform != "linux":
        return
    try:
        if not os.access(SHARED_MEMORY, os.W_OK):
            raise PermissionError("it cannot be written")
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        raise WorkerError(
            f"--data.workers is {workers}, but {SHARED_MEMORY} cannot be used ({cause(error)}): mount it, or use "
            "--data.workers 0"
        ) from error
    under_way = processes * (PREFETCH * workers + 1)
    if free < under_way * batch_bytes:
        raise WorkerError(
            f"--data.workers is {workers}, but {SHARED_MEMORY} has {free / 1e6:.3g} MB free for {under_way} batches of "
            f"{batch_bytes / 1e6:.3g} MB: use --data.workers 0 or fewer, a smaller --training.batch_size, or give the "
            "container more shared memory (docker run --shm-size)"
        )


class WorkerLoader(Generic[T_co]):
    """The batches of a `DataLoader`; in a ``with`` block, at whose end its workers are killed.

    Raises:
        ProcessLost: on leaving the block: an error came from a worker that died.
    """

    def __init__(self, loader: DataLoader[T_co]) -> None:
        self._loader = loader
        self.num_workers = loader.num_workers

    def __iter__(self) -> Iterator[T_co]:
        yield from self._start() if self._loader._iterator is None else self._loader

    def _start(self) -> Iterator[T_co]:
        # Forked workers begin with the signals held back, until `start_worker` has set what they do.
        with _held_back() if multiprocessing.get_start_method() == "fork" else nullcontext():
            iterator: Any = iter(self._loader)
        if self.num_workers:
            # A killed worker may hold the lock of the event by which torch ends workers. It is kept for those that are
            # still starting.
            self._ended, iterator._workers_done_event = iterator._workers_done_event, threading.Event()
            # Registered after multiprocessing's and torch's own, and so called before they wait for the workers.
            atexit.register(self.close)
        return cast("Iterator[T_co]", iterator)

    def __enter__(self) -> "WorkerLoader[T_co]":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        # A worker that dies while it hands over a batch cuts the connection a moment before its end is known.
        lost = isinstance(error, (RuntimeError, ConnectionError, EOFError))
        if lost:
            wait([worker.sentinel for worker in self._workers()], _GRACE)
        dead = [worker.exitcode for worker in self._workers() if worker.exitcode]
        self.close()
        if dead and lost:
            raise ProcessLost(f"a worker that decodes images {describe_end(dead[0])}") from error

    def close(self) -> None:
        """Kill the workers, which have nothing to lose and may hang."""
        atexit.unregister(self.close)
        workers, iterator = self._workers(), cast("Any", self._loader._iterator)
        if workers:
            # Otherwise torch reports the death of each.
            torch._C._remove_worker_pids(id(iterator))
            iterator._worker_pids_set = False
        for worker in workers:
            worker.kill()
        for worker in workers:
            worker.join(_GRACE)
        self._loader._iterator = None

    def _workers(self) -> list[multiprocessing.Process]:
        return list(getattr(self._loader._iterator, "_workers", []))


@contextmanager
def _held_back() -> Iterator[None]:
    """While active, this thread and the processes that it forks are sent no SIGINT, SIGTERM and SIGALRM."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGALRM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_worker(number: int) -> None:
    """Prepare a worker process, of any number: signals are the main process's, and failures end it."""
    # Ctrl-C, and a cluster's SIGTERM, reach every process; the main one decides, after the step it is in.
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))
    # By default a batch that cannot be sent is lost, and the main process waits for it for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)  # type: ignore[attr-defined]
    torch.set_num_threads(1)


def describe_end(code: int) -> str:
    """The end of a process in words, from an exit code that is negative for a signal.

    >>> describe_end(-9)
    'was killed by SIGKILL, perhaps for lack of memory'
    """
    if code > 0:
        return f"ended with exit code {code}"
    name = str(-code)
    with suppress(ValueError):  # a real-time signal has no name
        name = signal.Signals(-code).name
    return f"was killed by {name}{', perhaps for lack of memory' if name == 'SIGKILL' else ''}"


def _end_worker(error: BaseException, batch: Any) -> None:
    print(  # noqa: T201
        f"unimetric: a worker cannot hand over a batch ({cause(error)}): free space in {SHARED_MEMORY} or give the "
        "container more (docker run --shm-size), or use --data.workers 0",
        file=sys.stderr,
        flush=True,
    )
    os._exit(1)
