"""Resizing and centre crop of evaluation, in Pillow, without torch."""

from PIL import Image

RESIZE_RATIO = 256 / 224
"""Shorter side after resizing, as a multiple of the input size: the field's 256 for 224."""

_MOST_RESIZED = 16_000_000
"""Pixels of the largest image that is resized whole; of longer, thin ones, only the crop is."""


def resized_side(image_size: int) -> int:
    """Return the shorter side in pixels that an image is resized to, of whose centre S = ``image_size`` is cut out."""
    return round(image_size * RESIZE_RATIO)


def resize_shorter_side(image: Image.Image, side: int) -> Image.Image:
    """Return the image with a shorter side of ``side`` pixels, bicubic, its proportions kept as torchvision does."""
    return image.resize(_resized(image, side), Image.Resampling.BICUBIC)


def evaluation_crop(image: Image.Image, image_size: int, shorter_side: int | None = None) -> Image.Image:
    """Return the centre of an RGB image, S x S pixels, S = ``image_size``, of any size.

    The shorter side is resized first, by default to `resized_side`. The result is torchvision's ``Resize`` (bicubic,
    antialiased) and ``CenterCrop``. Images whose resized form has more than 16 million pixels (244 times as long as
    wide for an S of 224) are not resized whole: there, a value may differ by 2 of 255.
    """
    width, height = _resized(image, resized_side(image_size) if shorter_side is None else shorter_side)
    left, top = round((width - image_size) / 2), round((height - image_size) / 2)
    if width * height <= _MOST_RESIZED:
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        return resized.crop((left, top, left + image_size, top + image_size))
    # Rows after columns, as when all is resized. Bicubic weights reach two pixels of the larger scale.
    across, down = image.width / width, image.height / height
    reach = 2 * max(down, 1) + 1
    first, last = max(0, int(top * down - reach)), min(image.height, int((top + image_size) * down + reach) + 1)
    band = image.crop((0, first, image.width, last))
    columns = (left * across, 0.0, (left + image_size) * across, float(band.height))
    band = band.resize((image_size, band.height), Image.Resampling.BICUBIC, columns)
    rows = (0.0, top * down - first, float(image_size), (top + image_size) * down - first)
    return band.resize((image_size, image_size), Image.Resampling.BICUBIC, rows)


def _resized(image: Image.Image, side: int) -> tuple[int, int]:
    short = min(image.size)
    return int(side * image.width / short), int(side * image.height / short)


def contain(image: Image.Image, side: int) -> Image.Image:
    """Return the image resized to ``side`` pixels on its longer side, and to one at least on the other.

    >>> contain(Image.new("RGB", (3000, 2)), 256).size
    (256, 1)
    """
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
