"""Images from a folder of resized ones, or decoded from their files, in full or reduced.

Every image of such a folder is a file of its own, named by its source's path, size and times: it is found only while
the source is unchanged. `prepare_cache` writes them.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

from unimetric.data.catalog import identities
from unimetric.data.cropping import resized_side
from unimetric.data.images import ImageError, decode_image, image_file
from unimetric.errors import UserError
from unimetric.files import explain_os_error, parse_json, user_path

ABOUT = "cache.json"
"""Holds the cache's `CacheKind`."""
COPIES = "??/*-*"
"""Pattern of the images' files below the folder."""
_NOT_A_CACHE = "make one with: unimetric prepare SOURCE --out"


@dataclass(frozen=True)
class CacheKind:
    """Shorter side, in pixels, of the larger images (bicubic), and format: ``jpeg`` or ``raw``, see `prepare_cache`."""

    side: int
    format: Literal["jpeg", "raw"]

    def __str__(self) -> str:
        return f"images of {self.side} pixels in the format {self.format}"


@dataclass(frozen=True)
class ImageCache:
    """A cache; several threads and processes may read it, also while images are added."""

    folder: Path
    kind: CacheKind

    @classmethod
    def open(cls, folder: Path) -> "ImageCache":
        """Open a cache that ``unimetric prepare`` wrote; a `UserError` if it is not one, or damaged."""
        if not folder.is_dir():
            raise UserError(f"{folder} is not a folder: {_NOT_A_CACHE} {folder}")
        path = folder / ABOUT
        if not path.exists():
            raise UserError(f"{folder} holds no prepared images: {_NOT_A_CACHE} {folder}")
        try:
            with explain_os_error(path, "read"):
                about = parse_json(path.read_text(encoding="utf-8"))
            return cls(folder, CacheKind(int(about["side"]), about["format"]))
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: delete {folder} and prepare it again") from error

    def copy_of(self, path: Path) -> Path:
        """Return the place of an image's resized copy, if it was prepared; an `OSError` if the image is gone."""
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
        """Return the image, upright, of mode RGB; None if it is not in the cache; an `ImageError` if damaged."""
        if not self.holds(path):
            return None
        try:
            return decode_image(self.copy_of(path))
        except ImageError as error:
            raise ImageError(f"{error.reason} in the cache {self.folder}; delete it", path, error.code) from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@dataclass(frozen=True)
class ImageReader:
    """Reads images through a cache; an image that is not in it, or was changed, is decoded from its file.

    Args:
        cache: The cache, or None.
        at_least: Let JPEG files be decoded at 1/2, 1/4 or 1/8 of their size, as long as the shorter side keeps this
            many pixels; None decodes in full.
    """

    cache: ImageCache | None = None
    at_least: int | None = None

    def __call__(self, path: Path) -> Image.Image:
        """Return the image, upright, of mode RGB; an `ImageError` if it cannot be read."""
        image = None if self.cache is None else self.cache.read(path)
        return decode_image(path, at_least=self.at_least) if image is None else image

    def notes(self, paths: Iterable[Path]) -> list[str]:
        """Return a note with the number of images that the cache does not hold; none if it holds all."""
        distinct = list(dict.fromkeys(paths))
        missing = [path for path in distinct if self.cache is not None and not self.cache.holds(path)]
        if self.cache is None or not missing:
            return []
        return [
            f"{len(missing)} of {len(distinct)} images are not in the cache {self.cache.folder} or were changed since, "
            f"and are read from their files; the first is {missing[0]}; prepare them with: unimetric prepare"
        ]


def image_reader(cache: str | None, reduced: bool, image_size: int, option: str) -> ImageReader:
    """Return the reader for a cache, or for none; a `UserError` for one of images that are too small.

    JPEG files are decoded at a ``reduced`` size, not below twice the size that an input of S pixels is cut from;
    ``option`` names the cache in messages.
    """
    needed = resized_side(image_size)
    at_least = 2 * needed if reduced else None
    if cache is None:
        return ImageReader(None, at_least)
    opened = ImageCache.open(user_path(cache))
    if opened.kind.side < needed:
        raise UserError(
            f"--{option} is {cache}: its images have a shorter side of {opened.kind.side} pixels, but an input of "
            f"{image_size} is cut from {needed}; prepare another one with --side {needed} or more"
        )
    return ImageReader(opened, at_least)
