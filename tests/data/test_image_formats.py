"""Formats of images: their endings, those that are not read, HEIC, JPEG XL and camera raw."""

from __future__ import annotations

import io
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from image_files import PICTURE, SMOOTH, UPRIGHT, encode, pixels, tiff
from unimetric.data.images import SUFFIXES, UNSUPPORTED, ImageError, decode_image, is_image_name
from unimetric.data.images.jpeg_xl import header_size


def test_image_names() -> None:
    for name in ("a.jpg", "a.JPEG", "a.b.png", "x/y.WebP", "é.tiff", "a.jfif", "a.pgm", "a\nb.gif", "a.HEIC", "a.eps"):
        assert is_image_name(name)
        assert is_image_name(Path(name))
    for name in ("a.txt", "jpg", ".jpg", "a.jpg.txt", "a.pdf", ""):
        assert not is_image_name(name)


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
