"""Encode images."""

from io import BytesIO
from typing import Any

from PIL import Image


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the content of an image file.

    Pillow's own saving to a file of the disk does not notice a write that is cut off, as the last one before a disk is
    full.

    Args:
        image: The image.
        kind: Pillow's name of the format.
        options: Pillow's options of the format.
    """
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
