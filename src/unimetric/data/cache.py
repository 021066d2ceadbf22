"""A folder of images that were resized once, read through memory maps instead of decoding the sources again.

The images lie in Arrow IPC files of one record batch each, which are complete or absent: see `prepare_cache`. A row
holds the source's path and stamp, and the image. It counts only while the source's stamp is still the same.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from unimetric.data.catalog import identities
from unimetric.data.images import MAX_PIXELS, ImageError, decode_image
from unimetric.errors import UserError

SCHEMA = pa.schema(
    [
        ("path", pa.binary()),  # as the operating system has it, which need not be Unicode
        ("size", pa.int64()),
        ("modified", pa.int64()),
        ("changed", pa.int64()),
        ("digest", pa.binary()),
        ("kind", pa.string()),  # "encoded": a file's bytes; "raw": uint8 [height, width, 3]
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("image", pa.large_binary()),
    ]
)
"""Of the Arrow files. Their metadata say which version of this format they have, and the cache's `CacheKind`."""

VERSION = "1"
PATTERN = "images-*.arrow"
_ATTEMPTS = 5
_NOT_A_CACHE = "make one with: unimetric prepare SOURCE --out"


@dataclass(frozen=True)
class CacheKind:
    """How the images of a cache were made.

    Args:
        side: The shorter side in pixels that larger images were reduced to (bicubic).
        format: ``jpeg`` or ``raw``, see `prepare_cache`.
    """

    side: int
    format: str

    def __str__(self) -> str:
        return f"{self.format} of a shorter side of {self.side} pixels"


@dataclass(frozen=True)
class Stamp:
    """What says that a file is still the same: its bytes, and when content and inode were changed last, in ns.

    The time of the inode's change cannot be set, so that a file is noticed whose new content has the old one's size and
    time. It moves for other reasons too (a copy, new permissions); then the image is merely prepared again.
    """

    size: int
    modified: int
    changed: int

    @classmethod
    def of(cls, path: Path) -> Stamp:
        """The file's stamp now.

        Raises:
            OSError: the file cannot be looked at.
        """
        status = path.stat()
        return cls(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@dataclass(frozen=True)
class Shard:
    """One file of the cache: its rows, mapped into memory."""

    path: Path
    rows: pa.RecordBatch
    stamps: NDArray[np.int64]
    """Size, time of modification and of change of every row, [N, 3]."""

    def stamp(self, row: int) -> Stamp:
        """That of the source when the row was made."""
        return Stamp(*self.stamps[row].tolist())

    def value(self, column: str, row: int) -> Any:
        """A row's value in a column."""
        return self.rows.column(column)[row].as_py()


class ImageCache:
    """Reads a cache; several threads and processes may, also while it is being added to.

    Args:
        folder: Where it is.
        kind: How its images were made.
        shards: Its files in the order of their writing; a later row of a path counts more.
    """

    def __init__(self, folder: Path, kind: CacheKind, shards: Sequence[Shard]) -> None:
        self.folder, self.kind, self.shards = folder, kind, tuple(shards)
        self.places: dict[bytes, tuple[int, int]] = {
            path: (number, row)
            for number, shard in enumerate(self.shards)
            for row, path in enumerate(shard.rows.column("path").to_pylist())
        }

    @classmethod
    def open(cls, folder: Path) -> ImageCache:
        """Open a cache that ``unimetric prepare`` wrote.

        Raises:
            UserError: it is none, one of another version, or damaged.
        """
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: {_NOT_A_CACHE} {folder}")
        for _ in range(_ATTEMPTS):
            try:
                opened = [_open_shard(path) for path in sorted(folder.glob(PATTERN))]
            except FileNotFoundError:
                # Merged into a new file in this moment, by a preparation that runs beside.
                continue
            if not opened:
                raise UserError(f"{folder} holds no prepared images: {_NOT_A_CACHE} {folder}")
            kinds = {kind: shard.path.name for shard, kind in opened}
            if len(kinds) > 1:
                both = " and ".join(f"{name} ({kind})" for kind, name in kinds.items())
                raise UserError(f"{folder} holds images of two kinds, {both}: delete it and prepare it again")
            return cls(folder, next(iter(kinds)), [shard for shard, _ in opened])
        raise UserError(f"files of {folder} vanish while they are being opened: wait until its preparation has ended")

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        # A process that does not inherit the memory maps makes its own.
        return ImageCache.open, (self.folder,)

    def __len__(self) -> int:
        return len(self.places)

    def place(self, path: Path) -> tuple[Shard, int] | None:
        """The file and the row of an image; None if it is not here, or its source was changed or is out of reach."""
        found = self.places.get(cache_key(path))
        if found is None:
            return None
        shard, row = self.shards[found[0]], found[1]
        try:
            fresh = shard.stamp(row) == Stamp.of(path)
        except OSError:
            return None
        return (shard, row) if fresh else None

    def read(self, path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image | None:
        """The image, upright, of mode RGB; None where `place` is.

        Raises:
            ImageError: what is stored cannot be decoded.
        """
        place = self.place(path)
        if place is None:
            return None
        shard, row = place
        content = shard.rows.column("image")[row].as_buffer()
        if shard.value("kind", row) == "raw":
            size = (shard.value("width", row), shard.value("height", row))
            return Image.frombytes("RGB", size, content)
        try:
            return decode_image(content.to_pybytes(), max_pixels)
        except ImageError as error:
            raise ImageError(f"{error.reason} in the cache {self.folder}", path) from error


def cache_key(path: Path) -> bytes:
    """What an image is known by: the absolute path of its file, with links followed."""
    return os.fsencode(identities([path.absolute()])[0])


def _open_shard(path: Path) -> tuple[Shard, CacheKind]:
    try:
        # The map outlives the file's closing: any number of them leaves no file open.
        with pa.memory_map(str(path)) as file:
            reader = pa.ipc.open_file(file)
            about = {key.decode(): value.decode() for key, value in (reader.schema.metadata or {}).items()}
            if about.get("version") != VERSION or not reader.schema.equals(SCHEMA):
                raise UserError(f"{path} was written by another version: delete {path.parent} and prepare it again")
            rows = reader.get_batch(0)
            rows.validate(full=True)
        kind = CacheKind(int(about["side"]), about["format"])
    except FileNotFoundError:
        raise
    except PermissionError as error:
        raise UserError(f"cannot read {path}: no permission; choose a cache that you may read") from error
    except (OSError, pa.ArrowInvalid, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged: delete this file and prepare its images again") from error
    stamps = np.stack([rows.column(name).to_numpy() for name in ("size", "modified", "changed")], axis=1)
    return Shard(path, rows, stamps), kind
