from __future__ import annotations

import io
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra import numpy as hnp
from PIL import Image, features

from image_files import PICTURE, SMOOTH, UPRIGHT, encode, pixels, png, png_chunk
from unimetric.data.images import SUFFIXES, ImageError, array_to_rgb, decode_image, to_rgb
from unimetric.errors import UserError


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
