"""TIFF: the tags that determine the pixels, and corrections of Pillow's mistakes."""

import struct
from io import BytesIO
from typing import IO, Any, TypeAlias

import numpy as np
from PIL import Image, ImagePalette

Piece: TypeAlias = "tuple[int, int] | bytes"
"""Beginning and end of a part of a file, or bytes that replace it."""

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _PLANES, _COLOUR_MAP = 274, 284, 320
_SAMPLES, _EXTRA_SAMPLES, _SAMPLE_FORMAT, _DNG = 277, 338, 339, 50706
_NEEDED = {*range(254, 260), *(262, 266, 273, 274, 277, 278, 279, 284, 292, 293, 301, 317, 320), *range(322, 326)}
_NEEDED |= {332, 333, 334, 336, 338, 339, 340, 341, 347, *range(512, 522), *range(529, 533), _DNG}

_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
"""Bytes of a value, by its type."""


def needed_tags(file: IO[bytes], size: int) -> tuple[list[Piece], bool]:
    """Return the file in pieces, with a first directory that Pillow can read.

    If a tag's value is outside the file, Pillow drops all tags after it, so tags that do not affect the pixels are
    removed from such a directory. Pillow misreads grey of more than 8 bits in which 0 is white, or refuses it, so the
    tag is changed as if 0 were black.

    Returns:
        The pieces, and True if 0 is white and was presented as black.
    """
    whole: list[Piece] = [(0, size)]
    head = file.read(16)
    order, big = ("<" if head[:1] == b"I" else ">"), 43 in head[2:4]
    entry = struct.Struct(order + ("HHQ8s" if big else "HHI4s"))
    number, place = struct.Struct(order + ("Q" if big else "H")), struct.Struct(order + ("Q" if big else "I"))
    start = place.unpack_from(head.ljust(16, b"\0"), place.size)[0]
    file.seek(min(start, size))
    count = number.unpack(file.read(number.size).ljust(number.size, b"\0"))[0]
    length = number.size + count * entry.size + place.size
    if start + length > size:
        return whole, False
    file.seek(start + number.size)
    table = file.read(count * entry.size)
    kept: list[tuple[int, int, int, bytes]] = []
    outside, bits, photometric = False, 1, None
    for tag, kind, values, value in entry.iter_unpack(table):
        if tag in _NEEDED and (tag != _ORIENTATION or (kind, values) == (3, 1)):
            bits = struct.unpack_from(order + "H", value)[0] if (tag, values) == (_BITS, 1) else bits
            photometric = len(kept) if tag == _PHOTOMETRIC and not any(value) else photometric
            kept.append((tag, kind, values, value))
        elif values * _SIZES.get(kind, 0) > len(value):
            outside |= place.unpack(value)[0] + values * _SIZES[kind] > size
    inverted = photometric is not None and bits > 8
    if inverted and photometric is not None:
        kept[photometric] = (_PHOTOMETRIC, 3, 1, struct.pack(order + "H", 1).ljust(place.size, b"\0"))
    if not outside and not inverted:
        return whole, False
    # The directory's place is that of the original one, which was longer; no other one follows.
    directory = number.pack(len(kept)) + b"".join(entry.pack(*values) for values in kept)
    return [(0, start), directory.ljust(length, b"\0"), (start + length, size)], inverted


def mark_inverted(image: Image.Image) -> None:
    """Let `is_inverted` be True for an image that `needed_tags` presented as if 0 were black."""
    _tags(image)[_PHOTOMETRIC] = 0


def is_raw(image: Image.Image) -> bool:
    """Return True for a camera's raw file (DNG), of which Pillow sees a thumbnail."""
    return _DNG in _tags(image)


def is_inverted(image: Image.Image) -> bool:
    """Return True if 0 is white in grey of more than 8 bits; Pillow inverts only the others."""
    return bool(_tags(image).get(_PHOTOMETRIC) == 0)


def has_no_polarity(image: Image.Image) -> bool:
    """Return True if no tag defines which end of grey is white; Pillow assumes 0, which is right only for faxes."""
    tags = _tags(image)
    return bool(tags and _PHOTOMETRIC not in tags and tags.get(_COMPRESSION) not in (2, 3, 4))


def is_signed(image: Image.Image) -> bool:
    """Return True if values above 127 of an 8-bit grey image are negative numbers."""
    return bool(image.mode == "L" and _tags(image).get(_SAMPLE_FORMAT) == (2,))


def has_undeclared_alpha(image: Image.Image) -> bool:
    """Return True if a fourth sample is taken for alpha, although no tag declares it."""
    return image.format == "TIFF" and _EXTRA_SAMPLES not in _tags(image)


def white_value(image: Image.Image) -> int:
    """Return the largest value of an image of integer grey: 4095 in 12 bits, otherwise 65535."""
    return 4095 if _tags(image).get(_BITS) == (12,) else 65535


def correct_samples(image: Image.Image) -> None:
    """Correct which samples Pillow is about to read, before it loads the image."""
    tags, tile = _tags(image), getattr(image, "tile", None)
    if not tile or not tags:
        return
    colours = tags.get(_COLOUR_MAP)
    if image.mode in ("P", "PA") and colours and max(colours) < 256:
        # Some programs write a palette of 8 bits, where 16 are due.
        image.palette = ImagePalette.raw("RGB;L", bytes(colours))
    bits = set(tags.get(_BITS, ()))
    if tile[0][0] == "raw" and tags.get(_PLANES) == 2 and bits in ({8}, {16}):
        _join_planes(image, (">" if tags.prefix == b"MM" else "<") + f"u{max(bits) // 8}")
    if tile[0][0] == "libtiff":
        # libtiff has swapped the bytes already.
        native = {"F;32BF": "F;32NF", "I;16BS": "I;16NS", "I;32BS": "I;32NS"}
        mode, *rest = tile[0][3]
        image.tile = [tile[0]._replace(args=(native.get(mode, mode), *rest))]  # type: ignore[attr-defined]


def _join_planes(image: Any, kind: str) -> None:
    """Present uncompressed planes as one, of 8 bits a channel; Pillow has no names for most of their layouts."""
    size = np.dtype(kind).itemsize
    parts = max(1, len(image.tile) // _tags(image).get(_SAMPLES, 1))
    if len(image.getbands()) == 1:
        image.tile = [part._replace(args=(image.mode, *part[3][1:])) for part in image.tile[:parts]]
        return
    # Of further samples, Pillow ignores those that no tag declares.
    layers = [image.tile[start : start + parts] for start in range(0, parts * len(image.getbands()), parts)]
    width, height = _tags(image)[_WIDTH], _tags(image)[_HEIGHT]  # before it is turned upright
    planes = np.zeros((height, width, len(layers)), np.uint8)
    for band, layer in enumerate(layers):
        for _, (left, top, right, bottom), offset, (_, stride, *_) in layer:
            row = stride or size * (right - left)
            image.fp.seek(offset)
            content = image.fp.read(row * (bottom - top))
            if len(content) < row * (bottom - top):
                raise EOFError
            values = np.frombuffer(content, kind).reshape(bottom - top, -1)[:, : right - left]
            planes[top:bottom, left:right, band] = values >> 8 * (size - 1)
    image.getexif()  # kept with the image, and read from its file otherwise
    image.fp = BytesIO(planes.tobytes())
    mode = "".join(layer[0][3][0][0] for layer in layers)
    image.tile = [image.tile[0]._replace(extents=(0, 0, width, height), offset=0, args=(mode, 0, 1))]


def _tags(image: Image.Image) -> Any:
    return getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
