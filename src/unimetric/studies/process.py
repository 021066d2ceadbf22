"""A run's command as a process of its own, which never outlives the benchmark that started it."""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

from unimetric.files import explain_os_error


class Stopped(Exception):  # noqa: N818 - it is news, not an error
    """The benchmark was asked to stop, and the run under way has saved what it has."""


class Commands:
    """Runs one command at a time; while active, Ctrl-C and SIGTERM are passed on to it.

    Args:
        lock: A file descriptor that every command holds open.
    """

    def __init__(self, lock: int) -> None:
        self._lock = lock
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self.stopping = False

    def __enter__(self) -> Commands:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """Run ``unimetric ARGUMENTS``, what it says appended to a log; returns its exit code.

        Raises:
            Stopped: a signal came; the command has ended.
        """
        self._refuse_to_go_on()
        with explain_os_error(log, "write"), log.open("ab") as file:
            file.write(f"$ {command_line(arguments)}\n".encode())
            file.flush()
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "unimetric", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
                **_tied_to_this_process(self._lock),
            )
        self._pass_on()  # what came between the check above and the start
        code = self._process.wait()
        self._process = None
        self._refuse_to_go_on()
        return code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self.stopping = True
        self._pass_on()

    def _pass_on(self) -> None:
        # It is a process group of its own, so that a Ctrl-C comes once, from here: a second one would not let it save.
        if self.stopping and self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _refuse_to_go_on(self) -> None:
        if self.stopping:
            raise Stopped


def command_line(arguments: Sequence[str]) -> str:
    """What to type for the same."""
    return shlex.join(["unimetric", *arguments])


def _tied_to_this_process(lock: int) -> dict[str, Any]:
    """Popen's arguments for a child in a group of its own that is told to save and end when this process dies."""
    tied: dict[str, Any] = {"start_new_session": True, "pass_fds": (lock,)}
    if sys.platform == "linux":
        tied["preexec_fn"] = _death_signal(os.getpid())
    return tied


def _death_signal(parent: int) -> Callable[[], None]:
    """What the child calls before it becomes the command: Linux sends it SIGTERM at its parent's death."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        set_parent_death_signal = 1
        libc.prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare
