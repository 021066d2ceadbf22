"""Ctrl-C and a cluster's SIGTERM, taken between two steps instead of within one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupted(Exception):  # noqa: N818 - it is news, not an error
    """The run was asked to stop, and was saved.

    Args:
        done: How far it came.
        remedy: How to go on.
    """

    def __init__(self, done: str, remedy: str) -> None:
        super().__init__(f"{done}; {remedy}")
        self.done = done


@contextmanager
def sigterm_like_ctrl_c() -> Iterator[None]:
    """While active, SIGTERM raises KeyboardInterrupt, as Ctrl-C does, instead of ending the process without a word."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class StopRequest:
    """While active, the first SIGINT or SIGTERM only sets `requested`; the second one interrupts at once."""

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
