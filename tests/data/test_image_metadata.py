"""Metadata do not decide whether an image can be read: what is wrong in them costs no pixels, and no memory."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from image_files import attempt, encode, pixels, png, png_chunk, riff, tiff
from unimetric.data.images import decode_image

RGB = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)
ROWS = [row.tobytes() for row in RGB]
ORIENTATION_6 = b"MM\0*\0\0\0\x08\0\1\x01\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"


def keeps(data: bytes, expected: np.ndarray = RGB) -> None:
    decoded = attempt(data)
    assert not isinstance(decoded, str), decoded
    np.testing.assert_array_equal(pixels(decoded), expected)


def broken(chunk: bytes) -> bytes:
    """A chunk with a wrong checksum."""
    return chunk[:-4] + bytes(byte ^ 255 for byte in chunk[-4:])


PNG_CHUNKS = {
    "2 MB of zTXt": png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(2_000_000))),
    "2 MB of iTXt": png_chunk(b"iTXt", b"Comment\0\1\0\0\0" + zlib.compress(bytes(2_000_000))),
    "2 MB of ICC": png_chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(2_000_000))),
    "70 MB of text": png_chunk(b"tEXt", b"a\0" + bytes(10_000_000)) * 7,
    "iCCP of an unknown method": png_chunk(b"iCCP", b"profile\0\7" + zlib.compress(b"profile")),
    "iCCP without a name": png_chunk(b"iCCP", b"profile"),
    "empty iCCP": png_chunk(b"iCCP", b""),
    "text of no text": png_chunk(b"tEXt", b"\xff" * 10) + png_chunk(b"zTXt", b"a\0\7b") + png_chunk(b"iTXt", b"a"),
    "a broken APNG": png_chunk(b"acTL", b"\0") + png_chunk(b"fcTL", b"") + png_chunk(b"fdAT", b"x"),
    **{f"short {kind.decode()}": png_chunk(kind, b"\1") for kind in (b"gAMA", b"pHYs", b"cHRM", b"sRGB", b"sBIT")},
    **{
        f"{kind.decode()} with a wrong checksum": broken(png_chunk(kind, b"some\0thing that is long enough for it"))
        for kind in (b"tEXt", b"gAMA", b"pHYs", b"cHRM", b"tIME", b"iCCP", b"vpAg")
    },
}


@pytest.mark.parametrize("name", PNG_CHUNKS)
def test_png(name: str) -> None:
    keeps(png(8, 2, ROWS, 9, extra=PNG_CHUNKS[name]))
    keeps(png(8, 2, ROWS, 9, after=PNG_CHUNKS[name]))
    keeps(png(8, 2, ROWS, 9, extra=png_chunk(b"eXIf", ORIENTATION_6) + PNG_CHUNKS[name]), np.rot90(RGB, -1))


def test_critical_chunks_trns_and_exif_of_png_must_be_right() -> None:
    good = png(8, 2, ROWS, 9)
    for kind in (b"IHDR", b"IDAT"):
        at = good.index(kind) + 4
        assert isinstance(attempt(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]), str)
    for chunk in (png_chunk(b"tRNS", bytes(6)), png_chunk(b"eXIf", ORIENTATION_6)):
        assert isinstance(attempt(png(8, 2, ROWS, 9, extra=broken(chunk))), str)


def segment(marker: int, data: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


JPEG_DATA = [
    *(
        b"",
        b"x",
        b"JFIF",
        b"JFIF\0",
        b"Exif",
        b"Exif\0\0",
        b"Adobe",
        b"Adobe\0\0",
        b"ICC_PROFILE\0",
        b"ICC_PROFILE\0\1",
    ),
    *(b"ICC_PROFILE\0\0\0", b"ICC_PROFILE\0\1\2abc", b"MPF\0", b"MPF\0garbage", b"FPXR\0", b"Photoshop 3.0\0"),
    *(b"Photoshop 3.0\x008BIM\x03\xed\0\0\xff\xff\xff\xff", b"http://ns.adobe.com/xap/1.0/\0\xff", b"\xff" * 65_533),
]


@pytest.mark.parametrize("marker", [*range(0xE0, 0xF0), 0xFE])
def test_jpeg(marker: int) -> None:
    data = encode(Image.fromarray(RGB), "JPEG")
    seen = pixels(decode_image(data))
    for content in JPEG_DATA:
        keeps(data[:2] + segment(marker, content) + data[2:], seen)
        keeps(data[:20] + segment(marker, content) * 3 + data[20:], seen)


def test_jpeg_with_bytes_between_its_segments_and_after_its_end() -> None:
    data = encode(Image.fromarray(RGB), "JPEG")
    seen = pixels(decode_image(data))
    keeps(data[:20] + b"junk\xff\0junk" + bytes(20_000) + data[20:] + b"more" * 1000, seen)


def test_jpeg_is_turned_by_its_first_exif_block() -> None:
    data = encode(Image.fromarray(RGB), "JPEG")
    seen = pixels(decode_image(data))
    exif = segment(0xE1, b"Exif\0\0" + ORIENTATION_6)
    other = segment(0xE1, b"Exif\0\0" + ORIENTATION_6.replace(b"\0\6", b"\0\3"))
    keeps(data[:20] + segment(0xE2, b"ICC_PROFILE\0") + exif + other + data[20:], np.rot90(seen, -1))


def test_the_first_picture_of_an_mpo_is_taken() -> None:
    pictures = [Image.fromarray(RGB), Image.new("RGB", (9, 6), "red")]
    data = encode(pictures[0], "MPO", save_all=True, append_images=pictures[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 2
    keeps(data, pixels(decode_image(encode(pictures[0], "JPEG"))))


def test_webp() -> None:
    whole = encode(Image.fromarray(RGB), "WEBP", lossless=True)
    picture = (b"VP8L", whole[20 : 20 + int.from_bytes(whole[16:20], "little")])

    def canvas(flags: int) -> tuple[bytes, bytes]:
        return b"VP8X", bytes([flags, 0, 0, 0, 8, 0, 0, 5, 0, 0])

    junk, exif = (b"JUNK", b"junk!"), (b"EXIF", ORIENTATION_6)
    for chunks in (
        *([junk, picture], [picture, junk], [canvas(0x2C), picture], [canvas(0), (b"ICCP", b"x"), picture]),
        *([canvas(0x24), picture, (b"XMP ", bytes(2_000_000))], [canvas(0x20), picture, (b"ICCP", b"x")]),
    ):
        keeps(riff(*chunks))
        keeps(riff(*chunks)[:4] + b"\xff\xff\0\0" + riff(*chunks)[8:])  # a size that is too large
    keeps(riff(canvas(8), picture, (b"EXIF", b"garbage")))
    keeps(riff(canvas(0x0C), junk, picture, exif, (b"XMP ", b"x")), np.rot90(RGB, -1))
    keeps(riff(canvas(8), picture, exif)[:-3])  # cut off after all pixels


def test_gif() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    data = encode(palette, "GIF", transparency=3)
    seen = pixels(decode_image(data))
    at = data.index(b"!\xf9")
    comment = b"!\xfe" + (b"\xff" + bytes(255)) * 20_000 + b"\0"
    others = [comment, b"!\xff\x0bNETSCAPE2.0\1\7\0", b"!\xff\0", b"!\x01\x0c" + bytes(12) + b"\0", b"!\xce\3abc\0"]
    for extension in others:
        keeps(data[:at] + extension + data[at:], seen)
        keeps(data[:at] + data[at : at + 8] + extension + data[at + 8 :], seen)


TIFF_TAGS = [
    *((270, 2, 100, 10**8), (270, 2, 2**31, 100), (34675, 7, 1000, 10**8), (270, 99, 5, 8), (282, 5, 1, 10**8)),
    *((34665, 4, 1, 8), (34853, 4, 1, 10**8), (33723, 4, 1000, 10**8), (34377, 7, 10, b"8BIM123456")),
    *(
        (700, 1, 1000, 10**8),
        (274, 3, 100, 10**8),
        (274, 2, 4, b"abc\0"),
        (274, 3, 1, b"\x63\0"),
        (65000, 7, 10**6, 10**8),
    ),
    *((306, 2, 20, 10**8), (305, 2, 6, b"\xff\xfe\xfd\xfcab"), (296, 2, 4, b"abc\0")),
]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("entry", TIFF_TAGS, ids=lambda entry: f"{entry[0]}-{entry[3]!r}"[:20])
def test_tiff(entry: tuple[int, int, int, bytes | int], compressed: bool) -> None:
    tags = [entry, (259, 3, 1, b"\x08\0")] if compressed else [entry]
    keeps(tiff(RGB, 2, "<", tags, zlib.compress(RGB.tobytes()) if compressed else b""))
    alpha = np.concatenate([RGB, np.full((6, 9, 1), 255, np.uint8)], axis=2)
    keeps(tiff(alpha, 2, "<", [entry, (338, 3, 1, b"\2\0")]))  # tags after the bad one are kept


def test_random_exif_raises_nothing_else() -> None:
    rng = random.Random(0)
    jpeg, still = encode(Image.fromarray(RGB), "JPEG"), {(9, 6), (6, 9)}
    for _ in range(300):
        head = rng.choice([b"MM\0*\0\0\0\x08", b"II*\0\x08\0\0\0"]) + struct.pack(
            rng.choice("<>") + "H", rng.choice([1, 3, 500])
        )
        exif = head + bytes(rng.choice([0, 1, 2, 3, 5, 12, 255, rng.randrange(256)]) for _ in range(rng.randrange(200)))
        for data in (
            jpeg[:20] + segment(0xE1, b"Exif\0\0" + exif) + jpeg[20:],
            png(8, 2, ROWS, 9, extra=png_chunk(b"eXIf", exif)),
        ):
            decoded = attempt(data)
            assert not isinstance(decoded, str), decoded
            assert decoded.size in still


MEASURED = """
import resource, sys
from unimetric.data.images import decode_image
decode_image(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
decode_image(sys.argv[2])
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_metadata_take_no_memory(tmp_path: Path) -> None:
    """100 MB beside a small picture, in a child process whose peak is measured."""
    jpeg = encode(Image.fromarray(RGB), "JPEG")
    contents = {
        "png": png(8, 2, ROWS, 9, extra=png_chunk(b"tEXt", b"a\0" + bytes(100_000_000))),
        "jpg": jpeg[:20] + segment(0xE2, bytes(65_000)) * 1500 + jpeg[20:] + bytes(20_000_000),
    }
    for ending, content in contents.items():
        small, large = tmp_path / f"small.{ending}", tmp_path / f"large.{ending}"
        small.write_bytes(encode(Image.fromarray(RGB), "PNG" if ending == "png" else "JPEG"))
        large.write_bytes(content)
        command = [sys.executable, "-c", MEASURED, str(small), str(large)]
        grown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=dict(os.environ))
        assert int(grown.stdout) * (1 if sys.platform == "darwin" else 1024) < 30_000_000
