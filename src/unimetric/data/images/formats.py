"""Image formats: their file name endings, their first bytes, and which of them are read."""

from importlib.util import find_spec
from pathlib import Path

from PIL import features

from unimetric.data.images.boxes import image_file

HEAD_BYTES = 512
"""Bytes from the beginning of a file that `content_format` and `content_problem` need."""

_AVIF = "avif" in features.modules and bool(features.check("avif"))
_HEIC = find_spec("pillow_heif") is not None
_JPEG_XL = find_spec("pillow_jxl") is not None

_READ = {
    "JPEG": ".jpg .jpeg .jpe .jfif .jif .mpo",
    "PNG": ".png .apng",
    "WebP": ".webp",
    "GIF": ".gif",
    "BMP": ".bmp .dib",
    "TIFF": ".tif .tiff",
    "Netpbm": ".pbm .pgm .ppm .pnm .pfm",
}
_WITH_MORE = {"AVIF": ".avif .avifs", "HEIC": ".heic .heif .hif", "JPEG XL": ".jxl"}
_CAMERA_RAW = (
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dng", ".erf", ".iiq", ".kdc", ".nef", ".nrw", ".orf", ".pef", ".raf"),
    *(".rw2", ".sr2", ".srw", ".x3f"),
)
_NOT_READ = {
    "JPEG 2000": ".jp2 .j2k .j2c .jpf .jpx .jpm",
    "JPEG XR": ".jxr .wdp .hdp",
    "TGA": ".tga",
    "PCX": ".pcx",
    "SGI": ".sgi",
    "PSD": ".psd .psb",
    "ICO": ".ico .cur",
    "ICNS": ".icns",
    "XBM": ".xbm",
    "XPM": ".xpm",
    "WMF": ".wmf .emf",
    "DjVu": ".djvu .djv",
    "DICOM": ".dcm",
    "FITS": ".fits",
    "DDS": ".dds",
    "OpenEXR": ".exr",
    "QOI": ".qoi",
    "XCF": ".xcf",
    "SVG": ".svg .svgz",
    "EPS": ".eps",
    "camera raw": ".raw",
    **{f"camera raw ({ending[1:].upper()})": ending for ending in _CAMERA_RAW},
}
_MAY_BE_READ = {"AVIF": _AVIF, "HEIC": _HEIC, "JPEG XL": _JPEG_XL}
_READABLE = _READ.keys() | {name for name, is_read in _MAY_BE_READ.items() if is_read}
_ENDINGS = {ending: name for name, endings in (_READ | _WITH_MORE | _NOT_READ).items() for ending in endings.split()}

SUFFIXES = frozenset(ending for ending, name in _ENDINGS.items() if name in _READABLE)
"""File name endings, in lower case, of the images that are read here."""

UNSUPPORTED = {ending: name for ending, name in _ENDINGS.items() if name not in _READABLE}
"""File name endings, in lower case, of images that are not read here, and the formats' names."""

# Named one by one: on unknown bytes, Pillow would try all of its plugins, one of which starts Ghostscript.
PILLOW_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", *(("AVIF",) if _AVIF else ()))
"""Pillow's names of the formats that it is allowed to try."""

_REMEDY = "convert it to JPEG or PNG"
_MISSING = {
    "AVIF": f"AVIF needs Pillow 11.3 or newer; pip install -U pillow, or {_REMEDY}",
    "HEIC": f"HEIC needs an extra; pip install 'unimetric[heic]', or {_REMEDY}",
    "JPEG XL": f"JPEG XL needs an extra; pip install 'unimetric[jxl]', or {_REMEDY}",
}

_MAGIC = (
    (0, b"\xff\xd8", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (8, b"WEBP", "WebP"),
    (0, b"GIF8", "GIF"),
    (0, b"BM", "BMP"),
    (8, b"CR\x02", "camera raw (CR2)"),
    *((0, start, "TIFF") for start in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")),
    *((0, start, "Netpbm") for start in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"P7\n", b"PF\n", b"Pf\n")),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"II\xbc", "JPEG XR"),
    (0, b"8BPS", "PSD"),
    (0, b"\0\0\1\0", "ICO"),
    (0, b"DDS ", "DDS"),
    (0, b"\x0a\5\1\x08", "PCX"),
    (0, b"\1\xda\0\1", "SGI"),
    (0, b"\1\xda\1\1", "SGI"),
    (0, b"icns", "ICNS"),
    (0, b"/* XPM", "XPM"),
    (0, b"\xd7\xcd\xc6\x9a", "WMF"),
    (40, b" EMF", "WMF"),
    (0, b"AT&TFORM", "DjVu"),
    (128, b"DICM", "DICOM"),
    (0, b"SIMPLE  =", "FITS"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"v/1\1", "OpenEXR"),
    (0, b"qoif", "QOI"),
    (0, b"gimp xcf", "XCF"),
    (0, b"%!PS", "EPS"),
    (0, b"FUJIFILMCCD-RAW", "camera raw (RAF)"),
    (0, b"IIU\0", "camera raw (RW2)"),
    (0, b"IIR", "camera raw (ORF)"),
    (0, b"FOVb", "camera raw (X3F)"),
)
_BRANDS = {
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"), "HEIC"),
    b"crx ": "camera raw (CR3)",
    b"jxl ": "JPEG XL",
}
_NOT_IMAGES = (
    ((b"<!doctype html", b"<html"), "a web page, not an image; download the file again"),
    ((b"version https://git-lfs",), "a Git LFS pointer, not an image; fetch the file with: git lfs pull"),
    ((b"%pdf",), "a PDF file, not an image; save its pages as PNG"),
    ((b"<?xml",), "an XML text, not an image; download the file again"),
    ((b'{"', b"{\n", b"[{"), "a JSON text, not an image; download the file again"),
    ((b"pk\3\4", b"\x1f\x8b", b"rar!", b"7z\xbc\xaf"), "an archive, not an image; unpack it"),
    ((b"\x93numpy",), "a NumPy array, not an image; save it as PNG"),
    ((b"\x1aE\xdf\xa3".lower(), b"flv"), "a video, not an image"),
)


def is_image_name(path: Path | str) -> bool:
    """Return True if the file name ends like that of an image, in upper or lower case.

    Endings of `UNSUPPORTED` formats count, so that these files are named and counted when they are decoded.

    >>> is_image_name("robin.JPG"), is_image_name("robin.heic"), is_image_name("robin.txt")
    (True, True, False)
    """
    return image_file(Path(path)).suffix.lower() in _ENDINGS


def content_format(head: bytes) -> str | None:
    """Return the name of the format that a file's first bytes belong to, or None.

    >>> content_format(b"GIF89a"), content_format(b"hello")
    ('GIF', None)
    """
    if head[4:8] == b"ftyp":
        # The major brand, then four bytes of its version, then the compatible ones.
        brands = [head[place : place + 4] for place in (8, *range(16, 40, 4))]
        # AVIF files also carry the brands that HEIC shares with it.
        return next((name for name in ("AVIF", *_BRANDS.values()) if any(_BRANDS.get(b) == name for b in brands)), None)
    found = next((name for place, start, name in _MAGIC if head.startswith(start, place)), None)
    return "SVG" if found is None and b"<svg" in head else found


def unsupported_reason(name: str | None) -> str | None:
    """Return why images of this format are not read, with the remedy; None if they are."""
    if name is None or name in _READABLE:
        return None
    return _MISSING.get(name, f"{name} is not supported; {_REMEDY}")


def content_problem(head: bytes, path: Path | None) -> tuple[str, str]:
    """Return why a file that no decoder accepts is not read, by its first bytes, else by its ending; and a code."""
    if not head:
        return "empty file", "empty_image"
    name = content_format(head)
    by_ending = _ENDINGS.get(image_file(path).suffix.lower()) if path else None
    if reason := unsupported_reason(name) or (unsupported_reason(by_ending) if name is None else None):
        return reason, "not_an_image"
    if name:
        return f"damaged header, or a variant of {name} that is not supported", "unreadable_image"
    if head[4:8] == b"ftyp" and head[8:12].lower().startswith((b"3g", b"avc", b"iso", b"m4v", b"mp4", b"qt")):
        return "a video, not an image", "not_an_image"
    if head[:4] == b"RIFF" and head[8:12] == b"AVI ":
        return "a video, not an image", "not_an_image"
    start = head.lstrip().lower()
    found = (reason for starts, reason in _NOT_IMAGES if start.startswith(starts))
    return next(found, "not an image"), "not_an_image"
