"""From a file's bytes to what is written of it: its hash, the model's pixels, a thumbnail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from PIL import Image

from unimetric.data.cropping import contain
from unimetric.data.images import ImageError, decode_image
from unimetric.data.pool import in_order
from unimetric.files import sha256_of_file

if TYPE_CHECKING:
    from torch import Tensor

THUMBNAIL_SIDE = 256
"""Pixels of a thumbnail's longer side, at most."""

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """An image that is ready to be embedded.

    Attributes:
        content_hash: SHA-256 of its bytes, in hexadecimal.
        pixels: uint8 [3, S, S]; None where the content is the known one.
        thumbnail: a JPEG; None where the content is the known one.
    """

    content_hash: str
    pixels: Tensor | None
    thumbnail: bytes | None


def prepare(image: Path | bytes, known_hash: str | None, crop: Callable[[Image.Image], Tensor]) -> Prepared:
    """Hash an image; decode it as well, unless its content is the known one.

    Raises:
        ImageError: it cannot be read.
    """
    # The hash first: were the file replaced in between, the next run would see the new hash and read it again.
    content_hash = hash_of(image)
    if content_hash == known_hash:
        return Prepared(content_hash, None, None)
    decoded = decode_image(image)
    return Prepared(content_hash, crop(decoded), jpeg(decoded))


def hash_of(image: Path | bytes) -> str:
    """SHA-256 of an image's bytes, in hexadecimal.

    Raises:
        ImageError: the file cannot be read.
    """
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    try:
        if image.is_file():
            return sha256_of_file(image)
    except OSError as error:
        reason = "no permission" if isinstance(error, PermissionError) else f"cannot be read ({error.strerror})"
        raise ImageError(reason, image) from error
    raise ImageError("file not found", image)


def jpeg(image: Image.Image, side: int = THUMBNAIL_SIDE) -> bytes:
    """A picture of at most ``side`` pixels a side, never enlarged; nothing else of its file is in it."""
    if max(image.size) > side:
        image = contain(image, side)
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


@dataclass(frozen=True)
class Outcome(Generic[T]):
    """What became of one task: its result, or why the image cannot be read."""

    task: T
    prepared: Prepared | ImageError


def prepare_all(
    tasks: Iterable[T],
    work: Callable[[T], Prepared],
    *,
    threads: int,
    ahead: int,
) -> Iterator[Outcome[T]]:
    """Do the work for every task in threads, ``ahead`` tasks before they are asked for, and in their order."""

    def attempt(task: T) -> Outcome[T]:
        try:
            return Outcome(task, work(task))
        except ImageError as error:
            return Outcome(task, error)

    # A batch under way beside the one that is asked for.
    return in_order(attempt, tasks, threads=threads, ahead=2 * ahead)
