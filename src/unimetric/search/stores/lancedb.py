"""A search database in LanceDB tables: ``about``, one row of JSON, and ``items``, one row per image.

Every write is one commit of LanceDB: readers see all of it or nothing, and a process that is killed leaves the last
commit.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from unimetric.search.conditions import Condition
from unimetric.search.errors import DatabaseError, DatabaseMissingError
from unimetric.search.scoring import Vectors
from unimetric.search.stores.base import (
    COLUMNS,
    KINDS,
    MAKE_ONE,
    Effort,
    PerVersion,
    Store,
    VectorIndex,
    is_uri,
)
from unimetric.search.stores.lancedb_numbers import RowNumbers
from unimetric.search.stores.lancedb_sql import to_sql
from unimetric.search.stores.lancedb_tables import (
    ABOUT,
    ITEMS,
    about_row,
    check_place,
    connect,
    explained,
    items_schema,
    lock,
    open_table,
    read_about,
)
from unimetric.search.stores.lancedb_versions import Followed

_KEPT_VERSIONS = timedelta(hours=1)
_QUERIES_AT_ONCE = 16


class LanceStore(Store):
    """A `Store` in two LanceDB tables."""

    kinds: tuple[str, ...] = ("ivf-pq", "hnsw")

    def __init__(self, place: str, connection: Any, items: Any, about: dict[str, Any]) -> None:
        self.place = place
        self.about = about
        self._connection = connection
        self._opened: Followed | None = Followed(place, items)
        self.before_change: Callable[[], None] = lambda: None
        """Called before every change; raises an error where changes are not allowed."""
        self._writing = threading.RLock()
        self._index = PerVersion(self, lambda: self._items.read(_vector_index))
        self._columns: PerVersion[pa.Schema] = PerVersion(self, lambda: self._items.read(lambda table: table.schema))

    @classmethod
    def open(cls, place: str) -> LanceStore:
        """Open a database that is there; a `DatabaseMissingError` if it is not, a `DatabaseError` if damaged."""
        if not is_uri(place) and not Path(place).is_dir():
            raise DatabaseMissingError(f"there is no search database {place}; {MAKE_ONE}")
        connection = connect(place)
        about = read_about(place, connection)
        if about is None:
            raise DatabaseMissingError(f"{place} is not a search database; {MAKE_ONE}")
        items = open_table(place, connection, ITEMS)
        if items is None:
            raise DatabaseMissingError(f"the search database {place} has no rows yet; run unimetric index again")
        return cls(place, connection, items, about)

    @classmethod
    def create(cls, place: str, about: dict[str, Any], vector_size: int) -> LanceStore:
        """Open a database, or make an empty one; ``about`` is written only where there is none."""
        if not is_uri(place):
            check_place(Path(place))
        connection = connect(place)
        with lock(place), explained(place, "write to"):
            # Of two that create a table at once, the second gets that of the first.
            connection.create_table(ABOUT, data=about_row(about), exist_ok=True)
            found = read_about(place, connection) or about
            size = found.get("model", {}).get("embedding_size", vector_size)
            schema = items_schema(size, found.get("vector_type", "float32"))
            # A table that has columns of metadata is of another schema.
            items = open_table(place, connection, ITEMS)
            if items is None:
                items = connection.create_table(ITEMS, schema=schema, exist_ok=True)
        return cls(place, connection, items, found)

    def close(self) -> None:
        """Release the tables."""
        self._opened = self._connection = None

    def write_about(self, about: dict[str, Any]) -> None:
        """Replace the row of ``about``."""
        with self._change():
            self._connection.open_table(ABOUT).add(about_row(about), mode="overwrite")
        self.about = about

    def read_about(self) -> dict[str, Any]:
        self.about = read_about(self.place, self._connection) or self.about
        return self.about

    @property
    def version(self) -> int:
        return self._items.version

    @property
    def numbers(self) -> RowNumbers | None:
        """Row numbers, by which vectors are kept in memory."""
        return RowNumbers(self._items)

    @property
    def column_names(self) -> list[str]:
        return list(self._schema.names)

    @property
    def metadata_columns(self) -> dict[str, str]:
        kinds = {str(kind): name for name, kind in KINDS.items()}
        return {
            field.name: kinds.get(str(field.type), str(field.type))
            for field in self._schema
            if field.name not in COLUMNS
        }

    @cached_property
    def vector_size(self) -> int:
        return int(self._schema.field("vector").type.list_size)

    def count(self, where: Condition | None = None) -> int:
        condition = None if where is None else to_sql(where)
        return self._items.read(lambda table: int(table.count_rows(condition)))

    def rows(self, columns: Sequence[str], where: Condition | None = None, limit: int | None = None) -> pa.Table:
        def read(table: Any) -> pa.Table:
            query = table.search().select(list(columns)).limit(limit)
            return (query if where is None else query.where(to_sql(where))).to_arrow()

        return self._items.read(read)

    def look(self) -> None:
        with explained(self.place, "read"):
            self._items.refresh()

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        with explained(self.place, "read"):
            for batch in self._table.search().select(list(columns)).limit(None).to_batches():
                yield pa.Table.from_batches([batch])

    def nearest(
        self, vectors: Vectors, k: int, columns: Sequence[str], where: Condition | None, effort: Effort | None
    ) -> list[pa.Table]:
        def answer(table: Any, part: Vectors) -> list[pa.Table]:
            query = table.search(part[0] if len(part) == 1 else list(part), "vector").distance_type("cosine")
            query = query.limit(k).select([*columns, "_distance"])
            if where is not None:
                query = query.where(to_sql(where), prefilter=True)
            query = query.bypass_vector_index() if effort is None else _with_effort(query, effort, k)
            return _by_query(query.to_arrow(), len(part))

        def read(table: Any) -> list[pa.Table]:
            # Several queries at once share the fixed cost of a call.
            starts = range(0, len(vectors), _QUERIES_AT_ONCE)
            return [each for start in starts for each in answer(table, vectors[start : start + _QUERIES_AT_ONCE])]

        return self._items.read(read)

    def merge(self, rows: pa.Table, insert: bool = True) -> None:
        """Write rows as all stores do; without ``insert``, those of unknown ids are left out."""
        with self._change():
            self._items.commit(lambda: self._merge(rows, insert))

    def _merge(self, rows: pa.Table, insert: bool) -> None:
        present = self._table.schema
        if missing := [field for field in rows.schema if field.name not in present.names]:
            self._table.add_columns(pa.schema(missing))
            present = self._table.schema
        columns = {
            field.name: rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
            for field in present
        }
        merge = self._table.merge_insert("id").when_matched_update_all()
        merge = merge.when_not_matched_insert_all() if insert else merge
        merge.execute(pa.table(columns, schema=present))

    def delete(self, where: Condition) -> int:
        with self._change():
            count = self.count(where)
            if count:
                self._items.commit(lambda: self._table.delete(to_sql(where)))
            return count

    def compact(self) -> None:
        """Merge small files, put new rows into the indexes, and drop versions older than an hour."""
        with self._change():
            self._items.commit(lambda: self._table.optimize(cleanup_older_than=_KEPT_VERSIONS))

    @property
    def index(self) -> VectorIndex | None:
        """The approximate index; None also while an old and a new one exist side by side."""
        return self._index.get()

    def make_index(self, kind: str, partitions: int) -> str:
        """Rebuild the approximate index and those of ids and datasets; return its name."""
        from lancedb.index import Bitmap, BTree, HnswSq, IvfPq

        config: Any
        if kind == "hnsw":
            config = HnswSq(distance_type="cosine", num_partitions=partitions, m=16, ef_construction=150)
        else:
            pieces = next(self.vector_size // width for width in (8, 4, 2, 1) if self.vector_size % width == 0)
            # A fraction of the usual training, which takes minutes; comparing full vectors makes up for the loss.
            config = IvfPq(
                distance_type="cosine",
                num_partitions=partitions,
                num_sub_vectors=pieces,
                max_iterations=10,
                sample_rate=32,
            )
        name = f"vector_{uuid.uuid4().hex}"
        with self._change():
            old = _vector_indexes(self._table)
            self._table.create_index("vector", config=config, name=name)
            for other in old:
                self._table.drop_index(other)
            self._table.create_index("id", config=BTree(), replace=True)
            self._table.create_index("dataset", config=Bitmap(), replace=True)
        return name

    def drop_index(self) -> None:
        with self._change():
            for name in _vector_indexes(self._table):
                self._table.drop_index(name)

    @property
    def _schema(self) -> pa.Schema:
        return self._columns.get()

    @property
    def _items(self) -> Followed:
        if self._opened is None:
            raise DatabaseError(f"the search database {self.place} was closed; open it again")
        return self._opened

    @property
    def _table(self) -> Any:
        return self._items.table

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Hold the write lock of this machine, on the newest version."""
        with self._writing, lock(self.place), explained(self.place, "write to"), self._items.moving():
            self.before_change()
            self._items.refresh()
            yield


def _vector_indexes(table: Any) -> list[str]:
    return [index.name for index in table.list_indices() if index.columns == ["vector"]]


def _vector_index(table: Any) -> VectorIndex | None:
    names = _vector_indexes(table)
    if len(names) != 1:
        return None
    return VectorIndex(names[0], table.index_stats(names[0]).num_unindexed_rows)


def _with_effort(query: Any, effort: Effort, k: int) -> Any:
    query = query.nprobes(effort.probes).refine_factor(effort.refine)
    return query.ef(max(effort.candidates, k * effort.refine)) if effort.candidates else query


def _by_query(found: pa.Table, queries: int) -> list[pa.Table]:
    """Return the answers to each of several queries that were asked at once."""
    if queries == 1:
        return [found]
    numbers = found["query_index"].to_numpy()
    return [found.filter(pa.array(numbers == number)).drop_columns("query_index") for number in range(queries)]
