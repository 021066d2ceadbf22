"""Rows of a database in memory: numbers, vectors and columns."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unimetric.search.memory.cells import Cells, column_of
from unimetric.search.scoring import Vectors, vectors_of
from unimetric.search.stores.base import Store
from unimetric.search.stores.lancedb_numbers import RowNumbers

GONE = -1
"""The number of a place whose row was deleted."""

_SCREENED = (1e-15, 1e15)
"""The lengths of vectors whose cosines float32 computes well; others are always compared in float64."""


@dataclass(frozen=True, eq=False)
class Block:
    """Some rows, each at a place from 0.

    Attributes:
        numbers: The number of each row, int64 [N]; `GONE` for none.
        vectors: Float32 [N, E].
        inverse: One over the length of each vector, float32 [N]; infinite where float32 does not do.
        rows: The other columns; those of a file are `packed`.
        by_id: The places of the rows that are not `GONE`, ascending by id; None where ids are searched one by one.
    """

    numbers: NDArray[np.int64]
    vectors: Vectors
    inverse: NDArray[np.float32]
    rows: pa.RecordBatch
    by_id: NDArray[np.uint32] | None = None

    @classmethod
    def of(cls, numbers: NDArray[np.int64], vectors: Vectors, rows: pa.Table) -> Block:
        """Make a block of rows in memory."""
        return cls(numbers, vectors, inverse_lengths(vectors), one_batch(rows))

    def __len__(self) -> int:
        return len(self.numbers)

    @cached_property
    def last(self) -> int:
        """The highest number; `GONE` if there are no rows."""
        return int(self.numbers.max(initial=GONE))

    @cached_property
    def odd_places(self) -> NDArray[np.intp]:
        """The places of vectors that float32 cannot screen."""
        return np.flatnonzero(np.isinf(self.inverse))

    def places(self, numbers: NDArray[np.int64]) -> NDArray[np.intp]:
        """Return the places of those of some numbers that are here."""
        ascending, order = self._ascending
        if not len(ascending):
            return np.empty(0, np.intp)
        found = np.searchsorted(ascending, numbers).clip(max=len(ascending) - 1)
        found = found[ascending[found] == numbers]
        return np.asarray(found if order is None else order[found])

    def mask(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which places hold rows of these numbers, [N]."""
        mask = np.zeros(len(self), np.bool_)
        mask[self.places(numbers)] = True
        return mask

    def place_of(self, id: str) -> int | None:
        """Return the place of the row of an id; None if there is none."""
        if self.by_id is None:
            place = pc.index(self.rows.column("id"), id).as_py() if len(self) else -1
            return None if place < 0 else int(place)
        at = bisect_left(self.by_id, id, key=self._id_at)
        found = at < len(self.by_id) and self._id_at(self.by_id[at]) == id
        return int(self.by_id[at]) if found else None

    def _id_at(self, place: np.uint32) -> str:
        return str(self.values(np.array([place], np.intp), ["id"])["id"][0])

    def values(self, places: NDArray[np.intp], columns: Sequence[str]) -> dict[str, list[Any]]:
        """Return the values of rows by column; None for columns that were added to the database later."""
        return self._cells.values(places, columns)

    def taken(self, places: NDArray[np.intp]) -> Block:
        """Return the rows of some places, in their order."""
        rows = self.rows.take(pa.array(places))
        return Block(self.numbers[places], self.vectors[places], self.inverse[places], rows)

    def kept(self, mask: NDArray[np.bool_]) -> Block:
        """Return the rows of some places."""
        return self.taken(np.flatnonzero(mask))

    @cached_property
    def _cells(self) -> Cells:
        return Cells(self.rows)

    @cached_property
    def _ascending(self) -> tuple[NDArray[np.int64], NDArray[np.intp] | None]:
        if bool((self.numbers[1:] > self.numbers[:-1]).all()):
            return self.numbers, None
        order = np.argsort(self.numbers, kind="stable")
        return self.numbers[order], order


def read_block(store: Store, numbers: RowNumbers, columns: Sequence[str], above: int = -1) -> Block:
    """Read the rows of a database above a number, in the order of their numbers."""
    parts = numbers.blocks(["vector", *columns], above)
    if not parts:
        return empty_block(store, columns)
    block = Block.of(
        np.concatenate([part for part, _ in parts]),
        np.concatenate([vectors_of(table["vector"]) for _, table in parts]),
        pa.concat_tables([table.drop_columns(["vector"]) for _, table in parts]),
    )
    if bool((block.numbers[1:] > block.numbers[:-1]).all()):
        return block
    return block.taken(np.argsort(block.numbers))


def empty_block(store: Store, columns: Sequence[str]) -> Block:
    """Return a block without rows."""
    rows = pa.table({name: pa.nulls(0) for name in columns})
    return Block.of(np.empty(0, np.int64), np.empty((0, store.vector_size), np.float32), rows)


def joined(one: Block, other: Block) -> Block:
    """Return the rows of both blocks, those of ``other`` after those of ``one``."""
    if not len(one):
        return other
    if not len(other):
        return one
    return Block(
        np.concatenate([one.numbers, other.numbers]),
        np.concatenate([one.vectors, other.vectors]),
        np.concatenate([one.inverse, other.inverse]),
        one_batch(pa.concat_tables([pa.table(one.rows), pa.table(other.rows)], promote_options="default")),
    )


def inverse_lengths(vectors: Vectors) -> Vectors:
    """Return one over the length of each vector [N, E]; infinite for one that float32 cannot screen."""
    inverse = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), 1 << 16):
        part = np.asarray(vectors[start : start + (1 << 16)])
        with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
            lengths = np.sqrt(np.einsum("ij,ij->i", part, part, dtype=np.float64))
            screened = (lengths > _SCREENED[0]) & (lengths < _SCREENED[1])
            inverse[start : start + len(part)] = np.where(screened, 1 / lengths, np.inf)
    return inverse


def places_by_id(block: Block) -> NDArray[np.uint32]:
    """Return the places of the rows that are not `GONE`, ascending by id."""
    order = pc.sort_indices(column_of(block.rows, "id")).to_numpy()
    return np.asarray(order[block.numbers[order] != GONE], np.uint32)


def one_batch(rows: pa.Table) -> pa.RecordBatch:
    """Return rows as one batch; texts that are too long for it together get wider offsets."""
    rows = rows.unify_dictionaries()
    if rows.nbytes > 2**30:
        wider = {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}
        rows = rows.cast(pa.schema([field.with_type(wider.get(field.type, field.type)) for field in rows.schema]))
    columns = [column.combine_chunks() for column in rows.columns]
    return pa.RecordBatch.from_arrays(columns, names=rows.column_names)
