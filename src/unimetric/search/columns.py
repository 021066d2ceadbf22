"""Summaries of the metadata columns of a database: ranges and choices, from which a page builds conditions."""

import threading
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from unimetric.data.sources.metadata import Value
from unimetric.search.rows import shown_values
from unimetric.search.stores.base import KINDS, Store

MOST_CHOICES = 50
"""Distinct values that a summary lists, at most."""


@dataclass(frozen=True)
class ColumnSummary:
    """Content of one metadata column.

    Attributes:
        name: Its name.
        kind: text, number, boolean, date or time.
        distinct: Number of distinct values.
        missing: Number of rows without a value.
        choices: Distinct values with their numbers of rows, the most frequent first; empty if there are more than
            `MOST_CHOICES`.
        low: The least value; None for texts and booleans, and for a column without values.
        high: The greatest value, likewise.
    """

    name: str
    kind: str
    distinct: int
    missing: int
    choices: tuple[tuple[Value, int], ...]
    low: Value
    high: Value


class Columns:
    """The summaries of a database, made again when it has changed; threads may share it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._summaries: tuple[int, list[ColumnSummary]] | None = None

    def summaries(self) -> list[ColumnSummary]:
        """Return a summary of every metadata column that a condition may name, in the order of the columns."""
        with self._lock:
            version = self._store.version
            if self._summaries is None or self._summaries[0] != version:
                kinds = {name: kind for name, kind in self._store.metadata_columns.items() if kind in KINDS}
                self._summaries = version, [self._summary(name, kind) for name, kind in kinds.items()]
            return self._summaries[1]

    def _summary(self, name: str, kind: str) -> ColumnSummary:
        # One column at a time, so that a wide table is never in memory as a whole.
        values = self._store.rows([name])[name]
        present = pc.drop_null(values)
        counted = _shown(pc.value_counts(present)) if pc.count_distinct(present).as_py() <= MOST_CHOICES else []
        ordered = sorted(counted, key=lambda entry: (-entry[1], str(entry[0])))
        low = high = None
        if kind in ("number", "date", "time") and len(present):
            ends = pc.min_max(present).as_py()
            low, high = shown_values([ends["min"], ends["max"]])
        return ColumnSummary(
            name, kind, pc.count_distinct(present).as_py(), len(values) - len(present), tuple(ordered), low, high
        )


def _shown(counted: pa.StructArray) -> list[tuple[Value, int]]:
    return list(
        zip(shown_values(counted.field("values").to_pylist()), counted.field("counts").to_pylist(), strict=True)
    )
