"""Summaries of the metadata columns of a database: ranges and choices, from which a page builds conditions."""

from dataclasses import dataclass

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


def column_summaries(store: Store) -> list[ColumnSummary]:
    """Return a summary of every metadata column that a condition may name, in the order of the columns."""
    return [_summary(store, name, kind) for name, kind in store.metadata_columns.items() if kind in KINDS]


def _summary(store: Store, name: str, kind: str) -> ColumnSummary:
    # One column at a time, so that a wide table is never in memory as a whole.
    values = store.rows([name])[name]
    present = pc.drop_null(values)
    distinct = pc.count_distinct(present).as_py()
    counted = pc.value_counts(present).to_pylist() if distinct <= MOST_CHOICES else []
    values_shown = shown_values(entry["values"] for entry in counted)
    choices = zip(values_shown, (entry["counts"] for entry in counted), strict=True)
    low = high = None
    if kind in ("number", "date", "time") and len(present):
        ends = pc.min_max(present).as_py()
        low, high = shown_values([ends["min"], ends["max"]])
    ordered = tuple(sorted(choices, key=lambda choice: (-choice[1], str(choice[0]))))
    return ColumnSummary(name, kind, distinct, len(values) - len(present), ordered, low, high)
