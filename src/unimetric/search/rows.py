"""From new items to rows: ids, metadata columns with their types, and signatures that detect changes."""

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from unimetric.data.catalog import identities
from unimetric.data.sources.metadata import Value
from unimetric.data.sources.remote import stored_name
from unimetric.errors import ArgumentError, check_kind, shown
from unimetric.files import user_path
from unimetric.formats.vectors import as_unicode
from unimetric.search.items import NewItem, StoredItem
from unimetric.search.preparation import hash_of
from unimetric.search.scoring import Vectors, vector_column
from unimetric.search.stores.base import COLUMNS, KINDS, is_uri

MAPPED = "mapped"
"""The fingerprint of a row whose vector no model made: an upgrade moved it from the old model's space."""

_LARGEST = 2**53
"""Numbers are stored as 64-bit floats, which skip whole numbers beyond this."""
_FORBIDDEN = frozenset(".\"'`\\")
"""Characters that a column name may not contain: the database misreads them, or becomes unreadable."""


@dataclass(frozen=True)
class NamedItem:
    """A new item with its stored id and path."""

    item: NewItem
    id: str
    path: str


def item_id(dataset: str, path: str) -> str:
    """Return the id of an image: 32 hexadecimal digits of the SHA-256 of its dataset and path."""
    return hashlib.sha256(f"{dataset}\0{path}".encode("utf-8", "backslashreplace")).hexdigest()[:32]


def stored_path(path: str | Path) -> str:
    """Return the stored form of a path: a URI unchanged, a file absolute with links resolved."""
    if is_uri(path):
        return str(path)
    return as_unicode(identities([Path(os.path.abspath(user_path(path)))])[0])  # noqa: PTH100 ("..", unresolved)


def named(items: Iterable[NewItem]) -> list[NamedItem]:
    """Return items with their ids; two links to one file within a dataset share an id.

    A `UserError` if an item names no dataset, an `ImageError` if a content without a path cannot be hashed.
    """
    check_kind("items", items, Iterable, "a list of NewItem")
    items = list(items)
    for item in items:
        check_kind("an item", item, NewItem, "a NewItem")
    files = [item.image for item in items if isinstance(item.image, Path) and item.path is None]
    resolved = iter(identities(Path(os.path.abspath(file)) for file in files))  # noqa: PTH100
    result = []
    for item in items:
        if not item.dataset.strip():
            raise ArgumentError(f"an item has an empty dataset ({item.path or 'no path'}); name one")
        if item.path is not None:
            path = item.path if is_uri(item.path) or not Path(item.path).is_absolute() else stored_path(item.path)
        elif isinstance(item.image, Path):
            path = stored_name(next(resolved))
        else:
            path = f"sha256:{hash_of(item.image)}"
        path = as_unicode(path)
        result.append(NamedItem(item, item_id(as_unicode(item.dataset), path), path))
    return result


def metadata_kinds(
    items: Iterable[NewItem], present: Mapping[str, str], origin: str = "the metadata"
) -> dict[str, str]:
    """Return the kind of every metadata column of the items, one of `KINDS`, without columns that are all None.

    A `UserError` if a column's name cannot be used, or its values are of two kinds, or not those of ``present``.
    """
    kinds: dict[str, str] = {}
    usual = {name.lower(): name for name in present}
    checked: set[str] = set()
    for item in items:
        for name, value in item.metadata.items():
            if name not in checked:
                _check_name(name, usual, origin)
                usual.setdefault(name.lower(), name)
                checked.add(name)
            kind = _kind(name, value, origin)
            if kind is None:
                continue
            known = kinds.setdefault(name, present.get(name, kind))
            if known != kind:
                where = "in the database" if name in present else "elsewhere"
                raise ArgumentError(
                    f"{origin}: the column {name!r} holds {shown(value)}, a {kind}, but {known} {where}; "
                    "rename the column, or write its values alike"
                )
    return kinds


def signature(content_hash: str, label: str, path: str, metadata: Mapping[str, Value]) -> bytes:
    """Return 16 bytes that differ between a row and its changed version."""
    filled = sorted((name, plain) for name, value in metadata.items() if (plain := _plain(value)) is not None)
    content = json.dumps([content_hash, label, path, filled], default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def signatures(rows: pa.Table) -> dict[str, tuple[str, bytes]]:
    """Return the content hash and the `signature` of every row, by id.

    Where the fingerprint is given and is `MAPPED`, the hash is empty, so that the row counts as changed.
    """
    metadata = [name for name in rows.column_names if name not in COLUMNS]
    columns = {name: rows[name].to_pylist() for name in rows.column_names}
    result = {}
    for place, id in enumerate(columns["id"]):
        content_hash = columns["content_hash"][place]
        further = {name: columns[name][place] for name in metadata}
        is_moved = "fingerprint" in columns and columns["fingerprint"][place] == MAPPED
        result[id] = (
            "" if is_moved else content_hash,
            signature(content_hash, columns["label"][place], columns["path"][place], further),
        )
    return result


@dataclass(frozen=True, eq=False)
class Row:
    """A row to write: an item with its content hash, its vector [E] and its thumbnail."""

    named: NamedItem
    content_hash: str
    vector: Vectors
    thumbnail: bytes | None


def rows_table(rows: Sequence[Row], kinds: Mapping[str, str], fingerprint: str) -> pa.Table:
    """Return rows, at least one, as they are written, with metadata columns of these kinds."""
    items = [row.named.item for row in rows]
    columns = {
        "id": pa.array([row.named.id for row in rows], pa.string()),
        "dataset": pa.array([as_unicode(item.dataset) for item in items], pa.string()),
        "label": pa.array([as_unicode(item.label) for item in items], pa.string()),
        "path": pa.array([row.named.path for row in rows], pa.string()),
        "content_hash": pa.array([row.content_hash for row in rows], pa.string()),
        "fingerprint": pa.array([fingerprint] * len(rows), pa.string()),
        "vector": vector_column(np.stack([row.vector for row in rows], dtype=np.float32)),
        "thumbnail": pa.array([row.thumbnail for row in rows], pa.binary()),
    }
    for name, kind in kinds.items():
        columns[name] = pa.array([_plain(item.metadata.get(name)) for item in items], KINDS[kind])
    return pa.table(columns)


def shown_values(values: Iterable[Any]) -> list[Value]:
    """Return stored metadata for users: whole numbers as integers."""
    return [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]


def stored_item(row: pa.Table) -> StoredItem:
    """Return a table's only row, without its vector and thumbnail."""
    columns = row.to_pydict()
    values = {name: columns[name][0] for name in ("id", "dataset", "label", "path", "content_hash")}
    return StoredItem(**values, metadata=metadata_of(columns, 1)[0])


def metadata_of(columns: Mapping[str, list[Any]], count: int) -> list[dict[str, Value]]:
    """Return the metadata of each of some rows."""
    further = {name: shown_values(values) for name, values in columns.items() if name not in COLUMNS}
    if not further:
        return [{} for _ in range(count)]
    # Without `strict`, which takes a microsecond a row.
    return [dict(zip(further, values)) for values in zip(*further.values())]  # noqa: B905


def name_problem(name: str) -> str | None:
    """Return the reason why a metadata column cannot have a name, and the remedy; None if it can."""
    bad = [character for character in name if character in _FORBIDDEN or not character.isprintable()]
    if bad or not name.strip() or len(name) > 100:
        why = f"holds {bad[0]!r}" if bad else "is empty or longer than 100 characters"
        return f"{why}; rename it with letters, digits, spaces, - or _"
    if name.lower() in COLUMNS or name.startswith("_"):
        return "is taken by the database; rename it"
    return None


def _check_name(name: str, usual: Mapping[str, str], origin: str) -> None:
    if problem := name_problem(name):
        raise ArgumentError(f"{origin}: the column name {name!r} {problem}")
    other = usual.get(name.lower(), name)
    if other != name:
        raise ArgumentError(f"{origin}: the column {name!r} is called {other!r} elsewhere; write both alike")


def _kind(name: str, value: Any, origin: str) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    # True is a number too, and a time a date.
    for type_, kind in ((bool, "boolean"), (str, "text"), (datetime, "time"), (date, "date")):
        if isinstance(value, type_):
            return kind
    if isinstance(value, int | float):
        if abs(value) > _LARGEST and not (isinstance(value, float) and math.isfinite(value)):
            raise ArgumentError(
                f"{origin}: the column {name!r} holds {value}, which no 64-bit float is; write it as text"
            )
        return "number"
    raise ArgumentError(
        f"{origin}: the column {name!r} holds a {type(value).__name__}; use text, numbers, true or false, or dates"
    )


def _plain(value: Value) -> Value:
    """Return a value as it is stored and compared."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        # A sum with 0.0, so that -0.0 is stored as 0.0.
        return None if math.isnan(value) else float(value) + 0.0
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(timezone.utc).replace(tzinfo=None)
    return as_unicode(value) if isinstance(value, str) else value
