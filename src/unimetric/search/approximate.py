"""Which approximate index a number of rows calls for, and how it is made."""

from __future__ import annotations

from typing import Any

from unimetric.errors import UserError, nearest_names
from unimetric.search.effort import partitions
from unimetric.search.store import Store, lancedb

EXACT_BELOW = 50_000
"""With fewer rows, every query is compared with all of them."""

KINDS = ("auto", "ivf-pq", "hnsw", "none")
"""What an index may be called; ``auto`` is what the number of rows calls for."""

_FEWEST = 256
"""Rows that an index is trained on, at least."""


def kind_for(rows: int) -> str:
    """The index that a number of rows calls for.

    >>> kind_for(49_999), kind_for(1_000_000)
    ('none', 'ivf-pq')
    """
    return "none" if rows < EXACT_BELOW else "ivf-pq"


def checked_kind(kind: str, rows: int) -> str:
    """``kind`` with ``auto`` decided.

    Raises:
        UserError: an unknown kind, or too few rows for it.
    """
    if kind not in KINDS:
        raise UserError(f"the index is {kind!r}; {nearest_names(kind, KINDS)}")
    chosen = kind_for(rows) if kind == "auto" else kind
    if chosen != "none" and rows < _FEWEST:
        raise UserError(f"an index of kind {chosen} needs {_FEWEST} rows, the database has {rows}; use none")
    return chosen


def make(store: Store, kind: str, rows: int) -> None:
    """Make the vectors' index anew, and with it those of ids and datasets."""
    lancedb()
    from lancedb.index import Bitmap, BTree, HnswSq, IvfPq

    size = store.vector_size
    parts = partitions(kind, rows)
    config: Any
    if kind == "hnsw":
        config = HnswSq(distance_type="cosine", num_partitions=parts, m=16, ef_construction=150)
    else:
        pieces = next(size // width for width in (8, 4, 2, 1) if size % width == 0)
        # A fraction of the usual training, which takes minutes; what it loses, comparing full vectors brings back.
        config = IvfPq(
            distance_type="cosine", num_partitions=parts, num_sub_vectors=pieces, max_iterations=10, sample_rate=32
        )
    store.make_index("vector", config)
    store.make_index("id", BTree())
    store.make_index("dataset", Bitmap())
