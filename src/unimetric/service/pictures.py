"""Decoding of uploaded images, with errors in sentences."""

import re
from io import BytesIO

from PIL import Image

from unimetric.data.images import ImageError, decode_image
from unimetric.service.failures import ServiceError

_ANIMATED = ("GIF", "PNG", "WEBP", "AVIF")
"""Formats whose further frames are an animation. In a JPEG they are a phone's depth map, in a TIFF pages."""

_MAX_SCANS = 200
"""Scans of a progressive JPEG. Real ones have about ten; each takes as long as decoding the whole image once."""

_READABLE = "send a JPEG, PNG, WebP, GIF, BMP or TIFF"


def decode(content: bytes, max_pixels: int) -> Image.Image:
    """Decode an upload to an upright RGB image.

    Its size and its numbers of frames and scans are checked before anything is decoded, so that no upload takes much
    more memory or time than an image of ``max_pixels``. A `ServiceError` if it is not an image, damaged, too large, or
    animated.
    """
    if not content:
        raise ServiceError(422, "empty_image", f"the image is empty (0 bytes); {_READABLE}")
    if content.startswith(b"\xff\xd8") and content.count(b"\xff\xda") > _MAX_SCANS:
        raise ServiceError(422, "unreadable_image", "the image has too many scans; save it as a plain JPEG")
    try:
        _refuse_large_or_animated(content, max_pixels)
        return decode_image(content, max_pixels)
    except ImageError as error:
        raise _explained(error, max_pixels) from error


def _refuse_large_or_animated(content: bytes, max_pixels: int) -> None:
    try:
        with Image.open(BytesIO(content), formats=_ANIMATED) as image:
            large = image.width * image.height > max_pixels
            animated = not large and bool(getattr(image, "is_animated", False))
    except Exception:
        return  # another format, or damaged: decoding it gives the reason
    if animated:
        raise ServiceError(422, "animated_image", "the image is animated; send a single frame of it as JPEG or PNG")


def _explained(error: ImageError, max_pixels: int) -> ServiceError:
    if error.code == "too_many_pixels":
        pixels = next((f"{int(number):,} pixels" for number in re.findall(r"\d+", error.reason)), error.reason)
        return ServiceError(413, error.code, f"the image has {pixels}; make it smaller than {max_pixels:,} pixels")
    if error.code == "truncated_image":
        return ServiceError(422, error.code, "the image is cut off before its end; send the whole file")
    return ServiceError(422, error.code, f"the image cannot be read: {error.reason}; {_READABLE}")
