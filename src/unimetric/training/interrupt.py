"""Ctrl-C and SIGTERM, handled between two steps instead of within one."""

import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")

GRACE = 3.0
"""Seconds that one of several processes may go on waiting for a batch after a stop was requested."""


class Interrupted(Exception):  # noqa: N818 - not an error
    """The run was stopped, after saving.

    Args:
        done: Progress, in words.
        remedy: The command that continues the run.
    """

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
    """Raised by a signal handler during a wait that may end at once."""


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
            if not self._alone:
                self._previous[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._on_signal)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self.requested and not self._alone and isinstance(error, RuntimeError):
            # Another process was stopped first, and the connection to it is closed.
            raise KeyboardInterrupt from error

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """Batches until a stop is requested while the next one is waited for, however long the wait would be.

        A process that is not alone gets `GRACE` seconds to finish its wait.

        Raises:
            KeyboardInterrupt: it did not, and the others wait for it.
        """
        iterator = iter(loader)
        try:
            while True:
                self._waiting = True
                if self.requested:
                    self._end_wait()
                try:
                    batch = next(iterator)
                except StopIteration:
                    return
                finally:
                    self._waiting = False
                    if not self._alone:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                yield batch
        except _EndWait:
            return

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
        if self._waiting:
            self._end_wait()

    def _end_wait(self) -> None:
        if self._alone:
            self._waiting = False
            raise _EndWait
        signal.setitimer(signal.ITIMER_REAL, GRACE)
