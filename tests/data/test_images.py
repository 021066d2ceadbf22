from __future__ import annotations

import io
import os
import pickle
import struct
import subprocess
import sys
import warnings
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image, features

from image_files import attempt, encode, pixels, png, png_chunk, tiff
from properties import examples
from unimetric.data.images import SUFFIXES, UNSUPPORTED, ImageError, array_to_rgb, decode_image, is_image_name, to_rgb
from unimetric.data.images.jpeg_xl import header_size
from unimetric.errors import UserError

# Rows and columns differ everywhere, so that no turn of the picture looks like another.
PICTURE = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
ACROSS, DOWN = np.meshgrid(np.linspace(0, 255, 40), np.linspace(0, 200, 30))
SMOOTH = np.stack([ACROSS, DOWN, 255 - ACROSS], -1).astype(np.uint8)


def one_pixel(image: Image.Image) -> tuple[int, ...]:
    return tuple(pixels(to_rgb(image))[0, 0])


@pytest.mark.parametrize(
    ("format", "options"),
    [
        ("PNG", {}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_lzw"}),
        ("PPM", {}),
        ("WEBP", {"lossless": True}),
    ],
)
def test_lossless_formats_give_the_pixels_back(format: str, options: dict[str, Any], tmp_path: Path) -> None:
    data = encode(Image.fromarray(PICTURE), format, **options)
    path = tmp_path / "bird.x"  # the content decides, not the name
    path.write_bytes(data)
    for source in (data, path, str(path)):
        np.testing.assert_array_equal(pixels(decode_image(source)), PICTURE)


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
def test_lossy_formats_come_close(format: str) -> None:
    if format == "AVIF" and ".avif" not in SUFFIXES:
        pytest.skip("this Pillow reads no AVIF")
    decoded = pixels(decode_image(encode(Image.fromarray(SMOOTH), format, quality=95)))
    assert np.abs(decoded - SMOOTH).mean() < 4


@pytest.mark.parametrize(
    ("mode", "value", "expected"),
    [
        ("1", 1, (255, 255, 255)),
        ("L", 77, (77, 77, 77)),
        ("LA", (100, 2), (254, 254, 254)),
        ("LA", (100, 255), (100, 100, 100)),
        ("LA", (100, 51), (224, 224, 224)),  # 100 * 0.2 + 255 * 0.8
        ("La", (20, 51), (224, 224, 224)),  # the same, premultiplied
        ("RGB", (1, 2, 3), (1, 2, 3)),
        ("RGBX", (1, 2, 3, 0), (1, 2, 3)),
        ("RGBA", (10, 20, 30, 2), (253, 253, 253)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("RGBA", (0, 255, 50, 51), (204, 255, 214)),
        ("RGBa", (0, 51, 10, 51), (204, 255, 214)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("CMYK", (0, 255, 255, 0), (255, 0, 0)),
        ("CMYK", (0, 0, 0, 255), (0, 0, 0)),
        ("YCbCr", (128, 128, 128), (128, 128, 128)),
        ("YCbCr", (76, 85, 255), (254, 0, 0)),
        ("HSV", (0, 255, 255), (255, 0, 0)),
        ("I", 65535, (255, 255, 255)),
        ("I", 257 * 90, (90, 90, 90)),
        ("I;16", 65535, (255, 255, 255)),
        ("I;16", 257 * 90 + 100, (90, 90, 90)),
        ("I;16B", 257 * 90, (90, 90, 90)),
        ("I;16L", 257 * 90, (90, 90, 90)),
        ("F", 1.0, (255, 255, 255)),
        ("F", 0.2, (51, 51, 51)),
        ("F", 200.0, (200, 200, 200)),
        ("F", 257.0 * 90, (90, 90, 90)),
    ],
)
def test_modes(mode: str, value: Any, expected: tuple[int, ...]) -> None:
    # A value in the big-endian mode is written through bytes, for Pillow's own setters differ there.
    image = (
        Image.frombytes("I;16B", (2, 2), struct.pack(">4H", *[value] * 4))
        if mode == "I;16B"
        else Image.new(mode, (2, 2), value)
    )
    before = image.tobytes()
    assert np.abs(np.subtract(one_pixel(image), expected)).max() <= 1
    assert image.mode == mode
    assert image.tobytes() == before


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow has no colour management")
def test_lab() -> None:
    assert np.abs(np.subtract(one_pixel(Image.new("LAB", (2, 2), (255, 128, 128))), 255)).max() <= 2


@pytest.mark.parametrize(
    ("mode", "values"),
    [
        ("F", [0, np.nan]),
        ("F", [-1, 0]),
        ("F", [0, np.inf]),
        ("F", [0, 1e6]),
        ("I", [-5, 3]),
        ("I", [0, 1 << 20]),
    ],
)
def test_grey_without_a_known_range_is_refused(mode: str, values: list[float]) -> None:
    image = Image.fromarray(np.array([values], dtype=np.int32 if mode == "I" else np.float32))
    assert image.mode == mode
    with pytest.raises(ImageError, match="outside 0 to 65535"):
        to_rgb(image)


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff", b"\xff\x00"])
def test_palette(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.putdata([0, 1, 2])
    np.testing.assert_array_equal(pixels(to_rgb(image))[0], [[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    data = encode(image, "PNG", transparency=transparency)
    assert Image.open(io.BytesIO(data)).mode == "P"
    np.testing.assert_array_equal(pixels(decode_image(data))[0], [[10, 20, 30], [255] * 3, [70, 80, 90]])


def test_palette_with_alpha_of_its_own() -> None:
    image = Image.new("PA", (1, 1))
    image.putpalette([10, 20, 30])
    image.putpixel((0, 0), (0, 2))
    assert min(one_pixel(image)) >= 253
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30, 2], "RGBA")
    assert min(one_pixel(image)) >= 253


def test_a_user_image_is_not_changed_by_converting_its_transparency() -> None:
    image = Image.new("P", (1, 1))
    image.putpalette([10, 20, 30])
    image.info["transparency"] = b"\x09"
    to_rgb(image)
    assert image.info == {"transparency": b"\x09"}
    del image.info["transparency"]
    assert image.convert("RGBA").getpixel((0, 0)) == (10, 20, 30, 255)


def test_every_grey_of_16_bits_is_rounded_to_the_nearest() -> None:
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.rint(values / 65535 * 255)
    np.testing.assert_array_equal(pixels(to_rgb(Image.fromarray(values)))[..., 1], expected)
    np.testing.assert_array_equal(pixels(to_rgb(Image.fromarray(values.astype(np.int32))))[..., 1], expected)
    np.testing.assert_array_equal(pixels(array_to_rgb(values))[..., 1], expected)


def test_png_with_one_transparent_colour_of_16_bits() -> None:
    grey = png(16, 0, [struct.pack(">3H", 0, 0x8080, 0xFFFF)], 3, png_chunk(b"tRNS", struct.pack(">H", 0)))
    assert pixels(decode_image(grey))[0, :, 0].tolist() == [255, 128, 255]
    transparent = png_chunk(b"tRNS", struct.pack(">3H", 0x1234, 0x5678, 0x9ABC))
    colours = png(16, 2, [struct.pack(">6H", 0x1234, 0x5678, 0x9ABC, 0x3400, 0x7800, 0xBC00)], 2, transparent)
    assert pixels(decode_image(colours))[0].tolist() == [[255, 255, 255], [0x34, 0x78, 0xBC]]


def test_16_bit_files_are_scaled_not_clipped() -> None:
    values = np.array([[0, 257 * 3, 257 * 200, 65535]], dtype=np.uint16)
    for data in (
        encode(Image.fromarray(values), "PNG"),
        encode(Image.fromarray(values), "TIFF"),
        b"P5 4 1 65535\n" + values.astype(">u2").tobytes(),
    ):
        assert pixels(decode_image(data))[0, :, 0].tolist() == [0, 3, 200, 255]


def test_cmyk_and_ycbcr_files() -> None:
    white = decode_image(encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"))
    assert pixels(white).min() >= 254
    red = decode_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert pixels(red)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_taken(format: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert pixels(decode_image(data))[0, 0].tolist() == [255, 0, 0]


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


@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation(orientation: int, format: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(Image.fromarray(PICTURE), format, exif=exif, **options)
    upright = decode_image(data)
    np.testing.assert_array_equal(pixels(upright), UPRIGHT[orientation](PICTURE))
    np.testing.assert_array_equal(pixels(to_rgb(upright)), pixels(upright))
    np.testing.assert_array_equal(pixels(to_rgb(Image.open(io.BytesIO(data)))), pixels(upright))


@pytest.mark.parametrize("orientation", UPRIGHT)
def test_exif_orientation_of_jpeg(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = pixels(decode_image(encode(Image.fromarray(SMOOTH), "JPEG", exif=exif, quality=95)))
    assert decoded.shape == UPRIGHT[orientation](SMOOTH).shape
    assert np.abs(decoded - UPRIGHT[orientation](SMOOTH)).mean() < 4


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\xff\xff", b"Exif\0\0"])
def test_a_damaged_exif_block_does_not_cost_the_image(exif: bytes) -> None:
    data = encode(Image.fromarray(SMOOTH), "JPEG", exif=exif)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decode_image(data).size == (40, 30)


def encodings() -> list[tuple[str, dict[str, Any]]]:
    cases: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {}),
        ("JPEG", {"progressive": True}),
        ("PNG", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("GIF", {}),
        ("GIF", {"interlace": 0}),
        ("BMP", {}),
        ("TIFF", {}),
        ("TIFF", {"compression": "tiff_deflate"}),
        ("PPM", {}),
    ]
    return cases + ([("AVIF", {})] if ".avif" in SUFFIXES else [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("format", "options"), encodings())
def test_a_truncated_file_is_an_error_at_every_length(format: str, options: dict[str, Any]) -> None:
    """Except where only a trailer is cut off, and all pixels are there."""
    data = encode(Image.fromarray(SMOOTH), format, **options)
    whole = pixels(decode_image(data))
    for length in {*range(64), *range(64, len(data), 13), *range(len(data) - 40, len(data))}:
        result = attempt(data[:length])
        if isinstance(result, str):
            reasons = ("empty file", "not an image", "damaged header", "truncated", "damaged")
            assert result.startswith(reasons)
        else:
            assert length > len(data) - 25
            np.testing.assert_array_equal(pixels(result), whole)


def test_truncated_is_said() -> None:
    for format in ("JPEG", "PNG", "GIF", "BMP", "PPM"):
        data = encode(Image.fromarray(SMOOTH), format)
        with pytest.raises(ImageError) as caught:
            decode_image(data[: int(len(data) * 0.8)])
        assert caught.value.reason == "truncated"


@pytest.mark.filterwarnings("ignore")
@settings(max_examples=examples(300), deadline=None)
@given(st.data())
def test_damaged_bytes_raise_no_other_error(data: st.DataObject) -> None:
    format, options = data.draw(st.sampled_from(encodings()))
    content = bytearray(encode(Image.fromarray(PICTURE), format, **options))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        decoded = decode_image(bytes(content), max_pixels=1_000_000)
    except ImageError as error:
        assert error.reason
    else:
        assert decoded.mode == "RGB"


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_no_image(content: bytes) -> None:
    with pytest.raises(ImageError):
        decode_image(content)


@pytest.mark.parametrize(
    "error",
    [
        *(SyntaxError, struct.error, ValueError, OSError, MemoryError, EOFError, zlib.error, OverflowError),
        *(KeyError, Image.DecompressionBombError, IndexError, RecursionError, AssertionError),
    ],
)
def test_every_error_of_the_decoder_becomes_an_image_error(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Image.Image) -> None:
        raise error("Image size (7 pixels) exceeds limit of 5 pixels")

    data = encode(Image.fromarray(PICTURE), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load_prepare", fail)
    with pytest.raises(ImageError) as caught:
        decode_image(data)
    reasons = {
        MemoryError: "not enough memory",
        Image.DecompressionBombError: "too many pixels (7 > 5)",
    }
    reasons |= dict.fromkeys((EOFError, struct.error, zlib.error), "truncated")
    assert caught.value.reason == reasons.get(error, "damaged")
    assert isinstance(caught.value.__cause__, error)


def test_the_pixel_limit_holds_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    start = png(8, 0, [b"\0"], 1)
    size = b"IHDR" + struct.pack(">II", 10_001, 10_000) + start[24:29]
    bomb = start[:12] + size + struct.pack(">I", zlib.crc32(size)) + start[33:]
    limit = Image.MAX_IMAGE_PIXELS
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(ImageError) as caught:
        decode_image(bomb)
    assert caught.value.reason == "too many pixels (100010000 > 100000000)"
    assert limit == Image.MAX_IMAGE_PIXELS
    small = encode(Image.fromarray(PICTURE), "PNG")
    assert decode_image(small, max_pixels=35).size == (7, 5)
    with pytest.raises(ImageError, match=r"too many pixels \(35 > 34\)"):
        decode_image(small, max_pixels=34)


def test_pillows_own_limit_is_given_in_the_same_words() -> None:
    start = png(8, 0, [b"\0"], 1)
    size = b"IHDR" + struct.pack(">II", 60_000, 60_000) + start[24:29]
    with pytest.raises(ImageError, match=r"too many pixels \(3600000000 > \d+\)"):
        decode_image(start[:12] + size + struct.pack(">I", zlib.crc32(size)) + start[33:])


def test_reasons_for_files(tmp_path: Path) -> None:
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture at all")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "page.jpg").write_text("<!DOCTYPE html><html><body>Not found</body></html>")
    (tmp_path / "pointer.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    (tmp_path / "script.jpg").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    reasons = {
        "empty.jpg": "empty file",
        "text.jpg": "not an image",
        "script.jpg": "EPS is not supported; convert it to JPEG or PNG",  # would start Ghostscript
        "page.jpg": "a web page, not an image; download the file again",
        "pointer.png": "a Git LFS pointer, not an image; fetch the file with: git lfs pull",
        "folder.jpg": "a folder, not a file",
        "absent.jpg": "file not found",
        "text.jpg/x.jpg": "file not found",
        "nul\0.jpg": "file not found",
        "x" * 300: "cannot be read (File name too long)",
    }
    for name, reason in reasons.items():
        with pytest.raises(ImageError) as caught:
            decode_image(tmp_path / name)
        assert (caught.value.reason, caught.value.path) == (reason, tmp_path / name)
    with pytest.raises(ImageError, match="empty file"):
        decode_image(b"")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(ImageError, match="not a regular file"):
        decode_image(tmp_path / "pipe.jpg")


def test_no_permission(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.fromarray(PICTURE), "PNG"))
    path.chmod(0)
    if os.access(path, os.R_OK):
        pytest.skip("this user, root, may read everything")
    with pytest.raises(ImageError) as caught:
        decode_image(path)
    assert caught.value.reason == "no permission"


def test_the_file_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "bird.png"
    path.write_bytes(encode(Image.fromarray(PICTURE), "PNG"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        image = decode_image(path)
    path.unlink()
    np.testing.assert_array_equal(pixels(image), PICTURE)


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(ImageError("truncated", Path("a.jpg"), "truncated_image")))
    assert (error.reason, error.path, error.code) == ("truncated", Path("a.jpg"), "truncated_image")
    assert str(error) == "a.jpg: truncated"
    assert str(ImageError("truncated")) == "truncated"


def test_image_names() -> None:
    for name in ("a.jpg", "a.JPEG", "a.b.png", "x/y.WebP", "é.tiff", "a.jfif", "a.pgm", "a\nb.gif", "a.HEIC", "a.eps"):
        assert is_image_name(name)
        assert is_image_name(Path(name))
    for name in ("a.txt", "jpg", ".jpg", "a.jpg.txt", "a.pdf", ""):
        assert not is_image_name(name)


@given(hnp.arrays(np.uint8, hnp.array_shapes(min_dims=3, max_dims=3, max_side=6).map(lambda s: (*s[:2], 3))))
def test_uint8_arrays_pass_unchanged(array: np.ndarray) -> None:
    np.testing.assert_array_equal(pixels(array_to_rgb(array)), array)
    np.testing.assert_array_equal(pixels(array_to_rgb(array[::-1, ::-1])), array[::-1, ::-1])
    np.testing.assert_array_equal(pixels(array_to_rgb(array / np.float32(255))), array)
    np.testing.assert_array_equal(pixels(array_to_rgb(array.astype(np.uint16) * 257)), array)
    np.testing.assert_array_equal(pixels(array_to_rgb(array.astype(">u2") * np.uint16(257))), array)


def test_shapes_of_arrays() -> None:
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(pixels(array_to_rgb(grey)), expected)
    np.testing.assert_array_equal(pixels(array_to_rgb(grey[:, :, None])), expected)
    alpha = np.array([[[10, 20, 30, 255], [10, 20, 30, 0]]], dtype=np.uint8)
    np.testing.assert_array_equal(pixels(array_to_rgb(alpha))[0], [[10, 20, 30], [255, 255, 255]])
    np.testing.assert_array_equal(pixels(array_to_rgb(grey > 150)), np.where(expected > 150, 255, 0))
    np.testing.assert_array_equal(pixels(array_to_rgb(np.array([[0.5]], dtype=np.float16))), [[[128] * 3]])


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), r"\(3, 8, 8\).*move the channel axis"),
        (np.zeros((8, 8, 2), np.uint8), r"\(8, 8, 2\)"),
        (np.zeros(8, np.uint8), r"\(8,\)"),
        (np.zeros((1, 2, 3, 3), np.uint8), r"\(1, 2, 3, 3\)"),
        (np.zeros((0, 5, 3), np.uint8), "no pixels"),
        (np.zeros((2, 2), np.int64), "int64.*uint8"),
        (np.zeros((2, 2), np.complex64), "complex64"),
        (np.array([["a"]]), "<U1"),
        (np.full((2, 2), 200.0), "float64 with values from 200 to 200.*scale floats to 0 to 1"),
        (np.full((2, 2), -0.1), "values from -0.1"),
        (np.full((2, 2), np.nan), "values from nan"),
    ],
)
def test_other_arrays_are_refused(array: np.ndarray, message: str) -> None:
    with pytest.raises(UserError, match=message):
        array_to_rgb(array)


@pytest.mark.parametrize(
    "ending", ["jpg", "jpe", "jfif", "mpo", "png", "apng", "dib", "tif", "pnm", "PPM", "pbm", "pgm"]
)
def test_other_endings_of_the_formats_are_those_of_images(ending: str, tmp_path: Path) -> None:
    formats = {"png": "PNG", "apng": "PNG", "dib": "BMP", "tif": "TIFF", "pnm": "PPM", "ppm": "PPM"}
    image = Image.fromarray(PICTURE)
    if ending in ("pbm", "pgm"):
        formats |= {ending: "PPM"}
        image = image.convert("1" if ending == "pbm" else "L")
    path = tmp_path / f"a.{ending}"
    path.write_bytes(encode(image, formats.get(ending.lower(), "JPEG")))
    assert is_image_name(path)
    assert path.suffix.lower() in SUFFIXES
    assert decode_image(path).size == (7, 5)


OTHER_FORMATS = {
    "jp2": ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n\0\0\0\x14ftypjp2 "),
    "j2k": ("JPEG 2000", b"\xff\x4f\xff\x51\0\x2f"),
    "jxr": ("JPEG XR", b"II\xbc\1\x20"),
    "psd": ("PSD", b"8BPS\0\1"),
    "ico": ("ICO", b"\0\0\1\0\1\0"),
    "pcx": ("PCX", b"\x0a\5\1\x08"),
    "sgi": ("SGI", b"\1\xda\1\1\0\3"),
    "icns": ("ICNS", b"icns\0\0"),
    "xpm": ("XPM", b"/* XPM */"),
    "wmf": ("WMF", b"\xd7\xcd\xc6\x9a"),
    "emf": ("WMF", b"\1\0\0\0" + bytes(36) + b" EMF"),
    "djvu": ("DjVu", b"AT&TFORM"),
    "dcm": ("DICOM", bytes(128) + b"DICM"),
    "fits": ("FITS", b"SIMPLE  =                    T"),
    "svg": ("SVG", b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>'),
    "cr3": ("camera raw (CR3)", b"\0\0\0\x18ftypcrx \0\0\0\1crx isom"),
    "raf": ("camera raw (RAF)", b"FUJIFILMCCD-RAW 0201"),
}


@pytest.mark.parametrize("ending", OTHER_FORMATS)
def test_a_format_that_is_not_supported_is_named_with_the_remedy(ending: str, tmp_path: Path) -> None:
    name, content = OTHER_FORMATS[ending]
    reason = f"{name} is not supported; convert it to JPEG or PNG"
    path, misnamed = tmp_path / f"a.{ending}", tmp_path / "b.jpg"
    for file, data in ((path, b"some bytes of that format"), (path, content), (misnamed, content + bytes(500))):
        file.write_bytes(data)
        with pytest.raises(ImageError) as caught:
            decode_image(file)
        assert (caught.value.reason, caught.value.path) == (reason, file)
    path.write_bytes(b"")
    with pytest.raises(ImageError, match="empty file"):
        decode_image(path)
    Image.fromarray(PICTURE).save(path, "PNG")  # misnamed only
    np.testing.assert_array_equal(pixels(decode_image(path)), PICTURE)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (
            b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
            "an XML text, not an image; download the file",
        ),
        (b'{"error": "not found"}', "a JSON text, not an image; download the file again"),
        (b"PK\3\4" + bytes(50), "an archive, not an image; unpack it"),
        (b"\x1f\x8b\x08" + bytes(50), "an archive, not an image; unpack it"),
        (b"\x93NUMPY\1\0", "a NumPy array, not an image; save it as PNG"),
        (b"RIFF\0\0\0\0AVI LIST", "a video, not an image"),
        (b"\x1aE\xdf\xa3" + bytes(50), "a video, not an image"),
    ],
)
def test_what_is_no_image_is_called_what_it_is(content: bytes, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(content, name="a.jpg")
    assert caught.value.code == "not_an_image"


HEIC_HEAD = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200)


def test_heic_under_another_name_is_called_heic(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(HEIC_HEAD)
    with pytest.raises(ImageError, match=r"a\.jpg: .*HEIC"):
        decode_image(tmp_path / "a.jpg")


def test_without_its_package_heic_names_the_extra() -> None:
    script = f"""
import sys
sys.modules["pillow_heif"] = None
from unimetric.data.images import UNSUPPORTED, ImageError, decode_image
assert UNSUPPORTED[".heic"] == "HEIC"
try:
    decode_image({HEIC_HEAD!r})
except ImageError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "HEIC needs an extra; pip install 'unimetric[heic]', or convert it to JPEG or PNG\n"


@pytest.mark.parametrize("orientation", [1, 6])
def test_heic(orientation: int) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    pillow_heif.encode("RGB", (40, 30), SMOOTH.tobytes(), buffer, quality=95, exif=exif.tobytes())
    decoded = pixels(decode_image(buffer.getvalue()))
    expected = UPRIGHT[orientation](SMOOTH)
    assert decoded.shape == expected.shape
    assert np.abs(decoded - expected).mean() < 4
    with pytest.raises(ImageError, match=r"too many pixels \(1200 > 1199\)"):
        decode_image(buffer.getvalue(), max_pixels=1199)


def jxl(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    pytest.importorskip("pillow_jxl")
    buffer = io.BytesIO()
    Image.new(mode, size, "gold" if mode == "RGB" else 180).save(buffer, "JXL", lossless=True, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    # Sides of every length of number, and all ratios that have a name; in a container, for its EXIF, and without.
    "size",
    [
        (1, 1),
        (256, 256),
        (264, 256),
        (40, 30),
        (120, 100),
        (160, 90),
        (125, 100),
        (100, 50),
        (45, 30),
        (513, 1),
        (3, 9001),
    ],
)
def test_jpeg_xl_sizes_are_read_before_the_pixels(size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for content in (jxl(size), jxl(size, exif=exif.tobytes())):
        assert header_size(io.BytesIO(content)) == size
        image = decode_image(content)
        # The orientation in the EXIF data of this format does not count.
        assert image.size == size
        assert image.getpixel((0, 0)) == (255, 215, 0)
        pixels = size[0] * size[1]
        with pytest.raises(ImageError, match=rf"too many pixels \({pixels} > {pixels - 1}\)"):
            decode_image(content, max_pixels=pixels - 1)


def test_damaged_jpeg_xl_is_an_image_error() -> None:
    random = np.random.default_rng(0)
    for content in (jxl((40, 30)), jxl((40, 30), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0")):
        for length in range(2, len(content)):
            with pytest.raises(ImageError):
                decode_image(content[:length])
        for _ in range(100):
            changed = bytearray(content)
            changed[random.integers(2, len(content))] = random.integers(0, 256)
            with suppress(ImageError):
                decode_image(bytes(changed), max_pixels=10**6)


def test_without_its_package_jpeg_xl_names_the_extra() -> None:
    script = """
import sys
sys.modules["pillow_jxl"] = None
from unimetric.data.images import UNSUPPORTED, ImageError, decode_image
assert UNSUPPORTED[".jxl"] == "JPEG XL"
try:
    decode_image(b"\\xff\\x0a" + bytes(40))
except ImageError as error:
    print(error)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert ran.stdout == "JPEG XL needs an extra; pip install 'unimetric[jxl]', or convert it to JPEG or PNG\n"


def test_a_closed_image_is_called_closed(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(PICTURE).save(path)
    with Image.open(path) as left:
        pass
    closed, loaded, made = Image.open(path), Image.open(path), Image.new("RGB", (2, 2))
    loaded.load()
    for image in (closed, loaded, made):
        image.close()
    for image in (left, closed, loaded, made):
        with pytest.raises(ImageError, match="the image was closed before its pixels were read; keep it open"):
            to_rgb(image)
    path.write_bytes(path.read_bytes()[:90])
    with Image.open(path) as cut, pytest.raises(ImageError, match="truncated"):
        to_rgb(cut)


def test_a_dng_under_another_name_is_called_so() -> None:
    data = tiff(PICTURE, 2, tags=[(50706, 1, 4, bytes([1, 4, 0, 0]))])
    with pytest.raises(ImageError, match=r"camera raw \(DNG\) is not supported"):
        decode_image(data, name="a.tif")


@pytest.mark.parametrize("name", ["a.cr2", "a.NEF", "a.dng"])
def test_the_thumbnail_in_a_camera_raw_file_is_not_the_image(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    Image.fromarray(PICTURE).save(path, "TIFF")
    with pytest.raises(ImageError, match=rf"camera raw \({path.suffix[1:].upper()}\) is not supported; convert"):
        decode_image(path)


def test_the_docs_list_every_ending() -> None:
    page = (Path(__file__).parents[2] / "docs/image-files.md").read_text(encoding="utf-8")
    assert [ending for ending in SUFFIXES | UNSUPPORTED.keys() if f"`{ending}`" not in page] == []
