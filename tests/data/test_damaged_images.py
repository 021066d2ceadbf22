"""Images that are damaged, too large, or cannot be opened."""

from __future__ import annotations

import os
import pickle
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from image_files import PICTURE, SMOOTH, attempt, encode, pixels, png
from properties import examples
from unimetric.data.images import SUFFIXES, ImageError, decode_image, to_rgb


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
