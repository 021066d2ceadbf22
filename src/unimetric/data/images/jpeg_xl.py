"""JPEG XL, by the package pillow-jxl-plugin.

Its decoder makes all pixels at once, so the size is read from the header first.
"""

from collections.abc import Callable
from typing import IO

from PIL import Image, UnidentifiedImageError

_BARE = b"\xff\x0a"
_RATIOS = ((1, 1), (1, 1), (12, 10), (4, 3), (3, 2), (16, 9), (5, 4), (2, 1))
"""Width to height, by a number of three bits; 0 is none of them."""
_MOST_BOXES = 1000


def open_jpeg_xl(file: IO[bytes], check_size: Callable[[tuple[int, int]], None]) -> Image.Image:
    """Open an image. Its pixels are upright, or else, from a recompressed JPEG file, by its EXIF orientation.

    ``check_size`` raises an error for a size (width, height) that must not be decoded.

    Raises:
        UnidentifiedImageError: the header is damaged.
    """
    from pillow_jxl.JpegXLImagePlugin import JXLImageFile

    size = header_size(file)
    if size is None:
        raise UnidentifiedImageError
    check_size(size)
    file.seek(0)
    image: Image.Image = JXLImageFile(file)
    if not getattr(image, "jpeg", False):
        # The decoder has turned the pixels, and the format lets no EXIF orientation count.
        image.info.pop("exif", None)
    return image


def header_size(file: IO[bytes]) -> tuple[int, int] | None:
    """Return width and height from the header of an image, bare or in a container, or None if it is damaged.

    ISO/IEC 18181-1, SizeHeader; 18181-2, boxes.
    """
    file.seek(0)
    if file.read(2) == _BARE:
        return _size(file.read(16))
    file.seek(0)
    for _ in range(_MOST_BOXES):
        head = file.read(8)
        length, kind = int.from_bytes(head[:4], "big"), head[4:]
        done = 8
        if length == 1:
            length, done = int.from_bytes(file.read(8), "big"), 16
        if kind in (b"jxlc", b"jxlp"):
            # A part of the codestream begins with its number.
            content = file.read(24)[4 if kind == b"jxlp" else 0 :]
            return _size(content[2:]) if content.startswith(_BARE) else None
        if len(head) < 8 or length < done:
            return None
        file.seek(length - done, 1)
    return None


def _size(header: bytes) -> tuple[int, int] | None:
    bits, place = int.from_bytes(header, "little"), 0

    def take(count: int) -> int:
        nonlocal place
        place += count
        return bits >> (place - count) & ((1 << count) - 1)

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take((9, 13, 18, 30)[take(2)]) + 1

    height = side()
    ratio = take(3)
    width = side() if ratio == 0 else height * _RATIOS[ratio][0] // _RATIOS[ratio][1]
    return (width, height) if place <= 8 * len(header) else None
