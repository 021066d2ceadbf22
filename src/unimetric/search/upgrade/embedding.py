"""Rows embedded by the new model, from their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unimetric.data.images import file_reason
from unimetric.errors import UserError
from unimetric.search.items import NewItem, Refused
from unimetric.search.rows import MAPPED, NamedItem, Row, rows_table
from unimetric.search.scoring import vectors_of
from unimetric.search.stores.base import COLUMNS, Store, is_uri
from unimetric.search.upgrade.moving import Stores, columns_of
from unimetric.search.writing import CommitRule, Progress, Writer
from unimetric.storage.objects import read_bytes

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder


@dataclass(frozen=True)
class RowEmbedder:
    """Embeds rows of a database by the new model, from the images that they name."""

    stores: Stores
    embedder: Embedder
    precision: str
    batch_size: int
    rule: CommitRule

    def embed(
        self,
        ids: Sequence[str],
        *,
        is_searched: bool,
        from_thumbnails: bool = False,
        on_commit: Callable[[Progress], None] = lambda progress: None,
    ) -> dict[str, Refused]:
        """Embed rows and write them into the new set, commit by commit; return those whose image cannot be read.

        With ``is_searched`` the new set is the one that is searched, and so has every row.
        """
        source = self.stores.new if is_searched else self.stores.old
        rows = {row["id"]: row for row in source.rows_of(ids, columns_of(source)).to_pylist()}
        thumbnails = None
        if from_thumbnails:
            stored = self.stores.old.rows_of(ids, ["id", "thumbnail"]).to_pylist()
            thumbnails = {row["id"]: row["thumbnail"] for row in stored if row["thumbnail"]}
        items, refused = [], {}
        for id in (id for id in ids if id in rows):
            path = rows[id]["path"]
            if thumbnails is not None and id not in thumbnails:
                refused[id] = Refused(path, "it has no thumbnail")
                continue
            try:
                items.append(named_row(rows[id], _image(path) if thumbnails is None else thumbnails[id]))
            except (UserError, OSError) as error:
                refused[id] = Refused(path, file_reason(error) if isinstance(error, OSError) else str(error))
        writer = Writer(
            self.stores.new,
            lambda: self.embedder,
            self.precision,
            self.stores.fingerprint,
            source.metadata_columns,
            {},
            self.rule,
            on_commit=on_commit,
            merge=partial(self._merge, source, is_searched),
        )
        return refused | writer.write(items, self.batch_size).refused

    def _merge(self, source: Store, is_searched: bool, rows: pa.Table) -> None:
        """Write those rows that are still there, and not embedded by another process, with their newest label."""
        found = source.rows_of(rows["id"].to_pylist(), columns_of(source), newest=True).to_pylist()
        fresh = {row["id"]: named_row(row) for row in found if not is_searched or row["fingerprint"] == MAPPED}
        columns = (rows[name].to_pylist() for name in ("id", "content_hash", "thumbnail"))
        written = [
            Row(fresh[id], content_hash, vector, thumbnail)
            for id, content_hash, thumbnail, vector in zip(*columns, vectors_of(rows["vector"]), strict=True)
            if id in fresh
        ]
        if written:
            table = rows_table(written, source.metadata_columns, self.stores.fingerprint)
            self.stores.new.merge(table, insert=not is_searched)


def named_row(row: dict[str, Any], image: Path | bytes = b"") -> NamedItem:
    """Return a row of a database as an item to write."""
    metadata = {name: value for name, value in row.items() if name not in COLUMNS}
    item = NewItem(image, row["dataset"], row["label"], row["path"], metadata)
    return NamedItem(item, row["id"], row["path"])


def _image(path: str) -> Path | bytes:
    if is_uri(path):
        return read_bytes(path)
    if not Path(path).is_absolute():
        raise UserError("it was added without a file")
    return Path(path)
