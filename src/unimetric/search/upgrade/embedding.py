"""Rows embedded by the new model, from their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from unimetric.data.images import file_reason
from unimetric.errors import UserError
from unimetric.search.items import NewItem, Refused
from unimetric.search.rows import MAPPED, NamedItem
from unimetric.search.stores.base import Store, is_uri
from unimetric.search.upgrade.moving import Stores, columns_of, with_columns
from unimetric.search.writing import CommitRule, Progress, Writer
from unimetric.storage.objects import read_bytes

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder


@dataclass(frozen=True)
class UpgradeOptions:
    """Options of an upgrade; ``unimetric upgrade`` describes them."""

    sample: int = 1000
    live: str = "better"
    missing: str = "stop"
    batch_size: int = 32
    commit_rows: int = 1024
    precision: str = "auto"


@dataclass(frozen=True)
class RowEmbedder:
    """Embeds rows of a database by the new model, from the images that they name."""

    stores: Stores
    embedder: Embedder
    options: UpgradeOptions

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
        rows = {row["id"]: row for row in source.rows_of(ids, ["id", "dataset", "label", "path"]).to_pylist()}
        stored = self.stores.old.rows_of(ids, ["id", "thumbnail"]).to_pylist() if from_thumbnails else []
        thumbnails = {row["id"]: row["thumbnail"] for row in stored}
        items, refused = [], {}
        for id, row in ((id, rows[id]) for id in ids if id in rows):
            path = row["path"]
            try:
                image = _thumbnail(thumbnails.get(id)) if from_thumbnails else _image(path)
                items.append(NamedItem(NewItem(image, row["dataset"], row["label"], path), id, path))
            except (UserError, OSError) as error:
                refused[id] = Refused(path, file_reason(error) if isinstance(error, OSError) else str(error))
        writer = Writer(
            self.stores.new,
            lambda: self.embedder,
            self.options.precision,
            self.stores.fingerprint,
            {},
            {},
            CommitRule(rows=self.options.commit_rows),
            on_commit=on_commit,
            merge=partial(self._merge, source, is_searched),
        )
        return refused | writer.write(items, self.options.batch_size).refused

    def _merge(self, source: Store, is_searched: bool, rows: pa.Table) -> None:
        """Write those rows that are still there, and not embedded by another process, with their newest label."""
        fresh = source.rows_of(rows["id"].to_pylist(), columns_of(source), newest=True)
        if is_searched:
            fresh = fresh.filter(pc.equal(fresh["fingerprint"], MAPPED))
        if len(fresh):
            made = rows.take(pc.index_in(fresh["id"], value_set=rows["id"].combine_chunks()))
            embedded = {name: made[name] for name in ("content_hash", "fingerprint", "vector", "thumbnail")}
            self.stores.new.merge(with_columns(fresh, **embedded), insert=not is_searched)


def _thumbnail(stored: bytes | None) -> bytes:
    if not stored:
        raise UserError("it has no thumbnail")
    return stored


def _image(path: str) -> Path | bytes:
    if is_uri(path):
        return read_bytes(path)
    if not Path(path).is_absolute():
        raise UserError("it was added without a file")
    return Path(path)
