"""Images: which files are images, and how they become upright 8-bit RGB."""

from unimetric.data.images.decoding import MAX_PIXELS, decode_image
from unimetric.data.images.formats import SUFFIXES, UNSUPPORTED, is_image_name
from unimetric.data.images.pixels import ImageError, array_to_rgb, file_reason, load_image, to_rgb

__all__ = [
    "MAX_PIXELS",
    "SUFFIXES",
    "UNSUPPORTED",
    "ImageError",
    "array_to_rgb",
    "decode_image",
    "file_reason",
    "is_image_name",
    "load_image",
    "to_rgb",
]
