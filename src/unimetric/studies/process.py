"""The process of one run, which never outlives the benchmark that started it."""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from filelock import FileLock, Timeout

from unimetric.errors import UserError
from unimetric.files import explain_os_error

_LOCK = ".lock"


class Stopped(Exception):  # noqa: N818 - a request, not an error
    """The benchmark was asked to stop, and the current run has saved its state."""


class RunProcesses:
    """Runs one command at a time. Within the context, Ctrl-C and SIGTERM are passed on to the command.

    Raises:
        UserError: on entering, where another benchmark runs in the folder.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._lock = FileLock(out / _LOCK, timeout=0)
        self._process: subprocess.Popen[bytes] | None = None
        self._previous: dict[signal.Signals, Any] = {}
        self._stopping = False

    def __enter__(self) -> "RunProcesses":
        with explain_os_error(self._out / _LOCK, "open"):
            try:
                self._lock.acquire()
            except Timeout as error:
                raise UserError(
                    f"{self._out}: another benchmark is running there: wait for it, stop it, or choose another --out"
                ) from error
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._lock.release()

    def run(self, arguments: Sequence[str], log: Path) -> int:
        """Run ``unimetric ARGUMENTS``, its output appended to a log; return its exit code; `Stopped` after a signal."""
        self._check_stopped()
        with explain_os_error(log, "write"), log.open("ab") as file:
            file.write(f"$ {command_line(arguments)}\n".encode())
            file.flush()
            self._process = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "unimetric", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"},
                **_tied_to_this_process(),
            )
        self._pass_on()  # a signal between the check above and the start
        code = self._process.wait()
        self._process = None
        self._check_stopped()
        return code

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True
        self._pass_on()

    def _pass_on(self) -> None:
        # The command leads its own process group, so a Ctrl-C reaches it once, from here: a second one would interrupt
        # its saving.
        if self._stopping and self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def _check_stopped(self) -> None:
        if self._stopping:
            raise Stopped


def command_line(arguments: Sequence[str]) -> str:
    """The shell's line for a command, quoted."""
    return shlex.join(["unimetric", *arguments])


def _tied_to_this_process() -> dict[str, Any]:
    """Popen's arguments for a child in its own process group that saves and ends when this process dies."""
    tied: dict[str, Any] = {"start_new_session": True}
    if sys.platform == "linux":
        tied["preexec_fn"] = _request_death_signal(os.getpid())
    return tied


def _request_death_signal(parent: int) -> Callable[[], None]:
    """Return the child's setup function, which makes Linux send it SIGTERM when its parent dies."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        set_parent_death_signal = 1
        libc.prctl(set_parent_death_signal, signal.SIGTERM)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)

    return prepare
