"""A search database in two Milvus collections: ``NAME``, the record, and ``NAME_MODEL``, one entity per image.

The model's fingerprint is part of the second name, so no collection mixes two models. Writing is in requests of
`_ROWS` entities, each of which Milvus keeps once it has answered; an image is replaced as a whole or not at all.
"""

from __future__ import annotations

import base64
import json
import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unimetric.search.conditions import Condition
from unimetric.search.errors import DatabaseError, DatabaseMissingError, UnsupportedError
from unimetric.search.scoring import Vectors, unit, vector_column, vectors_of
from unimetric.search.stores.base import (
    COLUMNS,
    KINDS,
    MAKE_ONE,
    Effort,
    PerVersion,
    Store,
    VectorIndex,
    milvus_parts,
    read_record,
)
from unimetric.search.stores.milvus_collections import (
    RECORD,
    TEXTS,
    about_entity,
    create_items,
    create_record,
    entity_value,
    item_entity,
)
from unimetric.search.stores.milvus_connection import Connection, closing_on_error, connect, explained
from unimetric.search.stores.milvus_expression import METADATA, to_expression

READERS_SEE_WRITES_WITHIN = 2.0
"""Seconds for which counts of this process may be those before another process's writes."""

_ROWS = 500
_MOST_NEAREST = 16_384
"""Neighbours that Milvus returns, at most."""


class MilvusStore(Store):
    """A `Store` in Milvus collections."""

    kinds: tuple[str, ...] = ("hnsw",)

    def __init__(self, place: str, connection: Connection, about: dict[str, Any]) -> None:
        self.place = place
        self.about = about
        self._connection: Connection | None = connection
        self._record = milvus_parts(place)[1]
        self._items = items_name(place, about)
        self._version, self._seen = 0, time.monotonic()
        self._columns = PerVersion(self, self._read_columns)
        self._index = PerVersion(self, self._read_index)
        with explained(place, "read"):
            fields = connection.client.describe_collection(self._items)["fields"]
        self._vector_size = next(int(field["params"]["dim"]) for field in fields if field["name"] == "vector")

    @classmethod
    def open(cls, place: str) -> MilvusStore:
        """Open a database that is there; a `DatabaseMissingError` if there is none."""
        connection = connect(place, create=False)
        with closing_on_error(connection):
            about = _read_about(place, connection.client)
            with explained(place, "read"):
                if about is None or not connection.client.has_collection(name := items_name(place, about)):
                    raise DatabaseMissingError(f"{place} is not a search database; {MAKE_ONE}")
                connection.client.load_collection(name)
            return cls(place, connection, about)

    @classmethod
    def create(cls, place: str, about: dict[str, Any], vector_size: int) -> MilvusStore:
        """Open a database, or make an empty one; ``about`` is written only where there is none."""
        if about.get("vector_type", "float32") != "float32":
            raise UnsupportedError(f"Milvus holds vectors of float32 here, not of {about['vector_type']}: leave it out")
        connection = connect(place, create=True)
        client, record = connection.client, milvus_parts(place)[1]
        with closing_on_error(connection):
            found = _read_about(place, client)
            with explained(place, "write to"):
                if found is None:
                    create_record(client, record)
                    client.upsert(record, [about_entity(RECORD, json.dumps(about, sort_keys=True))])
            # If two processes create it at once, one of them finds the other's.
            found = found or _read_about(place, client) or about
            with explained(place, "write to"):
                create_items(client, items_name(place, found), vector_size)
            return cls(place, connection, found)

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def write_about(self, about: dict[str, Any]) -> None:
        with explained(self.place, "write to"):
            self._client.upsert(self._record, [about_entity(RECORD, json.dumps(about, sort_keys=True))])
        self.about = about

    def read_about(self) -> dict[str, Any]:
        self.about = _read_about(self.place, self._client) or self.about
        return self.about

    @property
    def version(self) -> int:
        """A number that rises with every change of this process, and every 2 seconds, for those of others."""
        if time.monotonic() - self._seen > READERS_SEE_WRITES_WITHIN:
            self.look()
        return self._version

    @property
    def column_names(self) -> list[str]:
        return [*COLUMNS, *self.metadata_columns]

    @property
    def metadata_columns(self) -> dict[str, str]:
        return self._columns.get()

    def _read_columns(self) -> dict[str, str]:
        with explained(self.place, "read"):
            found = self._client.query(self._record, filter=f'id != "{RECORD}"', output_fields=["id", "content"])
        return dict(sorted((str(entry["id"])[1:], "".join(entry["content"])) for entry in found))

    @property
    def vector_size(self) -> int:
        return self._vector_size

    def count(self, where: Condition | None = None) -> int:
        expression = to_expression(where)
        with explained(self.place, "read"):
            (found,) = self._client.query(self._items, filter=expression, output_fields=["count(*)"])
        return int(found["count(*)"])

    def rows(self, columns: Sequence[str], where: Condition | None = None, limit: int | None = None) -> pa.Table:
        parts: list[pa.Table] = []
        for part in self._parts(columns, where):
            parts.append(part)
            if limit is not None and sum(map(len, parts)) >= limit:
                break
        return pa.concat_tables(parts).slice(0, limit) if parts else self._table([], columns)

    def look(self) -> None:
        """Forget what is counted once a version; rows are always the newest."""
        self._version, self._seen = self._version + 1, time.monotonic()

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        return self._parts(columns, None)

    def nearest(
        self, vectors: Vectors, k: int, columns: Sequence[str], where: Condition | None, effort: Effort | None
    ) -> list[pa.Table]:
        # All rows are read for that, which takes seconds for a million.
        if effort is None and self.index is not None:
            return self._compared(vectors, k, columns, where)
        parameters = {} if effort is None else {"ef": max(effort.candidates, min(k, _MOST_NEAREST))}
        with explained(self.place, "read"):
            found = self._client.search(
                self._items,
                data=[vector.tolist() for vector in vectors],
                anns_field="vector",
                filter=to_expression(where),
                limit=min(k, _MOST_NEAREST),
                output_fields=self._fields(columns),
                search_params={"metric_type": "COSINE", "params": parameters},
            )
        tables = []
        for hits in found:
            table = self._table([hit["entity"] for hit in hits], columns)
            tables.append(
                table.append_column("_distance", pa.array([1 - hit["distance"] for hit in hits], pa.float32()))
            )
        return tables

    def merge(self, rows: pa.Table) -> None:
        kinds = {str(kind): name for name, kind in KINDS.items()}
        present = self.metadata_columns
        added = [field for field in rows.schema if field.name not in COLUMNS and field.name not in present]
        with explained(self.place, "write to"):
            if added:
                entities = [about_entity(f".{field.name}", kinds[str(field.type)]) for field in added]
                self._client.upsert(self._record, entities)
            for start in range(0, len(rows), _ROWS):
                self._client.upsert(self._items, [item_entity(row) for row in rows.slice(start, _ROWS).to_pylist()])
        self.look()

    def delete(self, where: Condition) -> int:
        """Delete the rows that meet a condition, and return their number."""
        count = self.count(where)
        if count:
            with explained(self.place, "write to"):
                self._client.delete(self._items, filter=to_expression(where))
            self.look()
        return count

    def compact(self) -> None:
        """Seal what was written, so that Milvus puts it into segments and their indexes; it merges them by itself."""
        with explained(self.place, "write to"):
            self._client.flush(self._items)

    @property
    def index(self) -> VectorIndex | None:
        """The approximate index; None for Milvus's exact one."""
        return self._index.get()

    def _read_index(self) -> VectorIndex | None:
        with explained(self.place, "read"):
            entry = self._client.describe_index(self._items, self._index_name())
        if entry["index_type"] == "FLAT":
            return None
        return VectorIndex(entry["index_name"], int(entry["pending_index_rows"]))

    def make_index(self, kind: str, partitions: int) -> str:
        """Rebuild the approximate index, ``hnsw``, and return its name; other readers fail until it is there."""
        return self._replace_index("HNSW", {"M": 16, "efConstruction": 150})

    def drop_index(self) -> None:
        """Put Milvus's exact index in the place of the approximate one, if there is one."""
        if self.index is not None:
            self._replace_index("FLAT", {})

    def _replace_index(self, kind: str, parameters: dict[str, int]) -> str:
        name = f"vector_{uuid.uuid4().hex}"
        with explained(self.place, "write to"):
            client, old = self._client, self._index_name()
            client.flush(self._items)
            client.release_collection(self._items)
            client.drop_index(self._items, old)
            wanted = client.prepare_index_params()
            wanted.add_index("vector", index_name=name, index_type=kind, metric_type="COSINE", params=parameters)
            client.create_index(self._items, wanted)
            client.load_collection(self._items)
        self.look()
        return name

    def _index_name(self) -> str:
        return str(self._client.list_indexes(self._items, field_name="vector")[0])

    def _compared(self, vectors: Vectors, k: int, columns: Sequence[str], where: Condition | None) -> list[pa.Table]:
        """Answer as `nearest` by comparing with every row, which are read part by part."""
        queries = unit(vectors)
        best = [pa.table({"id": pa.array([], pa.string()), "_distance": pa.array([], pa.float32())})] * len(vectors)
        for part in self._parts(["id", "vector"], where):
            distances = 1 - queries @ unit(vectors_of(part["vector"])).T
            for place, column in enumerate(distances.astype(np.float32)):
                nearer = pa.table({"id": part["id"], "_distance": pa.array(column)})
                best[place] = pa.concat_tables([best[place], nearer]).sort_by("_distance").slice(0, k)
        found = []
        for table in best:
            rows = self.rows_of(table["id"].to_pylist(), list(dict.fromkeys(["id", *columns])))
            places = pc.index_in(rows["id"], value_set=table["id"].combine_chunks())
            found.append(rows.select(list(columns)).append_column("_distance", table["_distance"].take(places)))
        return found

    def _parts(self, columns: Sequence[str], where: Condition | None) -> Iterator[pa.Table]:
        with explained(self.place, "read"):
            found = self._client.query_iterator(
                self._items, batch_size=_ROWS, filter=to_expression(where), output_fields=self._fields(columns)
            )
            try:
                while batch := found.next():
                    yield self._table(batch, columns)
            finally:
                found.close()

    def _fields(self, columns: Sequence[str]) -> list[str]:
        own = [column for column in columns if column in COLUMNS]
        return own if len(own) == len(columns) else [*own, METADATA]

    def _table(self, entities: Sequence[dict[str, Any]], columns: Sequence[str]) -> pa.Table:
        """Return entities as rows with the types that LanceDB gives them."""
        kinds = self.metadata_columns
        result = {}
        for column in columns:
            if column == "vector":
                flat = np.asarray([entity["vector"] for entity in entities], np.float32)
                result[column] = vector_column(flat.reshape(-1, self.vector_size))
            elif column == "thumbnail":
                texts = ["".join(entity["thumbnail"]) for entity in entities]
                result[column] = pa.array([base64.b64decode(text) if text else None for text in texts], pa.binary())
            elif column in TEXTS:
                result[column] = pa.array([entity[column] for entity in entities], pa.string())
            else:
                kind = kinds[column]
                values = [entity_value(kind, (entity[METADATA] or {}).get(column)) for entity in entities]
                result[column] = pa.array(values, KINDS[kind])
        return pa.table(result)

    @property
    def _client(self) -> Any:
        if self._connection is None:
            raise DatabaseError(f"the search database {self.place} was closed; open it again")
        return self._connection.client


def items_name(place: str, about: dict[str, Any]) -> str:
    """Return the name of the collection of a model's vectors."""
    return f"{milvus_parts(place)[1]}_{about['model']['fingerprint'][:16]}"


def _read_about(place: str, client: Any) -> dict[str, Any] | None:
    name = milvus_parts(place)[1]
    with explained(place, "read"):
        if not client.has_collection(name):
            return None
        client.load_collection(name)
        found = client.query(name, filter=f'id == "{RECORD}"', output_fields=["content"])
    if not found:
        return None
    return read_record(place, "".join(found[0]["content"]))
