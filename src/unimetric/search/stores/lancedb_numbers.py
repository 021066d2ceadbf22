"""Row numbers of a LanceDB table, its row ids: rows in the order in which they were written."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unimetric.search.conditions import Condition
from unimetric.search.stores.lancedb_sql import to_sql
from unimetric.search.stores.lancedb_versions import Followed

_NUMBER = "_rowid"

_FRAGMENT = 32
"""A row's number is that of its fragment, and in these lowest bits its place there."""

_GAPS = 64
"""Gaps between fragments that are counted; with more, all numbers are read."""


class RowNumbers:
    """The rows of a database in the order in which they were written.

    A row keeps its number and its content until it is deleted. A row that is replaced gets a new number, higher than
    all that there were. Compaction gives rows new numbers, above all that there were when it began; those of rows that
    were written meanwhile may be higher still, see `has_moved`.
    """

    def __init__(self, items: Followed) -> None:
        self._items = items

    @property
    def version(self) -> int:
        """The version that is read now, `Store.version`."""
        return self._items.version

    def count(self, through: int) -> int:
        """Return the number of rows whose number is ``through`` or lower."""
        if through < 0:
            return 0
        return self._items.read(lambda table: int(table.count_rows(f"{_NUMBER} <= {through}")))

    def select(self, where: Condition | None = None, above: int = -1, through: int | None = None) -> NDArray[np.int64]:
        """Return the numbers, ascending, of the rows that meet a condition, within bounds."""
        if through is not None and through < 0:
            return np.empty(0, np.int64)
        parts = [] if where is None else [f"({to_sql(where)})"]
        parts.append(f"{_NUMBER} > {above}" if above >= 0 else f"{_NUMBER} >= 0")
        if through is not None:
            parts.append(f"{_NUMBER} <= {through}")

        def read(table: Any) -> pa.Table:
            return table.search().select([_NUMBER]).where(" AND ".join(parts)).limit(None).to_arrow()

        found = self._items.read(read)[_NUMBER].to_numpy().astype(np.int64)
        found.sort()
        return np.asarray(found)

    def has_moved(self, *known: NDArray[np.int64]) -> bool:
        """Return True if a compaction gave rows numbers below the highest of those that were ``known`` before it.

        These are of all rows at an earlier version, best ascending; -1 for none.
        """
        # A compaction reserves the numbers of its fragments before it writes them, and commits them afterwards: other
        # processes may have added fragments with higher numbers meanwhile.
        fragments = _fragments(known)
        before = np.concatenate([[-1], fragments[:-1]])
        gaps = np.flatnonzero(fragments - before > 1)
        if len(gaps) > _GAPS:
            present = _fragments([self.select(through=int(fragments[-1] + 1) << _FRAGMENT)])
            return bool(np.setdiff1d(present[present <= fragments[-1]], fragments).size)
        spans = [((before[gap] + 1) << _FRAGMENT, fragments[gap] << _FRAGMENT) for gap in gaps]
        where = " OR ".join(f"({_NUMBER} >= {start} AND {_NUMBER} < {end})" for start, end in spans)
        return bool(where) and self._items.read(lambda table: int(table.count_rows(where))) > 0

    def blocks(self, columns: Sequence[str], above: int = -1) -> list[tuple[NDArray[np.int64], pa.Table]]:
        """Return the rows above a number, a bounded number of rows at a time: their numbers and some columns."""

        def read(table: Any) -> list[pa.RecordBatch]:
            query = table.search().with_row_id(True).select(list(columns)).limit(None)
            return list((query.where(f"{_NUMBER} > {above}") if above >= 0 else query).to_batches())

        tables = [pa.Table.from_batches([batch]) for batch in self._items.read(read)]
        return [(table[_NUMBER].to_numpy().astype(np.int64), table.select(list(columns))) for table in tables]

    @property
    def identity(self) -> str:
        """A text that no other content of any database has: the version and the moment it was written."""
        version = self.version  # first, so that the list is of this version or a later one
        return self._identities()[version]

    def came_from(self, identity: str) -> bool:
        """Return True if the rows had that identity some time ago, and were changed since; False if that is unknown."""
        return identity in self._identities().values()

    def _identities(self) -> dict[int, str]:
        """Return the identities of the versions that the table still has."""
        versions = self._items.read(lambda table: table.list_versions())
        return {entry["version"]: f"{entry['version']} {entry['timestamp'].isoformat()}" for entry in versions}


def _fragments(numbers: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the fragments of rows, ascending."""
    found = [np.empty(0, np.int64)]
    for some in numbers:
        of_row = some >> _FRAGMENT
        found.append(of_row[np.flatnonzero(np.diff(of_row, prepend=-1))])
    fragments = np.unique(np.concatenate(found))
    return fragments[fragments >= 0]
