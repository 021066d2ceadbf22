"""One benchmark at a time in a folder; the system lets go of the lock when the last process that holds it ends."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimetric.errors import UserError
from unimetric.files import explain_os_error

_PATIENCE = 60.0


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder's lock; the value is its file descriptor, for a child that shall hold it as well.

    A run that was left behind by a killed benchmark is saving what it has: it is waited for, up to a minute.

    Raises:
        UserError: another benchmark is running in the folder.
    """
    if sys.platform == "win32":
        raise UserError("unimetric benchmark needs Linux or macOS: on Windows, run it in the subsystem for Linux")
    path = folder / ".lock"
    with explain_os_error(path, "open"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        deadline = time.monotonic() + _PATIENCE
        while not _try_lock(handle):
            owner = _owner(handle)
            if _is_alive(owner) or time.monotonic() > deadline:
                raise UserError(
                    f"{folder}: another benchmark is running there (process {owner}): wait for it, stop it, or choose "
                    "another --out"
                )
            time.sleep(0.2)
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield handle
    finally:
        os.close(handle)


def _owner(handle: int) -> int | None:
    text = os.pread(handle, 32, 0)
    return int(text) if text.isdigit() else None


def _is_alive(process: int | None) -> bool:
    if process is None:
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _try_lock(handle: int) -> bool:
    import fcntl  # not on Windows

    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
