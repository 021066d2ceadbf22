"""The two Milvus collections of a search database, and the values in them."""

import base64
import json
from datetime import date, datetime
from typing import Any

from unimetric.errors import ArgumentError, shown
from unimetric.search.stores.base import COLUMNS
from unimetric.search.stores.milvus_expression import METADATA, stored_value

TEXTS = COLUMNS[:6]
"""The columns of text that every row has."""

RECORD = "about"
"""The id of the record; an entity for each metadata column has its name after a dot, and its kind."""
MOST_BYTES = 65_535
"""Bytes of a text, at most."""
_PIECE = 32_768
_PIECES = 1_024


def create_record(client: Any, name: str) -> None:
    """Create the collection of the record, unless it is there."""
    # Milvus has no collection without vectors.
    _create(client, name, _schema(client, 2, "content"))


def create_items(client: Any, name: str, vector_size: int) -> None:
    """Create the collection of the rows, with Milvus's exact index, unless it is there."""
    from pymilvus import DataType

    schema = _schema(client, vector_size, "thumbnail")
    for column in COLUMNS[1:6]:
        schema.add_field(column, DataType.VARCHAR, max_length=MOST_BYTES)
    schema.add_field(METADATA, DataType.JSON)
    _create(client, name, schema)


def about_entity(id: str, content: str) -> dict[str, Any]:
    """Return an entity of the record's collection."""
    return {"id": id, "vector": [0.0, 1.0], "content": chunks(content)}


def item_entity(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row as an entity; an `ArgumentError` for a text that is longer than Milvus holds."""
    for column in TEXTS:
        if len(row[column].encode()) > MOST_BYTES:
            raise ArgumentError(f"the {column} {shown(row[column])} is longer than the 65,535 bytes that Milvus holds")
    metadata = {name: stored_value(value) for name, value in row.items() if name not in COLUMNS and value is not None}
    if len(json.dumps(metadata).encode()) > MOST_BYTES:
        raise ArgumentError(f"the metadata of {shown(row['path'])} is longer than the 65,535 bytes that Milvus holds")
    thumbnail = base64.b64encode(row.get("thumbnail") or b"").decode()
    return {
        **{column: row[column] for column in TEXTS},
        "vector": row["vector"],
        "thumbnail": chunks(thumbnail),
        METADATA: metadata,
    }


def chunks(text: str) -> list[str]:
    """Return a text in pieces that Milvus holds, at least one."""
    return [text[start : start + _PIECE] for start in range(0, len(text), _PIECE)] or [""]


def entity_value(kind: str, value: Any) -> Any:
    """Return a value of a metadata column from the one in JSON; see `stored_value`."""
    if value is None:
        return None
    if kind == "number":
        return float(value)
    if kind == "date":
        return date.fromisoformat(value)
    return datetime.fromisoformat(value) if kind == "time" else value


def _schema(client: Any, vector_size: int, pieces: str) -> Any:
    """Return a schema with ids, vectors, and a field of texts in pieces."""
    from pymilvus import DataType

    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", DataType.VARCHAR, is_primary=True, max_length=512)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vector_size)
    kind = {"element_type": DataType.VARCHAR, "max_capacity": _PIECES, "max_length": MOST_BYTES}
    schema.add_field(pieces, DataType.ARRAY, **kind)
    return schema


def _create(client: Any, name: str, schema: Any) -> None:
    """Create a collection, unless it is there, and load it."""
    if client.has_collection(name):
        client.load_collection(name)
        return
    index = client.prepare_index_params()
    index.add_index("vector", index_name="vector", index_type="FLAT", metric_type="COSINE")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")
    client.load_collection(name)
