"""Rows embedded by the new model, from their images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unimetric.errors import UserError
from unimetric.search.items import NewItem, Refused
from unimetric.search.rows import MAPPED, NamedItem, rows_table
from unimetric.search.stores.base import COLUMNS, Store, is_uri
from unimetric.search.upgrade.moving import Stores, columns_of
from unimetric.search.writing import CommitRule, Progress, Writer
from unimetric.storage.objects import read_bytes

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder


@dataclass(frozen=True)
class RowEmbedder:
    """Embeds rows of a database from the images that they name.

    Attributes:
        stores: The two sets of vectors.
        embedder: The new model.
        precision: As for `Embedder.encode`.
        batch_size: Images per forward pass.
        rule: When to commit.
    """

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
        """Embed rows and write them into the new set, commit by commit.

        Args:
            ids: The rows.
            is_searched: The new set is the one that is searched, and so has every row.
            from_thumbnails: Read the thumbnails in the database and not the images.
            on_commit: Called after every commit.

        Returns:
            The rows whose image cannot be read, with the reason.
        """
        source = self.stores.new if is_searched else self.stores.old
        rows = {row["id"]: row for row in source.rows_of(ids, columns_of(source)).to_pylist()}
        thumbnails = self._thumbnails(ids) if from_thumbnails else {}
        items, refused = [], {}
        for id in ids:
            if id not in rows:
                continue
            try:
                image = _thumbnail(thumbnails, id) if from_thumbnails else _image(rows[id]["path"])
            except (UserError, OSError) as error:
                refused[id] = Refused(rows[id]["path"], _reason(error))
                continue
            items.append(named_row(rows[id], image))
        kinds = source.metadata_columns
        target = _Target(self.stores, source, is_searched)
        writer = Writer(
            target,
            lambda: self.embedder,
            self.precision,
            self.stores.fingerprint,
            kinds,
            {},
            self.rule,
            on_commit=on_commit,
        )
        progress = writer.write(items, self.batch_size)
        by_path = {entry.path: entry for entry in progress.refused}
        return refused | {id: by_path[rows[id]["path"]] for id in sorted(progress.refused_ids)}

    def _thumbnails(self, ids: Sequence[str]) -> dict[str, bytes]:
        rows = self.stores.old.rows_of(ids, ["id", "thumbnail"]).to_pylist()
        return {row["id"]: row["thumbnail"] for row in rows if row["thumbnail"]}


class _Target:
    """Target of a `Writer` that writes rows with the labels and metadata that they have at the moment of writing."""

    def __init__(self, stores: Stores, source: Store, is_searched: bool) -> None:
        self._stores, self._source, self._is_searched = stores, source, is_searched

    @property
    def vector_size(self) -> int:
        return self._stores.new.vector_size

    def rows_of(self, ids: Sequence[str], columns: Sequence[str], *, newest: bool = False) -> pa.Table:
        return self._stores.new.rows_of(ids, columns, newest=newest)

    def merge(self, rows: pa.Table) -> None:
        """Write those rows that are still there, and not embedded by another process, with their newest label."""
        fresh = {row["id"]: row for row in self._fresh(rows["id"].to_pylist())}
        places = [place for place, id in enumerate(rows["id"].to_pylist()) if id in fresh]
        if not places:
            return
        rows = rows.take(places)
        named = [named_row(fresh[id]) for id in rows["id"].to_pylist()]
        flat = rows["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        table = rows_table(
            named,
            rows["content_hash"].to_pylist(),
            flat.reshape(len(rows), -1),
            rows["thumbnail"].to_pylist(),
            self._source.metadata_columns,
            self._stores.fingerprint,
        )
        self._stores.new.merge(table, insert=not self._is_searched)

    def _fresh(self, ids: list[str]) -> list[dict[str, Any]]:
        rows = self._source.rows_of(ids, columns_of(self._source), newest=True).to_pylist()
        return [row for row in rows if not self._is_searched or row["fingerprint"] == MAPPED]


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


def _thumbnail(thumbnails: dict[str, bytes], id: str) -> bytes:
    if id not in thumbnails:
        raise UserError("it has no thumbnail")
    return thumbnails[id]


def _reason(error: UserError | OSError) -> str:
    if isinstance(error, OSError) and error.errno is not None:
        return "file not found" if isinstance(error, FileNotFoundError) else f"cannot be read ({error.strerror})"
    return str(error)
