"""A folder of images that were resized once, read instead of decoding the sources again.

Every image is a file of its own, named by its source's path, size and times: it is found only while the source is
unchanged. `prepare_cache` writes them.
"""

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from unimetric.data.catalog import identities
from unimetric.data.images import ImageError, decode_image, image_file
from unimetric.errors import UserError
from unimetric.files import explain_os_error

ABOUT = "cache.json"
"""Holds the cache's `CacheKind`."""
COPIES = "??/*-*"
"""Pattern of the images' files below the folder."""
_NOT_A_CACHE = "make one with: unimetric prepare SOURCE --out"


@dataclass(frozen=True)
class CacheKind:
    """Side and format of a cache's images.

    Args:
        side: The shorter side in pixels that larger images were reduced to (bicubic).
        format: ``jpeg`` or ``raw``, see `prepare_cache`.
    """

    side: int
    format: Literal["jpeg", "raw"]

    def __str__(self) -> str:
        return f"{self.format} of a shorter side of {self.side} pixels"


@dataclass(frozen=True)
class ImageCache:
    """A cache; several threads and processes may read it, also while images are added.

    Args:
        folder: Its folder.
        kind: Storage of its images, ``jpeg`` or ``raw``.
    """

    folder: Path
    kind: CacheKind

    @classmethod
    def open(cls, folder: Path) -> "ImageCache":
        """Open a cache that ``unimetric prepare`` wrote.

        Raises:
            UserError: It is none, or damaged.
        """
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: {_NOT_A_CACHE} {folder}")
        path = folder / ABOUT
        if not path.exists():
            raise UserError(f"{folder} holds no prepared images: {_NOT_A_CACHE} {folder}")
        try:
            with explain_os_error(path, "read"):
                about = json.loads(path.read_text(encoding="utf-8"))
            return cls(folder, CacheKind(int(about["side"]), about["format"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: delete {folder} and prepare it again") from error

    def copy_of(self, path: Path) -> Path:
        """Return the place of an image's resized copy, which exists if it was prepared.

        Raises:
            OSError: The image's file is out of reach.
        """
        status = image_file(path).stat()
        # The time of the inode's change cannot be set: new content is noticed even under the old size and time.
        stamp = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        source = _digest(os.fsencode(identities([path.absolute()])[0]))
        return self.folder / source[:2] / f"{source[2:]}-{_digest(stamp.encode())}"

    def holds(self, path: Path) -> bool:
        """Return True if the image was prepared and has not been changed since."""
        try:
            return self.copy_of(path).exists()
        except OSError:
            return False

    def read(self, path: Path) -> Image.Image | None:
        """Return the image, upright, of mode RGB; None unless the cache holds it.

        Raises:
            ImageError: The stored copy cannot be decoded.
        """
        if not self.holds(path):
            return None
        try:
            return decode_image(self.copy_of(path))
        except ImageError as error:
            raise ImageError(f"{error.reason} in the cache {self.folder}; delete it", path, error.code) from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()
