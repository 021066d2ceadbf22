"""Preparation of a file for indexing: its hash, the model's pixels and a thumbnail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from PIL import Image

from unimetric.data.cropping import contain
from unimetric.data.images import Box, ImageError, decode_image, encode_image, file_reason, split_box
from unimetric.data.pool import in_order
from unimetric.files import sha256_of_file

if TYPE_CHECKING:
    from torch import Tensor

THUMBNAIL_SIDE = 256
"""Pixels of a thumbnail's longer side, at most."""

T = TypeVar("T")


@dataclass(frozen=True)
class Prepared:
    """An image that is ready to be embedded: the hash of its content, pixels uint8 [3, S, S], and a thumbnail, a JPEG.

    Pixels and thumbnail are None if the content is unchanged.
    """

    content_hash: str
    pixels: Tensor | None
    thumbnail: bytes | None


def prepare(image: Path | bytes, known_hash: str | None, crop: Callable[[Image.Image], Tensor]) -> Prepared:
    """Hash an image, and decode it unless its hash is the known one; an `ImageError` if it cannot be read."""
    # Hash first: if the file is replaced in between, the next run sees another hash and reads it again.
    content_hash = hash_of(image)
    if content_hash == known_hash:
        return Prepared(content_hash, None, None)
    decoded = decode_image(image)
    return Prepared(content_hash, crop(decoded), jpeg(decoded))


def hash_of(image: Path | bytes) -> str:
    """Return the SHA-256 of an image's bytes, and of its box if it has one, in hexadecimal, or raise `ImageError`."""
    if isinstance(image, bytes):
        return hashlib.sha256(image).hexdigest()
    try:
        file, box = split_box(image)
        if file.is_file():
            return with_box_hash(sha256_of_file(file), box)
    except OSError as error:
        raise ImageError(file_reason(error), image) from error
    raise ImageError("file not found", image)


def with_box_hash(content: str, box: Box | None) -> str:
    """Return the hash of an object in a picture, of the picture's hash and the box; without a box the picture's."""
    return content if box is None else hashlib.sha256(f"{content} {box}".encode()).hexdigest()


def jpeg(image: Image.Image) -> bytes:
    """Return a JPEG of at most `THUMBNAIL_SIDE` pixels a side, never enlarged, without the metadata of the file."""
    if max(image.size) > THUMBNAIL_SIDE:
        image = contain(image, THUMBNAIL_SIDE)
    return encode_image(image, "JPEG", quality=80)


def prepare_all(
    tasks: Iterable[T], work: Callable[[T], Prepared], *, threads: int, ahead: int
) -> Iterator[tuple[T, Prepared | ImageError]]:
    """Yield every task in order with its result, or the error of an image that cannot be read.

    Threads work up to ``ahead`` tasks in advance, and on as many again.
    """

    def attempt(task: T) -> tuple[T, Prepared | ImageError]:
        try:
            return task, work(task)
        except ImageError as error:
            return task, error

    return in_order(attempt, tasks, threads=threads, ahead=2 * ahead)
