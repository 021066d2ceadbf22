"""Images: which files are images, and how they become upright 8-bit RGB."""

from unimetric.data.images.boxes import Box, image_file, split_box, with_box, without_box
from unimetric.data.images.decoding import MAX_PIXELS, decode_image
from unimetric.data.images.formats import SUFFIXES, UNSUPPORTED, is_image_name
from unimetric.data.images.pixels import (
    LONGEST_JPEG,
    ImageError,
    array_to_rgb,
    encode_image,
    file_reason,
    load_image,
    to_rgb,
)

__all__ = [
    "LONGEST_JPEG",
    "MAX_PIXELS",
    "SUFFIXES",
    "UNSUPPORTED",
    "Box",
    "ImageError",
    "array_to_rgb",
    "decode_image",
    "encode_image",
    "file_reason",
    "image_file",
    "is_image_name",
    "load_image",
    "split_box",
    "to_rgb",
    "with_box",
    "without_box",
]
