"""Import shards that were embedded elsewhere into a database, without reading an image."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from unimetric.errors import UserError
from unimetric.formats.shards import read_shard
from unimetric.progress import console, log_status, progress_bar
from unimetric.search.conditions import is_one_of
from unimetric.search.index import SearchIndex
from unimetric.search.indexing import Indexed
from unimetric.search.items import NewItem
from unimetric.search.rows import MAPPED, Row, named, rows_table
from unimetric.search.stores.base import is_uri, portions


def import_shards(index: SearchIndex, files: Iterable[str]) -> Indexed:
    """Write the rows of shards, a commit for every 8,192; repeated after a kill, it continues.

    A row gets the id that ``unimetric index`` would give its image, so that a later ``unimetric index`` of the same
    folders finds it unchanged, and adds the columns of a manifest to it without embedding anything. A shard that is
    damaged or of another model is refused by a `UserError`.
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
    return Indexed(written, unchanged)


def _write(index: SearchIndex, file: str, columns: dict[str, Any]) -> int:
    """Write the rows of a part that are new or changed, and return how many they are."""
    vectors = columns["vector"]
    if vectors.shape[1] != index.embedding_size:
        raise UserError(f"{file} is damaged: vectors of {vectors.shape[1]} numbers; delete it and embed again")
    items = named(
        _new_item(path, columns["base"], dataset, label)
        for path, dataset, label in zip(columns["path"], columns["dataset"], columns["label"], strict=True)
    )
    known = {
        row["id"]: row
        for some in portions([item.id for item in items])
        for row in index.signature_rows(is_one_of("id", some)).to_pylist()
    }
    kinds = index.metadata_columns
    rows: dict[str, Row] = {}
    for item, content_hash, vector, thumbnail in zip(
        items, columns["content_hash"], vectors, columns["thumbnail"], strict=True
    ):
        old = known.get(item.id, {})
        is_same = (old.get("content_hash"), old.get("label")) == (content_hash, item.item.label)
        if is_same and old["fingerprint"] != MAPPED:
            continue
        # Shards have no metadata. Of two images that lead to the same place, the later one is kept.
        described = replace(item.item, metadata={name: old.get(name) for name in kinds})
        rows[item.id] = Row(replace(item, item=described), content_hash, vector, thumbnail)
    if rows:
        index.merge(rows_table(list(rows.values()), kinds, index.fingerprint))
    return len(rows)


def _new_item(path: str, base: str, dataset: str, label: str) -> NewItem:
    """An item of a URI, or of a path that starts where the embedding ran."""
    if is_uri(path):
        return NewItem(b"", dataset, label, path)
    return NewItem(Path(base) / path, dataset, label)
