"""Write a cache of images that were resized once, see `ImageCache`; what a killed run wrote is kept, and it goes on."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from unimetric.data.cache import PATTERN, SCHEMA, VERSION, CacheKind, ImageCache, Shard, Stamp, cache_key
from unimetric.data.cropping import resize_shorter_side
from unimetric.data.images import ImageError, decode_image, file_reason
from unimetric.data.pool import in_order
from unimetric.errors import UserError
from unimetric.files import explain_os_error, make_folder, write_atomically

FORMATS = ("jpeg", "raw")
SHARD_BYTES = 256_000_000
"""Bytes of images in one file, about. All of them are in memory while it is written."""
SHARD_SECONDS = 10.0
"""Work that a killed process loses, at most."""
_QUALITY = 95

Row = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """What became of the images."""

    written: int
    """Images that are new in the cache or were changed."""
    unchanged: int
    """Images that it held just so."""
    refused: tuple[ImageError, ...]
    """Images that cannot be read; each has its path and the reason."""
    images: int
    """Images that the cache holds now."""
    bytes: int
    """Size of its files now."""
    source_bytes: int
    """Size of the image files that were asked for and can be read."""


def prepare_cache(
    paths: Sequence[Path],
    folder: Path,
    kind: CacheKind,
    *,
    threads: int,
    strict: bool = False,
    on_read: Callable[[int], None] = lambda read: None,
) -> Prepared:
    """Bring a cache up to date with images; those of which it has the present content are not decoded again.

    Args:
        paths: The images. One file that is reached by several paths is prepared once.
        folder: Where the cache is, or is to be.
        kind: How to make the images. ``jpeg``: those that have to be reduced are stored with quality 95, the others as
            their files are. ``raw``: pixels, exactly as resized.
        threads: How many to prepare at a time.
        strict: Stop at the first image that cannot be read; what was prepared before is kept.
        on_read: Called with the number of images done.

    Raises:
        UserError: the folder cannot be written, holds images of another kind, or is being written by another process;
            or an image cannot be read and ``strict`` is set.
    """
    check_kind(kind)
    with _writing(make_folder(folder)):
        for leftover in folder.glob(f".{PATTERN}.*"):
            leftover.unlink(missing_ok=True)
        cache = _existing(folder, kind)
        distinct = list({cache_key(path): path for path in paths}.values())
        writer = _Writer(folder, kind)
        refused: list[ImageError] = []
        unchanged = source_bytes = 0
        try:
            outcomes = in_order(lambda path: _prepare(path, cache), distinct, threads=threads, ahead=4 * threads)
            for done, outcome in enumerate(outcomes, 1):
                if isinstance(outcome, ImageError):
                    if strict:
                        raise UserError(f"{outcome}; --strict is set: remove or mend the file") from outcome
                    refused.append(outcome)
                else:
                    source_bytes += outcome["size"]
                    if "image" in outcome:
                        writer.add(outcome)
                    else:
                        unchanged += 1
                on_read(done)
        finally:
            # What was prepared is kept, whatever stops it.
            writer.flush()
        _merge(folder, kind)
        files = list(folder.glob(PATTERN))
        images = len(ImageCache.open(folder)) if files else 0
        size = sum(file.stat().st_size for file in files)
    return Prepared(writer.written, unchanged, tuple(refused), images, size, source_bytes)


def check_kind(kind: CacheKind) -> None:
    """Check what was asked for.

    Raises:
        UserError: an unknown format, or a side below 1.
    """
    if kind.format not in FORMATS:
        raise UserError(f"--format is {kind.format!r}: use {' or '.join(FORMATS)}")
    if kind.side < 1:
        raise UserError(f"--side is {kind.side}: use a positive number of pixels, 256 for an input of 224")


def _existing(folder: Path, kind: CacheKind) -> ImageCache:
    if not any(folder.glob(PATTERN)):
        return ImageCache(folder, kind, ())
    cache = ImageCache.open(folder)
    if cache.kind != kind:
        raise UserError(f"{folder} holds {cache.kind}, not {kind}: choose another --out, or delete it first")
    return cache


def _prepare(path: Path, cache: ImageCache) -> Row | ImageError:
    """The image's row; without an image if the cache has it already."""
    try:
        # Before the content is read: what changes meanwhile is noticed.
        stamp = Stamp.of(path)
        if cache.place(path) is not None:
            return {"size": stamp.size}
        if not path.is_file():
            decode_image(path)  # says what it is instead
        content = path.read_bytes()
    except ImageError as error:
        return error
    except (OSError, ValueError) as error:
        return ImageError(file_reason(error), path)
    digest = hashlib.blake2b(content, digest_size=16).digest()
    key = cache_key(path)
    row: Row = {"path": key, "size": stamp.size, "modified": stamp.modified, "changed": stamp.changed}
    known = cache.places.get(key)
    if known is not None:
        shard, number = cache.shards[known[0]], known[1]
        if shard.value("digest", number) == digest:
            stored = {name: shard.value(name, number) for name in ("kind", "width", "height", "image")}
            return {**row, "digest": digest, **stored}
    try:
        # By its path, for the reasons that depend on a file's name.
        return {**row, "digest": digest, **_stored(decode_image(path), content, cache.kind)}
    except ImageError as error:
        return error


def _stored(image: Image.Image, content: bytes, kind: CacheKind) -> Row:
    """What is kept of a decoded image whose file has this content."""
    small = min(image.size) <= kind.side
    reduced = image if small else resize_shorter_side(image, kind.side)
    row: Row = {"width": reduced.width, "height": reduced.height}
    # A file larger than its pixels holds something else: more frames, or noise. And JPEG has a longest side.
    larger = small and len(content) > 3 * reduced.width * reduced.height
    if kind.format == "raw" or larger or (not small and max(reduced.size) > 65_500):
        return {**row, "kind": "raw", "image": reduced.tobytes()}
    if small:
        return {**row, "kind": "encoded", "image": content}
    buffer = BytesIO()
    reduced.save(buffer, "JPEG", quality=_QUALITY)
    return {**row, "kind": "encoded", "image": buffer.getvalue()}


class _Writer:
    """Collects rows, and writes them as one complete file when they are many or some time has passed."""

    def __init__(self, folder: Path, kind: CacheKind) -> None:
        self.folder, self.written = folder, 0
        about = {"version": VERSION, "side": str(kind.side), "format": kind.format}
        self._schema = SCHEMA.with_metadata(about)
        self._rows: list[Row] = []
        self._bytes, self._since = 0, time.monotonic()

    def add(self, row: Row) -> None:
        self._rows.append(row)
        self._bytes += len(row["image"])
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._since >= SHARD_SECONDS:
            self.flush()

    def flush(self) -> None:
        if self._rows:
            batch = pa.RecordBatch.from_pylist(self._rows, schema=self._schema)
            last = max((int(path.stem.split("-")[1]) for path in self.folder.glob(PATTERN)), default=0)
            write_atomically(self.folder / f"images-{last + 1:06}.arrow", lambda path: _write(path, batch))
            self.written += len(self._rows)
        self._rows, self._bytes, self._since = [], 0, time.monotonic()


def _write(path: Path, batch: pa.RecordBatch) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as writer:
        writer.write(batch)


def _merge(folder: Path, kind: CacheKind) -> None:
    """Copy the rows that count out of small files, and of those with many that do not, into new ones; delete these.

    Killed in between, rows are there twice, which changes nothing, and the next preparation merges again.
    """
    if not any(folder.glob(PATTERN)):
        return
    cache = ImageCache.open(folder)
    counting: list[list[int]] = [[] for _ in cache.shards]
    for number, row in cache.places.values():
        counting[number].append(row)
    emptied = [(shard, rows) for shard, rows in zip(cache.shards, counting, strict=True) if _wants_merging(shard, rows)]
    if len(emptied) < 2 and all(len(rows) == shard.rows.num_rows for shard, rows in emptied):
        return
    writer = _Writer(folder, kind)
    for shard, rows in emptied:
        for row in sorted(rows):
            writer.add({name: shard.value(name, row) for name in SCHEMA.names})
    writer.flush()
    for shard, _ in emptied:
        with explain_os_error(shard.path, "delete"):
            shard.path.unlink(missing_ok=True)


def _wants_merging(shard: Shard, counting: list[int]) -> bool:
    return bool(2 * len(counting) <= shard.rows.num_rows or shard.rows.nbytes < SHARD_BYTES // 2)


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Hold the folder for writing; the system lets go of it when the process ends, however that is."""
    path = folder / ".lock"
    with explain_os_error(path, "open"):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            _lock(handle)
        except OSError as error:
            raise UserError(
                f"{folder} is being written by another process: wait for it, or choose another --out"
            ) from error
        yield
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    if sys.platform == "win32":
        import msvcrt

        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
