"""Decode image files to upright 8-bit RGB, or say in a few words why that is not possible."""

from __future__ import annotations

import re
import stat
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError, features

from unimetric.errors import UserError

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are refused before they are decoded (100 Mpx, about 300 MB)."""

_AVIF = "avif" in features.modules and bool(features.check("avif"))

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
    | ({".avif"} if _AVIF else set())
)
"""File name endings, in lower case, of the images that this module reads."""

UNSUPPORTED = {
    ".heic": "HEIC",
    ".heif": "HEIF",
    ".jp2": "JPEG 2000",
    ".tga": "TGA",
    ".psd": "PSD",
    ".ico": "ICO",
    ".svg": "SVG",
    ".raw": "camera raw",
    ".cr2": "camera raw (CR2)",
    ".nef": "camera raw (NEF)",
    ".dng": "camera raw (DNG)",
} | ({} if _AVIF else {".avif": "AVIF"})
"""File name endings, in lower case, of images that this module does not read, and what to call them."""

# Named one by one, because Pillow would otherwise try every plugin it has on unknown bytes, among them one
# that starts Ghostscript.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", *(("AVIF",) if _AVIF else ()))

_MAGIC = (b"\xff\xd8", b"\x89PNG", b"RIFF", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
"""First bytes of the formats above, to tell a damaged image from a file that never was one."""

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns an image upright, by its EXIF orientation."""

_ORIENTATION = 0x0112


class ImageError(Exception):
    """An image that cannot be decoded.

    Attributes:
        reason: a few plain words without file names, so that reasons can be counted: "truncated",
            "damaged", "not an image", "empty file", "too many pixels (N > limit)", "no permission",
            "file not found", "HEIC is not supported; convert it to JPEG or PNG", ...
        path: the file, where there is one.
    """

    def __init__(self, reason: str, path: Path | None = None) -> None:
        super().__init__(reason, path)
        self.reason = reason
        self.path = path

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


def is_image_name(path: Path | str) -> bool:
    """Whether the file name ends like that of an image, in upper or lower case.

    Those of `UNSUPPORTED` formats are among them, so that they are named and counted when they are decoded.

    >>> is_image_name("robin.JPG"), is_image_name("robin.heic"), is_image_name("robin.txt")
    (True, True, False)
    """
    suffix = Path(path).suffix.lower()
    return suffix in SUFFIXES or suffix in UNSUPPORTED


def decode_image(
    source: Path | str | bytes, max_pixels: int = MAX_PIXELS, *, name: str | None = None, at_least: int | None = None
) -> Image.Image:
    """Decode an image file, or its bytes, to an upright image of mode RGB, 8 bits a channel.

    The first frame of an animation or of a multi-page file is taken. Colours are converted as by `to_rgb`.

    Args:
        source: the file's path, or its content.
        max_pixels: larger images are refused from their header alone. Pillow's own limit, twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` (179 million), holds as well.
        name: what the file of the bytes is called; its ending tells formats that are not supported.
        at_least: Let a JPEG file be decoded at 1/2, 1/4 or 1/8 of its size, the smallest whose shorter side has at
            least this many pixels: that much less work, and each pixel the mean of those it stands for, nearly. Other
            formats are decoded in full.

    Raises:
        ImageError: the image cannot be decoded completely, for whatever reason; never another exception.
    """
    if isinstance(source, bytes):
        return _decode(BytesIO(source), None if name is None else Path(name), max_pixels, at_least)
    path = Path(source)
    try:
        # Opening a named pipe would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("a folder, not a file" if path.is_dir() else "not a regular file", path)
        with path.open("rb") as file:
            return _decode(file, path, max_pixels, at_least)
    except (OSError, ValueError) as error:
        raise ImageError(file_reason(error), path) from error


def load_image(image: Image.Image) -> None:
    """Read an opened image's pixels and EXIF; from then on, several threads may convert it at once.

    Raises:
        ImageError: the pixels cannot be read; never another exception.
    """
    try:
        image.load()
    except Exception as error:
        raise ImageError(_decoding_reason(error)) from error
    _orientation(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to an upright image of mode RGB, 8 bits a channel; the argument stays as it is.

    Transparent parts show a white ground. An EXIF orientation is applied, and the result carries none, so
    that converting twice changes nothing. Grey of 16 bits is scaled by 255/65535, and so is mode ``I``,
    which must lie in 0 to 65535. Mode ``F`` is taken as 0 to 1, 0 to 255 or 0 to 65535, whichever is the
    first to hold all its values. CMYK is converted without a colour profile, as usual in this field.

    Raises:
        ImageError: the pixels cannot be read or converted; never another exception.
    """
    load_image(image)
    try:
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _flatten(image)
        if turn is not None:
            rgb = rgb.transpose(turn)
    except Exception as error:
        raise ImageError(_decoding_reason(error)) from error
    # The result of a conversion inherits the EXIF bytes; the next reader would turn it a second time.
    rgb.info = {}
    return rgb


def array_to_rgb(array: NDArray[Any]) -> Image.Image:
    """Convert an array of pixels to an image of mode RGB, 8 bits a channel.

    Args:
        array: shape [H, W] or [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4] (RGB and alpha, shown on
            white). Values: uint8 0 to 255, uint16 0 to 65535, floats 0 to 1, or bool.

    Raises:
        UserError: another shape, data type or range.
    """
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        hint = "; move the channel axis to the end" if array.ndim == 3 and array.shape[0] in (1, 3, 4) else ""
        raise UserError(
            f"cannot read an array of shape {array.shape} as an image: "
            f"it must be [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]{hint}"
        )
    if array.size == 0:
        raise UserError(f"cannot read an array of shape {array.shape} as an image: it has no pixels")
    pixels = _to_uint8(array)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    return _flatten(Image.fromarray(np.ascontiguousarray(pixels)))


def _decode(file: IO[bytes], path: Path | None, max_pixels: int, at_least: int | None) -> Image.Image:
    head = b""
    try:
        head = file.read(16)
        with Image.open(file, formats=_FORMATS) as image:
            _check_format(image.format, path)
            _check_size(image.size, max_pixels)
            if at_least is not None and image.format == "JPEG":
                _reduce(image, at_least)
            return to_rgb(image)
    except ImageError as error:
        raise ImageError(error.reason, path) from error.__cause__
    except UnidentifiedImageError as error:
        reason = (_unsupported_reason(path) if head else "") or _unidentified_reason(head)
        raise ImageError(reason, path) from error
    except Exception as error:
        raise ImageError(_decoding_reason(error), path) from error


def _reduce(image: Image.Image, at_least: int) -> None:
    """Let libjpeg leave out the high frequencies; the decoded size, rounded up, is what Pillow then says."""
    scale = next((scale for scale in (8, 4, 2) if min(image.size) // scale >= at_least), 1)
    if scale > 1:
        # None keeps the colours' mode, as without this.
        image.draft(None, (image.width // scale, image.height // scale))


def _check_format(kind: str | None, path: Path | None) -> None:
    # What Pillow finds in a camera's raw file is a TIFF with the thumbnail.
    if kind == "TIFF" and (reason := _unsupported_reason(path)):
        raise ImageError(reason)


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    pixels = size[0] * size[1]
    if pixels > max_pixels:
        raise ImageError(f"too many pixels ({pixels} > {max_pixels})")
    if pixels == 0:
        raise ImageError("no pixels")


def _unsupported_reason(path: Path | None) -> str:
    """Why a file of that name cannot be read, or nothing if such files can."""
    name = UNSUPPORTED.get(path.suffix.lower()) if path else None
    return f"{name} is not supported; convert it to JPEG or PNG" if name else ""


def _unidentified_reason(head: bytes) -> str:
    if not head:
        return "empty file"
    known = head.startswith(_MAGIC) or head[4:12] in (b"ftypavif", b"ftypavis")
    return "damaged header" if known else "not an image"


def file_reason(error: OSError | ValueError) -> str:
    """The words for what came of opening a file."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return "file not found"  # a ValueError is a path that holds a NUL character
    if isinstance(error, PermissionError):
        return "no permission"
    return f"cannot be read ({error.strerror or type(error).__name__})"


def _decoding_reason(error: Exception) -> str:
    """The words for an error that came out of Pillow; it has no error type of its own for bad data."""
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, MemoryError):
        return "not enough memory"
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        counts = re.findall(r"(\d+) pixels", str(error))
        return f"too many pixels ({' > '.join(counts)})"
    if isinstance(error, OSError) and error.errno is not None:
        return file_reason(error)
    if isinstance(error, EOFError | struct.error | zlib.error) or re.search(
        r"truncated|broken data stream|not enough|unexpected end|reached eof", str(error), re.IGNORECASE
    ):
        return "truncated"
    return "damaged"


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1  # a damaged EXIF block does not make the pixels worse


def _flatten(image: Image.Image) -> Image.Image:
    """The loaded image as a new one of mode RGB, on white where it is transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image)
    if not image.has_transparency_data:
        return image.copy() if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way from here to RGBA
    elif image.mode == "RGB":
        image = _with_8_bit_transparency(image)
    elif image.mode == "P":
        image = image.copy()  # the conversion writes the transparency into the palette it reads
    return _on_white(image.convert("RGBA"))


def _on_white(rgba: Image.Image) -> Image.Image:
    ground = Image.new("RGB", rgba.size, "white")
    ground.paste(rgba, mask=rgba.getchannel("A"))
    return ground


def _with_8_bit_transparency(image: Image.Image) -> Image.Image:
    """Pillow keeps the high byte of 16-bit colours, but all of the transparent colour."""
    colour = image.info["transparency"]
    if max(colour) <= 255:
        return image
    image = image.copy()
    image.info["transparency"] = tuple(value >> 8 for value in colour)
    return image


def _deep_grey_to_rgb(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not (low >= 0 and high <= 65535):  # so written that NaN is refused too
        raise ImageError("grey values outside 0 to 65535")
    if image.mode != "F":
        pixels = _scale_16_to_8(values)
    else:
        top = 1 if high <= 1 else 255 if high <= 255 else 65535
        pixels = np.rint(values.astype(np.float64) * (255 / top)).astype(np.uint8)
    rgb = Image.fromarray(pixels).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        rgb.paste("white", mask=Image.fromarray((values == transparent).astype(np.uint8) * 255))
    return rgb


def _scale_16_to_8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Round ``values * 255 / 65535``; 65535 is 255 times 257."""
    return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return _scale_16_to_8(array)
    if array.dtype.kind != "f":
        raise UserError(
            f"cannot read an array of data type {array.dtype} as an image: "
            "convert it to uint8, uint16, bool, or floats from 0 to 1"
        )
    low, high = float(array.min()), float(array.max())
    if not (low >= 0 and high <= 1):
        raise UserError(
            f"cannot read an array of {array.dtype} with values from {low:g} to {high:g} as an image: "
            "scale floats to 0 to 1, or convert to uint8"
        )
    return np.rint(array.astype(np.float64) * 255).astype(np.uint8)


def contain(image: Image.Image, side: int) -> Image.Image:
    """The image resized to ``side`` pixels on its longer side, and to one at least on the other.

    >>> contain(Image.new("RGB", (3000, 2)), 256).size
    (256, 1)
    """
    scale = side / max(image.size)
    width, height = (max(1, round(length * scale)) for length in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC)
