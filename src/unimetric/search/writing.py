"""Embed new and changed items, and write them commit by commit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pyarrow as pa

from unimetric.cpu import available_cores
from unimetric.data.images import ImageError
from unimetric.errors import UserError
from unimetric.search.items import Refused
from unimetric.search.preparation import Prepared, prepare, prepare_all
from unimetric.search.rows import NamedItem, Row, rows_table, signature
from unimetric.search.scoring import vectors_of
from unimetric.search.stores.base import Store

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder

THREADS = max(2, min(8, available_cores()))


@dataclass
class Progress:
    """The progress of a writer."""

    read: int = 0
    """Items that were read."""
    written: int = 0
    """Rows that are on the disk."""
    unchanged: int = 0
    refused: dict[str, Refused] = field(default_factory=dict)
    """Images that cannot be read, by the ids of their items."""


@dataclass(frozen=True)
class CommitRule:
    """Commit once so many rows are pending, or the last commit was so many seconds ago."""

    rows: float = 1024
    seconds: float = 10.0


ONCE = CommitRule(math.inf, math.inf)
"""A single commit at the end."""


@dataclass
class Writer:
    """Writes items to a store.

    Args:
        embedder: Returns the model; called when it is first needed.
        kinds: The metadata columns of all items, from `metadata_kinds`.
        known: Content hash and `signature` of the rows that exist, by id.
        rule: When to commit.
        strict: Raise at an image that cannot be read.
        on_commit, on_read: Called after every commit and every item.
        merge: Writes rows in one commit; by default the store does.
    """

    store: Store
    embedder: Callable[[], Embedder]
    precision: str
    fingerprint: str
    kinds: Mapping[str, str]
    known: Mapping[str, tuple[str, bytes]]
    rule: CommitRule = field(default_factory=CommitRule)
    strict: bool = False
    on_commit: Callable[[Progress], None] = lambda progress: None
    on_read: Callable[[Progress], None] = lambda progress: None
    merge: Callable[[pa.Table], None] | None = None

    def __post_init__(self) -> None:
        self._progress = Progress()
        self._batch: list[tuple[NamedItem, Prepared]] = []
        self._done: list[Row] = []
        self._kept: dict[str, tuple[NamedItem, str]] = {}

    def write(self, items: Sequence[NamedItem], batch_size: int) -> Progress:
        """Write the items that are new or changed; with ``strict``, a `UserError` at an image that cannot be read."""
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: use 1 or more")
        last = time.monotonic()
        for named, prepared in prepare_all(items, self._prepare, threads=THREADS, ahead=batch_size):
            self._take(named, prepared)
            self.on_read(self._progress)
            if len(self._batch) >= batch_size:
                self._embed()
            # Only whole batches are pending, so that a run continued after a kill forms the same batches, and so the
            # same vectors to the bit.
            pending = len(self._done) + len(self._kept)
            if pending and (pending >= self.rule.rows or time.monotonic() - last >= self.rule.seconds):
                self._commit()
                last = time.monotonic()
        self._embed()
        self._commit()
        return self._progress

    def _prepare(self, named: NamedItem) -> Prepared:
        content_hash, _ = self.known.get(named.id, (None, b""))
        return prepare(named.item.image, content_hash, lambda image: self.embedder().transform.crop(image))

    def _take(self, named: NamedItem, prepared: Prepared | ImageError) -> None:
        progress = self._progress
        progress.read += 1
        if isinstance(prepared, ImageError):
            if self.strict:
                raise UserError(f"{named.path}: {prepared.reason}; repair it or remove it from the list") from prepared
            progress.refused[named.id] = Refused(named.path, prepared.reason)
        elif prepared.pixels is not None:
            self._batch.append((named, prepared))
        elif self.known[named.id][1] == signature(
            prepared.content_hash, named.item.label, named.path, named.item.metadata
        ):
            progress.unchanged += 1
        else:
            self._kept[named.id] = named, prepared.content_hash

    def _embed(self) -> None:
        if not self._batch:
            return
        form = self.embedder().inference_form(self.precision)
        pixels = [prepared.pixels for _, prepared in self._batch if prepared.pixels is not None]
        for (named, prepared), vector in zip(self._batch, form.embed_pixels(pixels), strict=True):
            self._done.append(Row(named, prepared.content_hash, vector, prepared.thumbnail))
        self._batch = []

    def _commit(self) -> None:
        """Write pending items in one commit: embedded images, and rows of which only label or metadata changed."""
        if not self._done and not self._kept:
            return
        rows = [*self._done]
        if self._kept:
            # A row that was deleted meanwhile stays deleted.
            old = self.store.rows_of(list(self._kept), ["id", "vector", "thumbnail"], newest=True)
            columns = old["id"].to_pylist(), vectors_of(old["vector"]), old["thumbnail"].to_pylist()
            rows += [Row(*self._kept[id], vector, thumbnail) for id, vector, thumbnail in zip(*columns, strict=True)]
        if rows:
            (self.merge or self.store.merge)(rows_table(rows, self.kinds, self.fingerprint))
        self._progress.written += len(rows)
        self._done, self._kept = [], {}
        self.on_commit(self._progress)
