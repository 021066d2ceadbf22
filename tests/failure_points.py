"""Failure points: every write, flush, rename and removal of a process, of which one can be made to fail.

`install` counts them in this process, which is to be a forked child. Python's own come as audit events; LanceDB's,
which are made in Rust, are counted call by call. What a point can do:

- ``error``: the operation fails as on a full disk, before it has done anything
- ``short``: what is written next is cut off after some bytes, by the limit on the size of files, which holds for Rust
  and C++ as well
- ``kill``: SIGKILL before the operation
- ``torn``: cut off, and SIGKILL before the operation that follows, such as the removal of the temporary file
- ``after``: SIGKILL after a call of LanceDB, before anything else is done
"""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.truncate")
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_LANCE = ("create", "add", "merge", "delete", "drop", "optimize", "update")
_KINDS = {"open": ("error", "kill", "short", "torn"), "lancedb": ("error", "kill", "short", "torn", "after")}
_SHORT = {"error": 0, "short": 300, "torn": 300}
"""Bytes that a file gets: fewer than the smallest file of LanceDB that matters has, some files of Python have fewer."""


@dataclass(frozen=True)
class Point:
    """One operation: ``open``, ``fsync``, one of the audit events above, or ``lancedb``; and what it concerns."""

    operation: str
    place: str

    @property
    def kinds(self) -> tuple[str, ...]:
        return _KINDS.get(self.operation, ("error", "kill"))


@dataclass(frozen=True)
class Failure:
    """The failure of the point of a number, from 0; without a kind, all points are only listed in ``report``."""

    folder: str
    report: str
    number: int = -1
    kind: str = ""


def read_points(report: Path) -> list[Point]:
    return [Point(**values) for values in json.loads(report.read_text())]


def install(failure: Failure) -> Callable[[], None]:
    """Count the points below ``failure.folder`` from now on, and make one of them fail; return what lists them all."""
    points = _Points(failure)
    sys.addaudithook(points.heard)
    fsync = os.fsync

    def counted_fsync(handle: Any) -> None:
        descriptor = handle if isinstance(handle, int) else handle.fileno()
        points.reached("fsync", f"/proc/self/fd/{descriptor}")
        fsync(handle)

    os.fsync = counted_fsync
    from lancedb.background_loop import LOOP

    run = LOOP.run

    def counted_run(future: Any) -> Any:
        name = getattr(future, "__qualname__", "")
        if not any(word in name.rpartition(".")[2] for word in _LANCE):
            return run(future)
        is_this = points.reached("lancedb", name)
        try:
            return run(future)
        finally:
            if is_this:
                points.lancedb_returned()

    LOOP.run = counted_run
    return points.write if failure.number < 0 else lambda: None


class _Points:
    def __init__(self, failure: Failure) -> None:
        self._failure = failure
        self._root = os.path.realpath(failure.folder)
        self._lock = threading.RLock()
        self._points: list[Point] = []
        self._busy = False

    def heard(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            if isinstance(path, (str, bytes, os.PathLike)) and flags & _WRITES:
                self.reached("open", path)
        elif event in _CHANGES:
            handles = [value for value in arguments if isinstance(value, int) and value > 2]
            base = f"/proc/self/fd/{handles[-1]}" if handles and event in ("os.remove", "os.rmdir") else ""
            place = arguments[0]
            if isinstance(place, int):
                place = Path(f"/proc/self/fd/{place}").readlink()
            self.reached(event, os.path.join(base, os.fsdecode(place)))  # noqa: PTH118

    def reached(self, operation: str, place: Any) -> bool:
        """Count a point, and let it fail if it is its turn; returns True if it was."""
        with self._lock:
            if self._busy:
                return False
            self._busy = True
            try:
                place = str(place) if operation == "lancedb" else os.path.realpath(os.fsdecode(place))
                if operation != "lancedb" and not place.startswith(self._root + os.sep):
                    return False
                return self._counted(Point(operation, place))
            finally:
                self._busy = False

    def _counted(self, point: Point) -> bool:
        number = len(self._points)
        self._points.append(point)
        wanted, kind = self._failure.number, self._failure.kind
        if number > wanted >= 0:
            if kind == "torn":
                _kill()
            _limit(None)
        if number != wanted:
            return False
        self.write()
        if kind == "kill":
            _kill()
        if kind in ("short", "torn") or (kind == "error" and point.operation == "lancedb"):
            _limit(_SHORT[kind])
        elif kind == "error":
            code = errno.EIO if point.operation in ("os.remove", "os.rmdir") else errno.ENOSPC
            raise OSError(code, os.strerror(code), point.place)
        return True

    def lancedb_returned(self) -> None:
        if self._failure.kind in ("after", "torn"):
            _kill()
        _limit(None)

    def write(self) -> None:
        self._busy = True
        try:
            Path(self._failure.report).write_text(json.dumps([asdict(point) for point in self._points]))
        finally:
            self._busy = False


def _limit(size: int | None) -> None:
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard if size is None else size, hard))


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
