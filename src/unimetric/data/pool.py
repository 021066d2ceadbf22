"""Work in threads that an interrupted program does not wait for."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")

_GRACE = 3.0
"""Seconds to wait for running work whose result is no longer needed."""
_PAUSE = 1.0
"""Seconds between two looks at signals."""


def in_order(work: Callable[[T], R], tasks: Iterable[T], *, threads: int, ahead: int) -> Iterator[R]:
    """Do work in threads, and yield its results in the order of the tasks; its errors are raised here.

    Tasks are taken in the caller's thread, as they are needed; ``ahead`` of them, at least 1, are begun before their
    results are needed. Where the caller stops early or is interrupted, waiting work is dropped, and work that has begun
    gets 3 seconds to end. The threads of `concurrent.futures` would keep the process until a hanging file system
    answers.
    """
    jobs: SimpleQueue[tuple[Future[R], T] | None] = SimpleQueue()

    def run() -> None:
        while (job := jobs.get()) is not None:
            future, task = job
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work(task))
                except BaseException as error:
                    future.set_exception(error)
            # Release the last image of an idle thread.
            del job, future, task

    running = [Thread(target=run, name="pool", daemon=True) for _ in range(threads)]
    for thread in running:
        thread.start()
    source, window = iter(tasks), deque[Future[R]]()
    try:
        while True:
            for task in islice(source, ahead - len(window)):
                window.append(Future())
                jobs.put((window[-1], task))
            if not window:
                return
            while not window[0].done():
                # A signal that comes right before the wait is handled only after it.
                wait((window[0],), timeout=_PAUSE)
            yield window.popleft().result()
    finally:
        for future in window:
            future.cancel()
        for _ in running:
            jobs.put(None)
        deadline = time.monotonic() + _GRACE
        for thread in running:
            thread.join(max(0.0, deadline - time.monotonic()))
