"""Small pictures for pages: decoded, turned upright, shrunk, and carried inside the page."""

import base64
from functools import lru_cache
from pathlib import Path

from PIL import Image

from unimetric.data.cropping import contain
from unimetric.data.images import ImageError, decode_image, encode_image


@lru_cache(maxsize=4096)
def thumbnail(path: Path, side: int = 112) -> str | None:
    """A ``data:`` address of the image on a square of ``side`` pixels; None if it cannot be read.

    It contains neither the file's name nor other metadata (place, camera, colour profile).
    """
    image = square(path, side)
    if image is None:
        return None
    content = encode_image(image, "WEBP", quality=72)
    return f"data:image/webp;base64,{base64.b64encode(content).decode('ascii')}"


def square(path: Path, side: int) -> Image.Image | None:
    """The whole image on a square of ``side`` pixels, RGB, upright; None if it cannot be read."""
    try:
        image = decode_image(path)
    except ImageError:
        return None
    image = contain(image, side)
    # White, the background that transparent parts also get in the model's input.
    canvas = Image.new("RGB", (side, side), "white")
    canvas.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return canvas
