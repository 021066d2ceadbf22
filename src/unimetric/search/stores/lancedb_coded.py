"""A database whose vectors are stored as float16, int8, or one bit a number with an int8 copy.

Everything that reads or writes it sees float32 vectors. LanceDB compares float32 vectors only, so queries are answered
here, from the codes of all rows in memory: exactly, or by one bit a number, with the best rows compared again by their
int8 copies, which are read from the database.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unimetric.formats.stored_types import StoredType, decode_vectors, encode_vectors
from unimetric.search.conditions import Condition
from unimetric.search.scoring import Vectors, best_first, cosines, vector_column, vectors_of
from unimetric.search.stores.base import Effort, PerVersion
from unimetric.search.stores.lancedb import LanceStore
from unimetric.search.stores.lancedb_numbers import RowNumbers
from unimetric.search.stores.lancedb_tables import BITS

RESCORED = 50
"""Rows that are compared again by their int8 copies, at least; 4 for every wanted row, if that is more."""

_ROWS = 8192
_QUERIES = 16


@dataclass(frozen=True, eq=False)
class _Codes:
    """The codes of all rows: ids, codes, and 1 over the lengths of their vectors."""

    ids: pa.ChunkedArray
    codes: NDArray[Any]
    scales: NDArray[np.float32]


class CodedStore(LanceStore):
    """A `LanceStore` with coded vectors; made by `around` a store that was opened."""

    @classmethod
    def around(cls, store: LanceStore) -> CodedStore:
        """Return the same database with its vectors decoded."""
        return cls(store.place, store._connection, store._table, store.about)

    def close(self) -> None:
        """Release the tables and the codes."""
        super().close()
        vars(self).pop("_codes", None)

    @property
    def vector_type(self) -> StoredType:
        """The type of the vectors that a search keeps in memory."""
        kind: StoredType = self.about["vector_type"]
        return kind

    @property
    def numbers(self) -> RowNumbers | None:
        """None: the codes are kept in memory here."""
        return None

    @property
    def column_names(self) -> list[str]:
        """All columns, without the bits of the vectors."""
        return [name for name in super().column_names if name != BITS]

    @property
    def metadata_columns(self) -> dict[str, str]:
        return {name: kind for name, kind in super().metadata_columns.items() if name != BITS}

    def rows(self, columns: Sequence[str], where: Condition | None = None, limit: int | None = None) -> pa.Table:
        return self._decoded(super().rows(columns, where, limit))

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return map(self._decoded, super().blocks(columns))

    def nearest(
        self, vectors: Vectors, k: int, columns: Sequence[str], where: Condition | None, effort: Effort | None
    ) -> list[pa.Table]:
        codes = self._codes.get()
        allowed = None
        if where is not None:
            allowed = pc.is_in(codes.ids, value_set=super().rows(["id"], where)["id"].combine_chunks()).to_numpy()
        count = max(RESCORED, 4 * k) if self.vector_type == "bit" else k
        places = [
            part
            for start in range(0, len(vectors), _QUERIES)
            for part in self._best(codes, vectors[start : start + _QUERIES], count, allowed)
        ]
        needed = list(dict.fromkeys(["id", *columns, "vector"]))
        return [
            _ranked(vector, self.rows_of(codes.ids.take(found).to_pylist(), needed), k)
            for vector, found in zip(vectors, places, strict=True)
        ]

    def _best(
        self, codes: _Codes, queries: Vectors, count: int, allowed: NDArray[np.bool_] | None
    ) -> list[NDArray[np.intp]]:
        """Return the places of the rows with the highest cosines to each of a few queries."""
        scores = np.empty((len(queries), len(codes.codes)), np.float32)
        for start in range(0, len(codes.codes), _ROWS):
            rows = slice(start, start + _ROWS)
            decoded = decode_vectors(self.vector_type, codes.codes[rows], self.vector_size)
            scores[:, rows] = (queries @ decoded.T) * codes.scales[rows]
        if allowed is not None:
            scores[:, ~allowed] = -np.inf
        found = []
        for row in scores:
            places = np.argpartition(-row, count - 1)[:count] if len(row) > count else np.arange(len(row))
            found.append(places[row[places] > -np.inf])
        return found

    @cached_property
    def _codes(self) -> PerVersion[_Codes]:
        return PerVersion(self, self._read_codes)

    def _read_codes(self) -> _Codes:
        column, size = BITS if self.vector_type == "bit" else "vector", self.vector_size
        kind = self._schema.field(column).type
        ids, scales = [pa.array([], pa.string())], [np.empty(0, np.float32)]
        parts: list[NDArray[Any]] = [np.empty((0, kind.list_size), kind.value_type.to_pandas_dtype())]
        for block in super().blocks(["id", column]):
            part = _matrix(block[column])
            ids += block["id"].chunks
            parts.append(part)
            lengths = np.linalg.norm(decode_vectors(self.vector_type, part, size), axis=1)
            scales.append((1 / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32))
        return _Codes(pa.chunked_array(ids), np.concatenate(parts), np.concatenate(scales))

    def _merge(self, rows: pa.Table, insert: bool) -> None:
        super()._merge(self._encoded(rows), insert)

    def _encoded(self, rows: pa.Table) -> pa.Table:
        vectors = vectors_of(rows["vector"])
        copy: StoredType = "int8" if self.vector_type == "bit" else self.vector_type
        codes = vector_column(encode_vectors(copy, vectors))
        rows = rows.set_column(rows.column_names.index("vector"), "vector", codes)
        if self.vector_type == "bit":
            rows = rows.append_column(BITS, vector_column(encode_vectors("bit", vectors)))
        return rows

    def _decoded(self, rows: pa.Table) -> pa.Table:
        if "vector" not in rows.column_names or rows.schema.field("vector").type.value_type == pa.float32():
            return rows
        copy: StoredType = "int8" if self.vector_type == "bit" else self.vector_type
        vectors = decode_vectors(copy, _matrix(rows["vector"]), self.vector_size)
        return rows.set_column(rows.column_names.index("vector"), "vector", vector_column(vectors))


def _ranked(query: Vectors, rows: pa.Table, k: int) -> pa.Table:
    """Return the k rows nearest to a query, with ``_distance``."""
    scores = cosines(query, vectors_of(rows["vector"]))
    order = best_first(scores, rows["id"].to_pylist(), k)
    distances = pa.array((1 - scores[order]).astype(np.float32))
    return rows.take(pa.array(order)).append_column("_distance", distances)


def _matrix(column: pa.ChunkedArray) -> NDArray[Any]:
    size = column.type.list_size
    flat: NDArray[Any] = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, size)
