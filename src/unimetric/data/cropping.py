"""The square of an image that a model sees: resized and cut out in Pillow, without torch."""

from __future__ import annotations

from PIL import Image

RESIZE_RATIO = 256 / 224
"""Shorter side after resizing, as a multiple of the input size: the field's 256 for 224."""

_LONGEST = 8
"""The longest side that is resized, as a multiple of the shorter one: the crop never sees beyond it."""


def resized_side(image_size: int) -> int:
    """The shorter side that an image is resized to before its centre is cropped to S = ``image_size``, in pixels."""
    return round(image_size * RESIZE_RATIO)


def resize_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """The image with a shorter side of ``side`` pixels, bicubic, its proportions kept, as torchvision does it."""
    short = min(image.size)
    width, height = (int(side * length / short) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)


def evaluation_crop(image: Image.Image, image_size: int, shorter_side: int | None = None) -> Image.Image:
    """The centre of an RGB image, S x S pixels, S = ``image_size``.

    Args:
        image: Any size.
        image_size: S.
        shorter_side: What its shorter side is resized to before; by default `resized_side`.
    """
    # Long thin images: a cap on the longer side keeps the resized image small.
    longest = _LONGEST * min(image.size)
    image = _centre(image, min(image.width, longest), min(image.height, longest))
    image = resize_shorter_side(image, resized_side(image_size) if shorter_side is None else shorter_side)
    return _centre(image, image_size, image_size)


def _centre(image: Image.Image, width: int, height: int) -> Image.Image:
    if image.size == (width, height):
        return image
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def contain(image: Image.Image, side: int) -> Image.Image:
    """Return the image resized to ``side`` pixels on its longer side, and to one at least on the other.

    >>> contain(Image.new("RGB", (3000, 2)), 256).size
    (256, 1)
    """
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
