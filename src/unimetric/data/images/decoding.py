"""Decode image files to upright 8-bit RGB."""

from __future__ import annotations

import stat
from io import BytesIO
from pathlib import Path
from typing import IO

from PIL import Image, UnidentifiedImageError

from unimetric.data.images import tiff
from unimetric.data.images.bmp import open_bit_fields
from unimetric.data.images.boxes import Box, image_file, split_box
from unimetric.data.images.formats import (
    HEAD_BYTES,
    PILLOW_FORMATS,
    UNSUPPORTED,
    content_format,
    content_problem,
    unsupported_reason,
)
from unimetric.data.images.jpeg_xl import open_jpeg_xl
from unimetric.data.images.pixels import DamagedImageError, ImageError, decoding_error, file_reason, to_rgb
from unimetric.data.images.stripping import strip_metadata

MAX_PIXELS = 100_000_000
"""Images with more pixels than this are refused before they are decoded (100 Mpx, about 300 MB)."""


def decode_image(
    source: Path | str | bytes, max_pixels: int = MAX_PIXELS, *, name: str | None = None, at_least: int | None = None
) -> Image.Image:
    """Decode an image file, or its bytes, to an upright image of mode RGB, 8 bits a channel.

    The first frame of an animation or of a multi-page file is taken. Colours are converted as by `to_rgb`. Metadata
    other than the EXIF orientation are not read, so that damaged ones do not matter.

    Args:
        source: The file's path, with a box or without (see `with_box`), or its content.
        max_pixels: Larger images are refused from their header alone. Pillow's own limit, twice
            ``PIL.Image.MAX_IMAGE_PIXELS`` (179 million), holds as well.
        name: The file name of the bytes, with a box or without; its ending names formats that are not supported.
        at_least: Let a JPEG file be decoded at 1/2, 1/4 or 1/8 of its size, the smallest whose shorter side has at
            least this many pixels: that much less work, and each pixel is nearly the mean of those it replaces. Other
            formats are decoded in full.

    Raises:
        ImageError: The image cannot be decoded completely, is fully transparent, or does not contain the box; no other
            exception.
    """
    if isinstance(source, bytes):
        path, box = (None, None) if name is None else split_box(Path(name))
        return _cut(_decode(BytesIO(source), path, max_pixels, None if box else at_least), box, path)
    place = Path(source)
    path, box = split_box(place)
    try:
        # Opening a named pipe would wait for ever.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("a folder, not a file" if path.is_dir() else "not a regular file", place)
        with path.open("rb") as file:
            return _cut(_decode(file, place, max_pixels, None if box else at_least), box, place)
    except (OSError, ValueError) as error:
        raise ImageError(file_reason(error), place) from error


def _cut(image: Image.Image, box: Box | None, path: Path | None) -> Image.Image:
    if box is None:
        return image
    left, top, width, height = box
    if not (width and height and left + width <= image.width and top + height <= image.height):
        raise ImageError("its box is empty or reaches out of the picture; give x, y, width, height in pixels", path)
    return image.crop((left, top, left + width, top + height))


def _decode(file: IO[bytes], path: Path | None, max_pixels: int, at_least: int | None) -> Image.Image:
    head = b""
    try:
        head = file.read(HEAD_BYTES)
        with _open(file, head, max_pixels) as image:
            _check_not_raw(image, head, path)
            _check_size(image.size, max_pixels)
            if at_least is not None and image.format == "JPEG":
                # libjpeg decodes at a reduced size, which, rounded up, becomes `image.size`.
                scale = next((scale for scale in (8, 4, 2) if min(image.size) // scale >= at_least), 1)
                if scale > 1:
                    image.draft(None, (image.width // scale, image.height // scale))  # None keeps the colours' mode
            return _first_frame(image)
    except DamagedImageError as error:
        variant = ", or a variant of TIFF that is not supported" if content_format(head) == "TIFF" else ""
        raise DamagedImageError(f"{error.reason}{variant}", path) from error.__cause__
    except ImageError as error:
        raise ImageError(error.reason, path, error.code) from error.__cause__
    except UnidentifiedImageError as error:
        reason, code = content_problem(head, path)
        raise ImageError(reason, path, code) from error
    except Exception as error:
        raise decoding_error(error, path) from error


def _open(file: IO[bytes], head: bytes, max_pixels: int) -> Image.Image:
    if content_format(head) == "JPEG XL" and unsupported_reason("JPEG XL") is None:
        return open_jpeg_xl(file, lambda size: _check_size(size, max_pixels))
    if content_format(head) == "HEIC" and unsupported_reason("HEIC") is None:
        from pillow_heif import HeifImageFile

        file.seek(0)
        try:
            heif: Image.Image = HeifImageFile(file)
        except SyntaxError as error:
            raise UnidentifiedImageError from error
        return heif
    if (bitmap := open_bit_fields(file, head, lambda size: _check_size(size, max_pixels))) is not None:
        return bitmap
    stream, inverted = strip_metadata(file, head)
    try:
        image = Image.open(stream, formats=PILLOW_FORMATS)
    except OSError as error:
        # Some plugins raise this for variants that they do not read.
        if isinstance(decoding_error(error), DamagedImageError):
            raise UnidentifiedImageError from error
        raise
    if inverted:
        tiff.mark_inverted(image)
    return image


def _first_frame(image: Image.Image) -> Image.Image:
    """Return the image as RGB; around the first frame of a GIF that is smaller than its canvas, white."""
    box = image.tile[0][1] if image.format == "GIF" else None  # type: ignore[attr-defined]
    rgb = to_rgb(image)
    if box is None or box == (0, 0, *rgb.size):
        return rgb
    canvas = Image.new("RGB", rgb.size, "white")
    canvas.paste(rgb.crop(box), box)
    return canvas


def _check_not_raw(image: Image.Image, head: bytes, path: Path | None) -> None:
    """Refuse a camera's raw file, which Pillow opens as a TIFF file with the thumbnail."""
    if image.format != "TIFF":
        return
    by_ending = UNSUPPORTED.get(image_file(path).suffix.lower()) if path else None
    by_content = "camera raw (DNG)" if tiff.is_raw(image) else content_format(head)
    if reason := unsupported_reason(by_ending) or unsupported_reason(by_content):
        raise ImageError(reason, code="not_an_image")


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    pixels = size[0] * size[1]
    if pixels > max_pixels:
        raise ImageError(f"too many pixels ({pixels} > {max_pixels})", code="too_many_pixels")
    if pixels == 0:
        raise ImageError("no pixels")
