"""The version of a LanceDB table that a process reads: the same for all reads, and never an earlier one again."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from unimetric.search.stores.lancedb_tables import explained, refresh_seconds

T = TypeVar("T")

_ATTEMPTS = 20


class Followed:
    """A table that is moved to newer versions.

    LanceDB would move each handle by a clock of its own, so that a read could be answered by an earlier version than
    the read before it. So the table is of a connection without an interval, and stays at a version until it is moved.
    """

    def __init__(self, place: str, table: Any) -> None:
        self._place = place
        self._table = table
        self._looking = threading.Lock()
        self._looked = time.monotonic()
        self._counting = threading.Lock()
        self._moving = 0
        self._moves = 0
        self._known: int | None = None

    @property
    def table(self) -> Any:
        """LanceDB's table, at a version that was the newest a moment ago."""
        if self._is_due():
            with self._looking:
                # Another thread may have checked meanwhile.
                if self._is_due():
                    self.refresh()
        return self._table

    @property
    def version(self) -> int:
        """The version of the table."""
        with explained(self._place, "read"):
            table, known, moves = self.table, self._known, self._moves
            if known is None:
                known = int(table.version)
                with self._counting:
                    if not self._moving and self._moves == moves:
                        self._known = known
            return known

    def read(self, work: Callable[[Any], T]) -> T:
        """Return the result of ``work``, which reads the table; a version that was removed meanwhile is replaced once.

        A compaction removes versions older than an hour, also one that was the newest until then. A table that cannot
        be read is a `DatabaseError`.
        """
        with explained(self._place, "read"):
            version = self.version
            try:
                return work(self._table)
            except Exception:
                self.refresh()
                if self.version == version:
                    raise
                return work(self._table)

    def commit(self, work: Callable[[], T]) -> T:
        """Return the result of ``work``, a change in one commit, or in several of which each may be made again.

        LanceDB writes optimistically: a commit that another process preempted, as in object storage, where no lock is,
        is refused, or repeated by LanceDB itself where it can. What it refuses is repeated here.
        """
        for _ in range(_ATTEMPTS):
            before = self._table.version
            try:
                return work()
            except Exception:
                self._table.checkout_latest()
                if self._table.version == before:
                    raise
        return work()

    def refresh(self) -> None:
        """Look for commits of other processes now."""
        start = time.monotonic()
        with self.moving():
            self._table.checkout_latest()
        self._looked = start

    @contextmanager
    def moving(self) -> Iterator[None]:
        """Enclose whatever may move the table."""
        self._count(1)
        try:
            yield
        finally:
            self._count(-1)

    def _count(self, step: int) -> None:
        with self._counting:
            self._moving, self._moves, self._known = self._moving + step, self._moves + 1, None

    def _is_due(self) -> bool:
        return time.monotonic() - self._looked >= refresh_seconds()
