"""Decode images of any kind batch by batch in threads, without torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unimetric.data.images import ImageError, array_to_rgb, decode_image, load_image, to_rgb
from unimetric.data.pool import in_order
from unimetric.errors import ArgumentError, UserError

ImageLike: TypeAlias = "str | Path | Image.Image | NDArray[Any] | Callable[[], Image.Image]"
"""Input of ``encode``. A function is called when its image is needed; it returns an upright RGB image, or raises
`ImageError`."""

Pixels = TypeVar("Pixels")


def listed_images(images: Iterable[ImageLike] | ImageLike) -> Iterable[ImageLike]:
    """Return the argument of ``encode``, which may be a single image, as several."""
    if isinstance(images, np.ndarray) and (images.ndim == 4 or (images.ndim == 1 and images.dtype.kind in "OTU")):
        return list(images)  # of pixels, or of paths, as a column of a table
    if isinstance(images, str | Path | Image.Image | np.ndarray) or callable(images):
        return [images]
    if isinstance(images, bytes | Mapping) or not isinstance(images, Iterable):
        raise ArgumentError(f"images is of type {type(images).__name__}: give paths, PIL images or arrays")
    return images


def prepared_batches(
    images: Iterable[ImageLike],
    prepare: Callable[[Image.Image], Pixels],
    batch_size: int,
    threads: int,
    skip_unreadable: bool = False,
) -> Iterator[tuple[list[Pixels], list[ImageError | None]]]:
    """Yield batches of readable images' pixels, each with None or the error of every image, and decode the next one.

    ``prepare`` turns an upright RGB image into its pixels, in one of the threads. Images are taken as they are needed.

    Raises:
        UserError: An image cannot be read and ``skip_unreadable`` is not set, or ``batch_size`` is below 1.
    """
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}: use 1 or more")
    position = 0
    decoded = _decoded(images, prepare, 2 * batch_size, threads)
    while results := list(islice(decoded, batch_size)):
        errors = [result if isinstance(result, ImageError) else None for result in results]
        for index, error in enumerate(errors, position):
            if error is not None and not skip_unreadable:
                where = "" if error.path is not None else f"images[{index}]: "
                raise UserError(f"{where}{error}; remove it from the list or replace it") from error
        position += len(errors)
        yield [result for result in results if not isinstance(result, ImageError)], errors


def _decoded(
    images: Iterable[ImageLike], prepare: Callable[[Image.Image], Pixels], ahead: int, threads: int
) -> Iterator[Pixels | ImageError]:
    """Decode in threads; an image that cannot be read becomes its error."""

    def loaded(image: ImageLike) -> ImageLike | ImageError:
        # In one thread: two that read the pixels of one opened file would cut each other's reading short.
        if isinstance(image, Image.Image):
            try:
                load_image(image)
            except ImageError as error:
                return error
        return image

    def decode(image: ImageLike | ImageError) -> Pixels | ImageError:
        if isinstance(image, ImageError):
            return image
        try:
            return prepare(_open(image))
        except ImageError as error:
            return error

    return in_order(decode, map(loaded, images), threads=threads, ahead=ahead)


def _open(image: ImageLike) -> Image.Image:
    if isinstance(image, str) and "://" in image:
        raise UserError(f"{image}: addresses are not read; download the image and give its path")
    if isinstance(image, str | Path):
        return decode_image(Path(image))
    if isinstance(image, Image.Image):
        return to_rgb(image)
    if isinstance(image, np.ndarray):
        return array_to_rgb(image)
    if callable(image):
        return image()
    raise UserError(f"images holds a {type(image).__name__}: use paths, PIL images or arrays")
