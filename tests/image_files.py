"""Image files made by hand, for what Pillow does not write."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from unimetric.data.images import ImageError, decode_image

# Rows and columns differ everywhere, so that no turn of the picture looks like another.
PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)

ACROSS, DOWN = np.meshgrid(np.linspace(0, 255, 40), np.linspace(0, 200, 30))

SMOOTH = np.stack([ACROSS, DOWN, 255 - ACROSS], -1).astype(np.uint8)

# By the EXIF standard, orientation n says on which sides the stored rows and columns belong; this is what
# has to be done to the stored picture.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: a.transpose(1, 0, 2)[:, ::-1],
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: a.transpose(1, 0, 2)[::-1],
}


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image).astype(int)


def attempt(data: bytes) -> Image.Image | str:
    """The image, or the reason why there is none."""
    try:
        return decode_image(data)
    except ImageError as error:
        return error.reason


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(depth: int, colour: int, rows: Sequence[bytes], width: int, extra: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of these packed rows; ``extra`` and ``after`` are whole chunks before and after the pixels."""
    header = struct.pack(">IIBBBBB", width, len(rows), depth, colour, 0, 0, 0)
    data = png_chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + extra + data + after + png_chunk(b"IEND", b"")


def packed(samples: np.ndarray, depth: int) -> list[bytes]:
    """Rows of samples, [H, N], as bytes, high bits first."""
    if depth >= 8:
        return [row.astype(f">u{depth // 8}").tobytes() for row in samples]
    bits = np.unpackbits(samples.astype(np.uint8)[:, :, None], axis=2)[:, :, 8 - depth :]
    return [np.packbits(row).tobytes() for row in bits]


TiffTag = tuple[int, int, int, "bytes | int"]
"""Tag, type, count, and the value's bytes or the place in the file where it is said to be."""


def tiff(
    samples: np.ndarray, photometric: int, order: str = "<", tags: Sequence[TiffTag] = (), packed_rows: bytes = b""
) -> bytes:
    """A TIFF of one strip of unsigned samples, [H, W, C]; ``tags`` replace those of the same number."""
    height, width, count = samples.shape
    bits = samples.dtype.itemsize * 8
    data = packed_rows or samples.astype(samples.dtype.newbyteorder(order)).tobytes()

    def short(tag: int, *values: int) -> TiffTag:
        return tag, 3, len(values), struct.pack(f"{order}{len(values)}H", *values)

    entries = {entry[0]: entry for entry in (
        *(short(256, width), short(257, height), short(258, *[bits] * count), short(259, 1), short(262, photometric)),
        *(short(277, count), short(278, height), (279, 4, 1, struct.pack(order + "I", len(data)))),
        *tags,
    )}  # fmt: skip
    place = 8 + 2 + 12 * (len(entries) + 1) + 4
    values, table = b"", []
    for tag, kind, number, value in entries.values():
        if isinstance(value, int):
            field = struct.pack(order + "I", value)
        elif len(value) <= 4:
            field = value.ljust(4, b"\0")
        else:
            field = struct.pack(order + "I", place + len(values))
            values += value + b"\0" * (len(value) % 2)
        table.append(struct.pack(order + "HHI", tag, kind, number) + field)
    table.append(struct.pack(order + "HHII", 273, 4, 1, place + len(values)))
    table.sort(key=lambda entry: struct.unpack(order + "H", entry[:2]))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return head + struct.pack(order + "H", len(table)) + b"".join(table) + bytes(4) + values + data


def bmp(
    bits: int, rows: Sequence[bytes], width: int, *, header: int = 40, masks: Sequence[int] = (), **field: Any
) -> bytes:
    """A BMP of these packed rows, from top to bottom; ``field`` may be ``palette``, ``colours`` and ``top_down``."""
    palette: bytes = field.get("palette", b"")
    top_down = field.get("top_down", False)
    padded = [row + bytes(-len(row) % 4) for row in rows]
    data = b"".join(padded if top_down else reversed(padded))
    height = -len(rows) if top_down else len(rows)
    fields = (header, width, height, 1, bits, 3 if masks else 0, len(data), 0, 0, field.get("colours", 0), 0)
    more = b"".join(struct.pack("<I", mask) for mask in masks)
    head = struct.pack("<IiiHHIIiiII", *fields) + (more if header == 40 else more.ljust(header - 40, b"\0"))
    offset = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(data), 0, 0, offset) + head + palette + data


def riff(*chunks: tuple[bytes, bytes]) -> bytes:
    """A WebP file of these chunks."""
    body = b"WEBP" + b"".join(
        kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2) for kind, data in chunks
    )
    return b"RIFF" + struct.pack("<I", len(body)) + body
