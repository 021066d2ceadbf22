"""Ctrl-C and SIGTERM, handled between two steps instead of within one."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

_ALARM: signal.Signals | None = getattr(signal, "SIGALRM", None)  # Windows has none

GRACE = 2.0
"""Seconds that a wait for a batch may go on after a stop was requested."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was stopped, after saving; ``done`` is its progress in words, ``remedy`` the command to continue."""

    def __init__(self, done: str, remedy: str) -> None:
        super().__init__(f"{done}; {remedy}")
        self.done = done


@contextmanager
def sigterm_as_keyboard_interrupt() -> Iterator[None]:
    """While active, SIGTERM raises KeyboardInterrupt, as Ctrl-C does, instead of ending the process silently."""
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


class _EndWait(BaseException):
    """Raised by a signal handler to end a wait."""


class StopRequest:
    """While active, the first SIGINT or SIGTERM only sets `requested`; the second one interrupts at once.

    Args:
        alone: True if this process decides by itself; else all processes agree between two steps.
    """

    def __init__(self, alone: bool = True) -> None:
        self.requested = False
        self._alone, self._waiting = alone, False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested and not self._alone and isinstance(error, RuntimeError):
            # Another process was stopped first, and the connection to it is closed.
            raise KeyboardInterrupt from error

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """Batches until a stop is requested; a wait for the next one goes on for `GRACE` seconds at most.

        Raises:
            KeyboardInterrupt: it did, and the other processes wait for this one.
        """
        iterator = iter(loader)
        try:
            while not (self.requested and self._alone):
                self._waiting = True
                if self.requested:
                    self._limit_wait()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                finally:
                    self._waiting = False
                    if _ALARM in self._previous:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                yield batch
        except _EndWait:
            return

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._waiting:
            self._limit_wait()

    def _limit_wait(self) -> None:
        # An exception raised by a signal can leave the lock of a queue held, on which the end of the workers would wait
        # forever. Raise it only during a long wait, and again in case a destructor has swallowed it.
        if _ALARM is None:
            self._end_wait()
        else:
            self._previous.setdefault(_ALARM, signal.getsignal(_ALARM))
            signal.signal(_ALARM, self._end_wait)
            signal.setitimer(signal.ITIMER_REAL, GRACE, 1.0)

    def _end_wait(self, *_: object) -> None:
        if self._waiting:
            raise _EndWait if self._alone else KeyboardInterrupt
