"""Embed new and changed items, and write them commit by commit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from unimetric.cpu import available_cores
from unimetric.data.images import ImageError
from unimetric.errors import UserError
from unimetric.search.items import Refused
from unimetric.search.preparation import Prepared, prepare, prepare_all
from unimetric.search.rows import NamedItem, rows_table, signature

if TYPE_CHECKING:
    from torch import Tensor

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
    refused: list[Refused] = field(default_factory=list)
    refused_ids: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class CommitRule:
    """Commit once so many rows are pending, or the last commit was so many seconds ago."""

    rows: float = 1024
    seconds: float = 10.0


ONCE = CommitRule(math.inf, math.inf)
"""A single commit at the end."""


class RowTarget(Protocol):
    """The part of a `Store` that a `Writer` uses."""

    @property
    def vector_size(self) -> int:
        """E."""

    def rows_of(self, ids: Sequence[str], columns: Sequence[str], *, newest: bool = False) -> pa.Table:
        """As in `Store`."""

    def merge(self, rows: pa.Table) -> None:
        """As in `Store`."""


@dataclass
class Writer:
    """Writes items to a store.

    Args:
        store: The database.
        embedder: Returns the model; called when it is first needed.
        precision: As for `Embedder.encode`.
        fingerprint: The model's.
        kinds: The metadata columns of all items, from `metadata_kinds`.
        known: Content hash and `signature` of the rows that exist, by id.
        rule: When to commit.
        strict: Raise at an image that cannot be read.
        on_commit: Called after every commit.
        on_read: Called after every item.
    """

    store: RowTarget
    embedder: Callable[[], Embedder]
    precision: str
    fingerprint: str
    kinds: Mapping[str, str]
    known: Mapping[str, tuple[str, bytes]]
    rule: CommitRule = field(default_factory=CommitRule)
    strict: bool = False
    on_commit: Callable[[Progress], None] = lambda progress: None
    on_read: Callable[[Progress], None] = lambda progress: None

    def __post_init__(self) -> None:
        self._progress = Progress()
        self._batch: list[tuple[NamedItem, Prepared]] = []
        self._done: list[tuple[NamedItem, Prepared]] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._kept: list[tuple[NamedItem, str]] = []

    def write(self, items: Sequence[NamedItem], batch_size: int) -> Progress:
        """Write the items that are new or changed.

        Raises:
            UserError: an image cannot be read and ``strict`` is set, or the database cannot be written.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}: use 1 or more")
        last = time.monotonic()
        for outcome in prepare_all(items, self._prepare, threads=THREADS, ahead=batch_size):
            self._take(outcome.task, outcome.prepared)
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
        return prepare(named.item.image, content_hash, self._crop)

    def _crop(self, image: Image.Image) -> Tensor:
        return self.embedder().transform.crop(image)

    def _take(self, named: NamedItem, prepared: Prepared | ImageError) -> None:
        progress = self._progress
        progress.read += 1
        if isinstance(prepared, ImageError):
            if self.strict:
                raise UserError(f"{named.path}: {prepared.reason}; repair it or remove it from the list") from prepared
            progress.refused.append(Refused(named.path, prepared.reason))
            progress.refused_ids.add(named.id)
        elif prepared.pixels is not None:
            self._batch.append((named, prepared))
        elif self.known[named.id][1] == signature(
            prepared.content_hash, named.item.label, named.path, named.item.metadata
        ):
            progress.unchanged += 1
        else:
            self._kept.append((named, prepared.content_hash))

    def _embed(self) -> None:
        if not self._batch:
            return
        form = self.embedder().inference_form(self.precision)
        pixels = [prepared.pixels for _, prepared in self._batch if prepared.pixels is not None]
        self._vectors.append(form.embed_pixels(pixels))
        # Release the pixels of pending items.
        self._done += [(named, Prepared(p.content_hash, None, p.thumbnail)) for named, p in self._batch]
        self._batch = []

    def _commit(self) -> None:
        """Write pending items in one commit: embedded images, and rows of which only label or metadata changed."""
        if not self._done and not self._kept:
            return
        old = self.store.rows_of([named.id for named, _ in self._kept], ["id", "vector", "thumbnail"], newest=True)
        places = {id: place for place, id in enumerate(old["id"].to_pylist())}
        # A row that was deleted meanwhile stays deleted.
        kept = [(named, content_hash) for named, content_hash in self._kept if named.id in places]
        order = [places[named.id] for named, _ in kept]
        size = self.store.vector_size
        old_vectors = old["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(-1, size)
        old_thumbnails = old["thumbnail"].to_pylist()
        table = rows_table(
            [named for named, _ in self._done] + [named for named, _ in kept],
            [prepared.content_hash for _, prepared in self._done] + [content_hash for _, content_hash in kept],
            np.concatenate([*self._vectors, old_vectors[order]]),
            [prepared.thumbnail for _, prepared in self._done] + [old_thumbnails[place] for place in order],
            self.kinds,
            self.fingerprint,
        )
        if len(table):
            self.store.merge(table)
        self._progress.written += len(table)
        self._done, self._vectors, self._kept = [], [], []
        self.on_commit(self._progress)
