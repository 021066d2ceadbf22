"""Pixels of every kind of file: polarity, range, alpha and colour, against what the format's definition gives."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import PIL
import pytest
from PIL import Image

from image_files import attempt, bmp, encode, packed, pixels, png, png_chunk, tiff
from unimetric.data.images import ImageError, array_to_rgb, decode_image, to_rgb

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (6, 9, 1), dtype=np.uint8)
RGB = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
ALPHA = RNG.integers(64, 256, (6, 9, 1), dtype=np.uint8)
VARIANT = "damaged header, or a variant of TIFF that is not supported"
OLD_PILLOW = int(PIL.__version__.partition(".")[0]) < 13
"""It opens fewer variants of TIFF."""
INVISIBLE = "fully transparent; save it without alpha if its colours are meant"


def on_white(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Colours and alpha in [0, 1] as 8-bit RGB on a white ground."""
    return np.broadcast_to(255 * (colours * alpha + 1 - alpha), (*colours.shape[:2], 3))


def assert_close(data: bytes, expected: np.ndarray, tolerance: float = 1) -> None:
    assert np.abs(pixels(decode_image(data)) - expected).max() <= tolerance


@pytest.mark.parametrize(
    ("colour", "depth", "transparent"),
    [
        *itertools.product([0], [1, 2, 4, 8, 16], [False, True]),
        *itertools.product([2], [8, 16], [False, True]),
        *itertools.product([3], [1, 2, 4, 8], [False, True]),
        *itertools.product([4, 6], [8, 16], [False]),
    ],
)
def test_every_kind_of_png(colour: int, depth: int, transparent: bool) -> None:
    top = 2**depth - 1
    rng = np.random.default_rng(depth)
    samples = rng.integers(0, top + 1, (6, 9, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]))
    alpha, chunks = np.ones((6, 9, 1)), b""
    if colour == 3:
        palette = rng.integers(0, 256, (top + 1, 3))
        opacity = rng.integers(0, 256, top + 1) if transparent else np.full(top + 1, 255)
        colours, alpha = palette[samples[..., 0]] / 255, opacity[samples] / 255
        chunks = png_chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        chunks += png_chunk(b"tRNS", opacity.astype(np.uint8).tobytes()) if transparent else b""
    elif colour in (4, 6):
        colours, alpha = samples[..., :-1] / top, samples[..., -1:] / top
    else:
        colours = samples / top
        if transparent:
            alpha = 1.0 - (samples == samples[2, 3]).all(axis=2, keepdims=True)
            chunks = png_chunk(b"tRNS", samples[2, 3].astype(">u2").tobytes())
    data = png(depth, colour, packed(samples.reshape(6, -1), depth), 9, chunks)
    assert_close(data, on_white(colours, alpha), tolerance=2)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_grey_tiff_with_either_end_as_white(order: str, bits: int) -> None:
    if bits == 32:
        samples, kind = (GREY / 255).astype(np.float32), (339, 3, 1, struct.pack(order + "H", 3))
    else:
        samples = GREY if bits == 8 else GREY.astype(np.uint16) * 257
        kind = (339, 3, 1, struct.pack(order + "H", 1))
    assert_close(tiff(samples, 1, order, [kind]), np.broadcast_to(GREY, RGB.shape))
    assert_close(tiff(samples, 0, order, [kind]), np.broadcast_to(255 - GREY, RGB.shape))


@pytest.mark.parametrize("order", ["<", ">"])
def test_compressed_tiff_of_deep_samples(order: str) -> None:
    """libtiff swaps bytes by itself; whoever swaps them again reads other numbers."""
    deflate = (259, 3, 1, struct.pack(order + "H", 8))
    grey = np.broadcast_to(GREY, RGB.shape)
    floats = (GREY / 255).astype(order + "f4")
    kinds = [deflate, (339, 3, 1, struct.pack(order + "H", 3))]
    assert_close(tiff(floats.astype(np.float32), 1, order, kinds, zlib.compress(floats.tobytes())), grey)
    signed = (GREY.astype(np.int16) * 128).astype(order + "i2")
    kinds = [deflate, (339, 3, 1, struct.pack(order + "H", 2))]
    assert_close(tiff(signed.astype(np.int16), 1, order, kinds, zlib.compress(signed.tobytes())), grey // 2)
    deep = (GREY.astype(np.uint16) * 257).astype(order + "u2")
    for photometric, expected in ((1, grey), (0, 255 - grey)):
        assert_close(
            tiff(deep.astype(np.uint16), photometric, order, [deflate], zlib.compress(deep.tobytes())), expected
        )


def test_tiff_of_12_bits_is_scaled_to_all_greys() -> None:
    values = np.linspace(0, 4095, 54).astype(int).reshape(6, 9)
    values = np.hstack([values, values[:, :1]])  # an even number to a row: two values fill three bytes
    high, low = values[:, ::2], values[:, 1::2]
    rows = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=2).astype(np.uint8).tobytes()
    data = tiff(np.zeros((6, 10, 1), np.uint16), 1, "<", [(258, 3, 1, struct.pack("<H", 12))], rows)
    assert_close(data, np.repeat(np.rint(values / 4095 * 255)[:, :, None], 3, axis=2))


def test_tiff_without_a_word_on_polarity_is_black_at_zero() -> None:
    for samples in (GREY, GREY.astype(np.uint16) * 257):
        whole = tiff(samples, 1)
        at = whole.index(struct.pack("<HHI", 262, 3, 1))
        assert_close(
            whole[:at] + struct.pack("<HHIHH", 263, 3, 1, 1, 0) + whole[at + 12 :], np.broadcast_to(GREY, RGB.shape)
        )


@pytest.mark.parametrize("scale", [1, 257])
@pytest.mark.parametrize("order", ["<", ">"])
def test_tiff_palette_of_8_or_16_bits(scale: int, order: str) -> None:
    palette = np.random.default_rng(1).integers(0, 256, (256, 3)) * scale
    colours = (320, 3, 768, palette.T.astype(order + "u2").tobytes())
    assert_close(tiff(GREY, 3, order, [colours]), palette[GREY[:, :, 0]] / scale, tolerance=0)


def test_negative_values_are_refused_not_wrapped() -> None:
    signed = [(339, 3, 1, struct.pack("<H", 2))]
    assert attempt(tiff(np.full((4, 4, 1), 200, np.uint8), 1, "<", signed)) == "grey values outside 0 to 65535"
    assert attempt(tiff(np.full((4, 4, 1), 60_000, np.uint16), 1, "<", signed)) == "grey values outside 0 to 65535"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("alpha", [None, "undeclared", "unspecified", "associated", "unassociated"])
def test_rgb_tiff_with_a_fourth_sample(order: str, deep: bool, alpha: str | None) -> None:
    colours, opacity = RGB / 255, ALPHA / 255
    stored = np.rint(RGB * opacity) if alpha == "associated" else RGB
    samples = stored if alpha is None else np.concatenate([stored, ALPHA], axis=2)
    samples = samples.astype(np.uint16) * 257 if deep else samples.astype(np.uint8)
    extra = {"unspecified": 0, "associated": 1, "unassociated": 2}
    tags = [(338, 3, 1, struct.pack(order + "H", extra[alpha]))] if alpha in extra else []
    seen = on_white(colours, opacity) if alpha in ("associated", "unassociated") else RGB
    assert_close(tiff(samples, 2, order, tags), seen, tolerance=2)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("channels", [3, 4])
def test_rgb_tiff_in_separate_planes(order: str, deep: bool, channels: int) -> None:
    samples = np.concatenate([RGB, ALPHA], axis=2)[:, :, :channels]
    samples = samples.astype(np.uint16) * 257 if deep else samples
    planes = np.moveaxis(samples, 2, 0).astype(samples.dtype.newbyteorder(order)).tobytes()
    plane = len(planes) // channels
    # A strip to each plane: the offsets come after the other values, right before the pixels.
    short = struct.Struct(order + "H").pack
    tags = [(284, 3, 1, short(2)), (279, 4, channels, struct.pack(f"{order}{channels}I", *[plane] * channels))]
    tags += [(338, 3, 1, short(2))] if channels == 4 else []
    whole = tiff(samples, 2, order, tags, planes)
    first = len(whole) - len(planes)
    offsets = struct.pack(f"{order}{channels}I", *(first + 4 * channels + plane * number for number in range(channels)))
    entry = struct.pack(order + "HHI", 273, 4, 1)
    several = struct.pack(order + "HHII", 273, 4, channels, first)
    at = whole.index(entry)
    data = whole[:at] + several + whole[at + 12 : first] + offsets + planes
    assert_close(data, RGB if channels == 3 else on_white(RGB / 255, ALPHA / 255), tolerance=2)


def test_cmyk_and_lab_tiff() -> None:
    ink = RNG.integers(0, 256, (6, 9, 4), dtype=np.uint8)
    assert_close(tiff(ink, 5), (255 - ink[:, :, :3].astype(int)) * (255 - ink[:, :, 3:].astype(int)) / 255, tolerance=2)
    # L* of 0 to 255, a* and b* signed: a pure grey, and a red of sRGB (53.2, 80.1, 67.2).
    lab = np.array([[[255, 0, 0], [0, 0, 0], [136, 80, 67]]], dtype=np.uint8)
    assert np.abs(pixels(decode_image(tiff(lab, 8)))[0] - [[255] * 3, [0] * 3, [255, 0, 0]]).max() < 30


@pytest.mark.parametrize("ink", [(0, 0, 0, 0), (0, 255, 255, 0), (255, 0, 0, 0), (0, 0, 0, 255)])
@pytest.mark.parametrize("marked", [True, False])
def test_cmyk_jpeg_is_inverted_as_adobe_writes_it(ink: tuple[int, ...], marked: bool) -> None:
    data = encode(Image.new("CMYK", (16, 16), ink), "JPEG", quality=95)
    if not marked:
        at = data.index(b"\xff\xeeAdobe"[:2])
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4], "big") :]
    assert_close(data, np.array([(255 - ink[c]) * (255 - ink[3]) / 255 for c in range(3)]), tolerance=3)


def test_rgb_jpeg_without_the_usual_conversion() -> None:
    assert_close(
        encode(Image.new("RGB", (16, 16), (200, 30, 60)), "JPEG", quality=95, keep_rgb=True), np.array([200, 30, 60]), 3
    )


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("alpha", [0, 255, None])
def test_bmp_of_32_bits(header: int, alpha: int | None, top_down: bool) -> None:
    """Alpha that is zero everywhere was not written; Windows and Photoshop ignore it."""
    fourth = ALPHA if alpha is None else np.full_like(ALPHA, alpha)
    rows = [row.tobytes() for row in np.concatenate([RGB[:, :, ::-1], fourth], axis=2)]
    masks = (0xFF0000, 0xFF00, 0xFF, *((0xFF000000,) if header >= 56 else ()))
    has_alpha = header >= 56 and alpha is None
    expected = on_white(RGB / 255, ALPHA / 255) if has_alpha else RGB
    assert_close(bmp(32, rows, 9, header=header, masks=masks, top_down=top_down), expected)
    assert_close(bmp(32, rows, 9, top_down=top_down), RGB)  # without masks, the fourth byte is unused


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("colours", [[(0,) * 3, (255,) * 3], [(255,) * 3, (0,) * 3], [(10, 20, 30), (200, 100, 0)]])
def test_bmp_of_two_colours(bits: int, colours: list[tuple[int, int, int]]) -> None:
    indices = RNG.integers(0, 2, (6, 9))
    palette = b"".join(bytes(colour[::-1]) + b"\0" for colour in colours)
    assert_close(bmp(bits, packed(indices, bits), 9, palette=palette, colours=2), np.array(colours)[indices])


def test_bmp_of_16_bits() -> None:
    five = (RGB >> 3).astype(np.uint16)
    rows = (five[:, :, 0] << 10 | five[:, :, 1] << 5 | five[:, :, 2]).astype("<u2")
    assert_close(bmp(16, [row.tobytes() for row in rows], 9), RGB & 0xF8, tolerance=7)
    six = (RGB[:, :, 1] >> 2).astype(np.uint16)
    rows = (five[:, :, 0] << 11 | six << 5 | five[:, :, 2]).astype("<u2")
    assert_close(bmp(16, [row.tobytes() for row in rows], 9, masks=(0xF800, 0x7E0, 0x1F)), RGB & 0xF8, tolerance=7)


@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (16, (0xF00, 0xF0, 0xF, 0xF000)),
        (16, (0xF00, 0xF0, 0xF, 0)),
        (16, (0b11, 0b11100, 0b100000, 0)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF, 0)),
        (32, (0xFFE00000, 0x1FFC00, 0x3FF, 0)),
        (32, (0xFF00, 0xFF0000, 0xFF, 0)),
        (32, (0xFF, 0xFF00, 0xFF0000, 0xFF000000)),
    ],
)
def test_bmp_of_any_bit_fields(bits: int, masks: tuple[int, int, int, int]) -> None:
    channels, rows, largest = np.concatenate([RGB, ALPHA], axis=2) / 255, np.zeros((6, 9), np.int64), []
    for place, mask in enumerate(masks):
        low = mask & -mask
        largest.append(mask // low if mask else 1)
        rows |= np.rint(channels[:, :, place] * largest[-1]).astype(np.int64) * low
    channels = np.rint(channels * largest) / largest
    alpha = channels[:, :, 3:] if masks[3] else np.ones((6, 9, 1))
    data = bmp(bits, [row.astype(f"<u{bits // 8}").tobytes() for row in rows], 9, header=108, masks=masks)
    assert_close(data, on_white(channels[:, :, :3], alpha))
    assert attempt(data[:-4]) == "truncated"


def test_bmp_of_another_depth() -> None:
    reason = attempt(bmp(2, [bytes(3)] * 6, 9, palette=bytes(16)))
    assert reason == "damaged header, or a variant of BMP that is not supported"


@pytest.mark.parametrize("kind", ["P1", "P2", "P3", "P4", "P5", "P6", "Pf"])
@pytest.mark.parametrize("white", [1, 100, 255, 4095, 65535])
def test_netpbm(kind: str, white: int) -> None:
    samples = np.rint((RGB if kind in ("P3", "P6") else GREY) / 255 * white).astype(int)
    expected = np.rint(samples / white * 255)
    header = f"{kind}\n# a comment\n9 6\n{white}\n".encode()
    if kind in ("P1", "P4"):
        samples = GREY // 128
        expected, header = 255 * (1 - samples.astype(int)), f"{kind}\n9 6\n".encode()
    if kind == "Pf":
        samples, expected, header = (GREY / 255)[::-1], GREY, b"Pf\n9 6\n-1.0\n"
    binary = {"P4": lambda: b"".join(packed(samples[:, :, 0], 1)), "Pf": lambda: samples.astype("<f4").tobytes()}
    plain = {"P1", "P2", "P3"}
    data = (
        b" ".join(b"%d" % value for value in samples.ravel())
        if kind in plain
        else binary.get(kind, lambda: samples.astype(">u2" if white > 255 else "u1").tobytes())()
    )
    assert_close(header + data, np.broadcast_to(expected, RGB.shape))


@pytest.mark.parametrize("transparent", [None, 3])
def test_a_gif_frame_smaller_than_its_canvas_lies_on_white(transparent: int | None) -> None:
    frame = Image.new("P", (4, 4), 1)
    frame.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    data = encode(frame, "GIF", optimize=False, **({} if transparent is None else {"transparency": transparent}))
    at = data.index(b",\0\0\0\0\4\0\4\0")
    moved = data[:6] + struct.pack("<HH", 9, 7) + data[10:at] + b",\2\0\1\0\4\0\4\0" + data[at + 9 :]
    expected = np.full((7, 9, 3), 255)
    expected[1:5, 2:6] = [0, 255, 0]
    assert_close(moved, expected, tolerance=0)


@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize(("format", "mode"), [
    *itertools.product(["PNG", "TIFF"], ["RGBA", "LA"]), ("WEBP", "RGBA"), ("GIF", "P"), ("PNG", "P"),
])  # fmt: skip
def test_a_fully_transparent_picture_is_refused(format: str, mode: str, value: int) -> None:
    """On white, all of them would have one and the same vector."""
    image = Image.fromarray(RGB).convert(mode)
    options: dict[str, object] = {"lossless": True, "exact": True} if format == "WEBP" else {}
    if mode == "P":
        image = Image.new("P", (9, 6), 5)
        image.putpalette(range(30))
        options = {"transparency": 5, "optimize": False}
    else:
        image.putalpha(value)
    assert attempt(encode(image, format, **options)) == INVISIBLE
    visible = image.convert("RGBA")
    visible.putpixel((0, 0), (10, 20, 30, 255))
    assert pixels(to_rgb(visible))[0, 0].tolist() == [10, 20, 30]


def test_a_fully_transparent_array_or_grey_is_refused() -> None:
    with pytest.raises(ImageError, match="fully transparent"):
        array_to_rgb(np.concatenate([RGB, np.zeros_like(ALPHA)], axis=2))
    deep = png(16, 0, packed(np.full((2, 2), 700), 16), 2, png_chunk(b"tRNS", struct.pack(">H", 700)))
    assert attempt(deep) == INVISIBLE


def test_colour_profiles_are_not_applied() -> None:
    """As torchvision and timm read images, and so the weights of their models."""
    profile = encode(Image.fromarray(RGB), "PNG", icc_profile=b"a profile of a wide gamut")
    assert_close(profile, RGB, tolerance=0)


def test_opened_images_are_corrected_too() -> None:
    deep = tiff(GREY.astype(np.uint16) * 257, 0)
    np.testing.assert_array_equal(pixels(to_rgb(Image.open(io.BytesIO(deep)))), np.broadcast_to(255 - GREY, RGB.shape))
    grey = png(4, 0, packed(np.array([[3, 9]]), 4), 2, png_chunk(b"tRNS", b"\0\3"))
    for _ in range(2):
        opened = Image.open(io.BytesIO(grey))
        assert pixels(to_rgb(opened))[0, :, 0].tolist() == [255, 9 * 17]
        assert pixels(to_rgb(opened))[0, :, 0].tolist() == [255, 9 * 17]


def test_tiff_against_tifffile() -> None:
    tifffile = pytest.importorskip("tifffile")
    for order, compression, planes in itertools.product("<>", [None, "zlib"], ["contig", "separate"]):
        for deep in (False, True):
            samples = RGB.astype(np.uint16) * 257 if deep else RGB
            buffer = io.BytesIO()
            written = np.moveaxis(samples, 2, 0) if planes == "separate" else samples
            tifffile.imwrite(
                buffer, written, photometric="rgb", planarconfig=planes, byteorder=order, compression=compression
            )
            assert_close(buffer.getvalue(), RGB)


@pytest.mark.parametrize("tile", [None, (16, 32)])
@pytest.mark.parametrize("order", "<>")
def test_tiff_planes_of_any_kind(order: str, tile: tuple[int, int] | None) -> None:
    """Planes of 16 bits, and of associated alpha: Pillow itself reads those of RGB only."""
    tifffile = pytest.importorskip("tifffile")
    sample = np.random.default_rng(0).integers(0, 256, (5, 40, 37))
    ink, alpha = 255 - sample[:3].astype(float), sample[3] / 255.0
    spread = sample[:3] * alpha
    cases: list[tuple[np.ndarray, str, list[str], np.ndarray]] = [
        (sample[:1], "minisblack", [], np.repeat(sample[:1], 3, 0)),
        (sample[:2], "minisblack", ["unspecified"], np.repeat(sample[:1], 3, 0)),
        (sample[2:4], "minisblack", ["unassalpha"], np.repeat(sample[2:3] * alpha + 255 * (1 - alpha), 3, 0)),
        (sample[:3], "rgb", [], sample[:3]),
        (sample[:4], "rgb", ["unspecified"], sample[:3]),
        (sample, "rgb", ["unspecified", "unspecified"], sample[:3]),
        (sample[:4], "rgb", ["unassalpha"], spread + 255 * (1 - alpha)),
        (np.concatenate([spread, sample[3:4]]), "rgb", ["assocalpha"], spread + 255 * (1 - alpha)),
        (sample[:4], "separated", [], ink * (1 - alpha)),
        (sample, "separated", ["unspecified"], ink * (1 - alpha)),
    ]
    for planes, photometric, extra, expected in cases:
        for kind in ("u1", "u2"):
            if (kind == "u1" and "unspecified" in extra) or (
                kind == "u2" and len(planes) == 2 and extra[0] != "unspecified"
            ):
                continue  # Pillow refuses it
            buffer = io.BytesIO()
            written = np.rint(planes * (257 if kind == "u2" else 1)).astype(order + kind)
            tifffile.imwrite(
                buffer,
                written,
                photometric=photometric,
                planarconfig="separate",
                extrasamples=extra,
                byteorder=order,
                tile=tile,
                rowsperstrip=None if tile else 16,
                extratags=[(274, 3, 1, 6, True)],
            )
            turned = np.rot90(np.moveaxis(expected, 0, 2), -1)
            if OLD_PILLOW and "unspecified" in extra and attempt(buffer.getvalue()) == VARIANT:
                continue
            assert_close(buffer.getvalue(), turned, tolerance=3)
            if "unspecified" not in extra:
                assert attempt(buffer.getvalue()[: -written[0].nbytes]) == "truncated"


def test_damaged_tiff_may_be_an_unknown_variant() -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    planes = np.zeros((2, 8, 8), "<u4")
    tifffile.imwrite(buffer, planes, photometric="minisblack", planarconfig="separate", extrasamples=["unspecified"])
    assert attempt(buffer.getvalue()) == (
        VARIANT if OLD_PILLOW else "damaged, or a variant of TIFF that is not supported"
    )
