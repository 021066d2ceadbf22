"""Import shards that were embedded elsewhere into a database, without reading an image."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unimetric.errors import UserError
from unimetric.formats.shards import read_shard
from unimetric.progress import console, log_status, progress_bar
from unimetric.search.conditions import is_one_of
from unimetric.search.index import SearchIndex
from unimetric.search.items import NewItem
from unimetric.search.rows import MAPPED, NamedItem, named, rows_table
from unimetric.search.stores.base import is_uri

_IDS_AT_ONCE = 1000


@dataclass(frozen=True)
class Imported:
    """The result of importing some shards."""

    written: int
    unchanged: int
    """Rows that the database already held with the same content and label."""


def import_shards(index: SearchIndex, files: Iterable[str]) -> Imported:
    """Write the rows of shards, a commit for every 8,192; repeated after a kill, it continues.

    A row gets the id that ``unimetric index`` would give its image, so that a later ``unimetric index`` of the same
    folders finds it unchanged, and adds the columns of a manifest to it without embedding anything.

    Raises:
        UserError: a shard is damaged or of another model, or the database cannot be written.
    """
    written, unchanged = 0, 0
    files = list(files)
    with progress_bar() as bar:
        task = bar.add_task("Importing", total=len(files), note="")
        for number, file in enumerate(files, start=1):
            for columns in read_shard(file, index.fingerprint):
                new = _write(index, file, columns)
                written, unchanged = written + new, unchanged + len(columns["path"]) - new
                bar.update(task, note=f"{written} rows")
            bar.update(task, completed=number)
            if not console.is_terminal:
                log_status(f"{written} rows written; {number} of {len(files)} shards")
    return Imported(written, unchanged)


def _write(index: SearchIndex, file: str, columns: dict[str, Any]) -> int:
    """Write the rows of a part that are new or changed, and return how many they are."""
    vectors = columns["vector"]
    if vectors.shape[1] != index.embedding_size:
        raise UserError(f"{file} is damaged: vectors of {vectors.shape[1]} numbers; delete it and embed again")
    items = named(
        _new_item(path, columns["base"], dataset, label)
        for path, dataset, label in zip(columns["path"], columns["dataset"], columns["label"], strict=True)
    )
    known = _known(index, [item.id for item in items])
    # Of two that lead to the same place, the later one.
    places = {
        item.id: place
        for place, item in enumerate(items)
        if not _is_same(known.get(item.id), columns["content_hash"][place], item.item.label)
    }
    kinds = index.metadata_columns
    if places:
        chosen = list(places.values())
        table = rows_table(
            [_with_metadata(items[place], known, kinds) for place in chosen],
            [columns["content_hash"][place] for place in chosen],
            vectors[chosen],
            [columns["thumbnail"][place] for place in chosen],
            kinds,
            index.fingerprint,
        )
        index.merge(table)
    return len(places)


def _known(index: SearchIndex, ids: list[str]) -> dict[str, dict[str, Any]]:
    """Return the existing rows with these ids."""
    return {
        row["id"]: row
        for start in range(0, len(ids), _IDS_AT_ONCE)
        for row in index.signature_rows(is_one_of("id", ids[start : start + _IDS_AT_ONCE])).to_pylist()
    }


def _is_same(row: dict[str, Any] | None, content_hash: str, label: str) -> bool:
    return (
        row is not None
        and (row["content_hash"], row["label"]) == (content_hash, label)
        and (row["fingerprint"] != MAPPED)
    )


def _with_metadata(item: NamedItem, known: dict[str, dict[str, Any]], kinds: dict[str, str]) -> NamedItem:
    """Return the item with the metadata of its existing row, which shards do not contain."""
    row = known.get(item.id, {})
    return replace(item, item=replace(item.item, metadata={name: row.get(name) for name in kinds}))


def _new_item(path: str, base: str, dataset: str, label: str) -> NewItem:
    """An item of a URI, or of a path that starts where the embedding ran."""
    if is_uri(path):
        return NewItem(b"", dataset, label, path)
    return NewItem(Path(base) / path, dataset, label)
