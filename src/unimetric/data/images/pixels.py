"""From an opened image or an array of pixels to upright RGB of 8 bits a channel, and from an image to a file."""

import re
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from unimetric.data.images import tiff
from unimetric.errors import UserError

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The turn that makes an image upright, by its EXIF orientation."""

_ORIENTATION = 0x0112
LONGEST_JPEG = 65_500
"""Pixels of the longest side that JPEG can hold."""
_CLOSED = "the image was closed before its pixels were read; keep it open, or pass its path"
_INVISIBLE = "fully transparent; save it without alpha if its colours are meant"
_OUTSIDE = "grey values outside 0 to 65535"


class ImageError(Exception):
    """An image that cannot be decoded.

    Attributes:
        reason: A few words without file names, so that reasons can be counted: "truncated", "damaged", "not an image",
            "empty file", "too many pixels (N > limit)", "fully transparent; ...", "no permission", "file not found",
            "JPEG 2000 is not supported; convert it to JPEG or PNG", ...
        path: The file, or None.
        code: For programs: "unreadable_image", "truncated_image", "not_an_image" (or of a format that is not read),
            "empty_image", "too_many_pixels".
    """

    def __init__(self, reason: str, path: Path | None = None, code: str = "unreadable_image") -> None:
        super().__init__(reason, path, code)
        self.reason, self.path, self.code = reason, path, code

    def __str__(self) -> str:
        return self.reason if self.path is None else f"{self.path}: {self.reason}"


class DamagedImageError(ImageError):
    """The decoder failed for a reason that it does not name: damaged content, or a variant that it does not read."""


def load_image(image: Image.Image) -> None:
    """Read an opened image's pixels and EXIF; from then on, several threads may convert it at once.

    Raises:
        ImageError: The pixels cannot be read, or the image was closed; no other exception.
    """
    file = getattr(image, "fp", None)
    closed = file is None or file.closed
    if closed and getattr(image, "tile", None):
        raise ImageError(_CLOSED)
    try:
        _correct_samples(image)
        image.load()
    except Exception as error:
        raise (ImageError(_CLOSED) if closed else decoding_error(error)) from error
    _orientation(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an opened image to an upright image of mode RGB, 8 bits a channel; the argument stays as it is.

    Transparent parts show a white ground. An EXIF orientation is applied, and the result carries none, so that
    converting twice changes nothing. Grey of 16 bits is scaled by 255/65535, and so is mode ``I``, which must lie in 0
    to 65535. Mode ``F`` is taken as 0 to 1, 0 to 255 or 0 to 65535, whichever is the first to hold all its values.
    Colour profiles are not applied, as usual in this field.

    Raises:
        ImageError: The pixels cannot be read or converted, or all of them are transparent; no other exception.
    """
    load_image(image)
    try:
        turn = _UPRIGHT.get(_orientation(image))
        rgb = _flatten(image)
        if turn is not None:
            rgb = rgb.transpose(turn)
    except Exception as error:
        raise decoding_error(error) from error
    # The result of a conversion inherits the EXIF bytes; the next reader would turn it a second time.
    rgb.info = {}
    return rgb


def array_to_rgb(array: NDArray[Any]) -> Image.Image:
    """Convert an array of pixels to an image of mode RGB, 8 bits a channel.

    Args:
        array: Shape [H, W] or [H, W, 1] (grey), [H, W, 3] (RGB) or [H, W, 4] (RGB and alpha, shown on white). Values:
            uint8 0 to 255, uint16 0 to 65535, floats 0 to 1, or bool.

    Raises:
        UserError: Another shape, data type or range.
        ImageError: All pixels are transparent.
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


def encode_image(image: Image.Image, kind: str, **options: Any) -> bytes:
    """Return the content of an image file, by Pillow's names of the format and of its options.

    Pillow's own saving to a file of the disk does not notice a write that is cut off, as the last one before a disk is
    full.
    """
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoding_error(error: Exception, path: Path | None = None) -> ImageError:
    """Return an error of Pillow as one of an image; Pillow marks bad data by its wording only."""
    if isinstance(error, ImageError):
        return type(error)(error.reason, path, error.code)
    if isinstance(error, MemoryError):
        return ImageError("not enough memory", path)
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        counts = re.findall(r"(\d+) pixels", str(error))
        return ImageError(f"too many pixels ({' > '.join(counts)})", path, "too_many_pixels")
    if isinstance(error, OSError) and error.errno is not None:
        return ImageError(file_reason(error), path)
    if isinstance(error, EOFError | struct.error | zlib.error) or re.search(
        r"truncated|broken data stream|not enough|unexpected end|reached eof", str(error), re.IGNORECASE
    ):
        return ImageError("truncated", path, "truncated_image")
    return DamagedImageError("damaged", path)


def file_reason(error: OSError | ValueError) -> str:
    """Return the words for an error from opening a file."""
    if isinstance(error, FileNotFoundError | NotADirectoryError | ValueError):
        return "file not found"  # a ValueError is a path that holds a NUL character
    if isinstance(error, PermissionError):
        return "no permission"
    return f"cannot be read ({error.strerror or type(error).__name__})"


def _correct_samples(image: Image.Image) -> None:
    """Correct the header that Pillow has read; does nothing once the pixels are loaded."""
    tile = getattr(image, "tile", None)
    transparent = image.info.get("transparency")
    if tile and image.format == "PNG" and isinstance(transparent, int):
        # Grey of 2 and 4 bits is spread to 8 bits, and so must be the transparent one.
        image.info["transparency"] = transparent * {"L;2": 85, "L;4": 17}.get(tile[0][3], 1)
    tiff.correct_samples(image)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        return 1  # a damaged EXIF block does not make the pixels worse


def _flatten(image: Image.Image) -> Image.Image:
    """Return the loaded image as a new one of mode RGB, on white where it is transparent."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return _deep_grey_to_rgb(image)
    if tiff.is_signed(image) and image.getextrema()[1] > 127:  # type: ignore[operator]
        raise ImageError(_OUTSIDE)
    if image.mode in ("1", "L") and tiff.has_no_polarity(image):
        image = ImageOps.invert(image.convert("L"))
    if not image.has_transparency_data:
        return image.copy() if image.mode == "RGB" else image.convert("RGB")
    if image.mode == "RGBA" and (tiff.has_undeclared_alpha(image) or _is_opaque_bmp(image)):
        return image.convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way from here to RGBA
    elif image.mode == "RGB":
        image = _with_8_bit_transparency(image)
    elif image.mode == "P":
        image = image.copy()  # the conversion writes the transparency into the palette it reads
    return _on_white(image.convert("RGBA"))


def _is_opaque_bmp(image: Image.Image) -> bool:
    """Return True for a BMP file whose alpha is zero everywhere: it was not written, and other programs ignore it."""
    return image.format in ("BMP", "DIB") and image.getchannel("A").getextrema() == (0, 0)


def _on_white(rgba: Image.Image) -> Image.Image:
    alpha = rgba.getchannel("A")
    # An alpha of 1 in 255 shows nothing either; files that mean 0 to 1 by it would all be the same white.
    if int(alpha.getextrema()[1]) <= 1:  # type: ignore[arg-type]
        raise ImageError(_INVISIBLE)
    ground = Image.new("RGB", rgba.size, "white")
    ground.paste(rgba, mask=alpha)
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
        raise ImageError(_OUTSIDE)
    if image.mode == "F":
        white = 1 if high <= 1 else 255 if high <= 255 else 65535
        pixels = np.rint(values.astype(np.float64) * (255 / white)).astype(np.uint8)
    elif tiff.white_value(image) == 65535:
        pixels = _scale_16_to_8(values)
    else:
        pixels = np.rint(values * (255 / tiff.white_value(image))).astype(np.uint8)
    rgb = Image.fromarray(255 - pixels if tiff.is_inverted(image) else pixels).convert("RGB")
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        rgb.putalpha(Image.fromarray(alpha))
        return _on_white(rgb)
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
