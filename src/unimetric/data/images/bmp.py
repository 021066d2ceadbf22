"""BMP files whose header defines the bits of each channel ("bit fields"); Pillow reads only some layouts of them."""

import struct
from collections.abc import Callable
from typing import IO

import numpy as np
from PIL import Image

from unimetric.data.images.pixels import ImageError

_MASKS = 54
"""Place of the masks in the file, within the header or behind it."""
_BLOCK = 1 << 20
"""Pixels that are converted at once."""


def open_bit_fields(file: IO[bytes], head: bytes, check_size: Callable[[tuple[int, int]], None]) -> Image.Image | None:
    """Decode a BMP file of 16 or 32 bits with masks: RGB, or RGBA with one for alpha; an `ImageError` if truncated.

    Args:
        file: The content.
        head: Its first bytes, 70 at least.
        check_size: Raises for a size, width and height, that is not to be decoded.

    Returns:
        The image, or None for a file of another kind, or with masks that have gaps or overlap.
    """
    if not head.startswith(b"BM") or len(head) < _MASKS + 16:
        return None
    offset, header, width, height, _, bits, compression = struct.unpack_from("<IIiiHHI", head, 10)
    masks = list(struct.unpack_from("<4I", head, _MASKS))
    if header < 56 and compression != 6:
        masks[3] = 0  # what follows the three masks is the first pixel
    if header < 40 or bits not in (16, 32) or compression not in (3, 6) or not _are_fields(masks, bits) or width <= 0:
        return None
    check_size((width, abs(height)))
    stride = (bits * width + 31) // 32 * 4
    pixels = np.empty((abs(height), width, 4 if masks[3] else 3), np.uint8)
    file.seek(offset)
    step = max(1, _BLOCK // width)
    for start in range(0, len(pixels), step):
        block = pixels[start : start + step]
        data = file.read(len(block) * stride)
        if len(data) < len(block) * stride:
            raise ImageError("truncated", code="truncated_image")
        values = np.frombuffer(data, f"<u{bits // 8}").reshape(len(block), -1)[:, :width].astype(np.int64)
        for channel in range(pixels.shape[2]):
            block[:, :, channel] = _scaled(values, masks[channel])
    image = Image.fromarray(pixels if height < 0 else pixels[::-1])
    image.format = "BMP"
    return image


def _are_fields(masks: list[int], bits: int) -> bool:
    """Return True if every mask is one run of bits, and no two overlap."""
    together = masks[0] | masks[1] | masks[2] | masks[3]
    runs = all((mask + (mask & -mask)) & mask == 0 for mask in masks)
    return runs and 0 < together < 1 << bits and sum(map(int.bit_count, masks)) == together.bit_count()


def _scaled(values: np.ndarray, mask: int) -> np.ndarray:
    """Return a channel's values, scaled to 0 to 255."""
    if not mask:
        return np.zeros_like(values)
    top = mask // (mask & -mask)
    return ((values & mask) // (mask & -mask) * 510 + top) // (2 * top)
