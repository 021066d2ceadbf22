"""The picture of an item, read again from the file that it was indexed from."""

import hashlib
import stat
from pathlib import Path

from PIL import Image, ImageDraw

from unimetric.data.cropping import contain
from unimetric.data.images import Box, ImageError, decode_image, encode_image, file_reason, split_box
from unimetric.data.sources.remote import recorded_file
from unimetric.search.errors import NoOriginalError
from unimetric.search.items import StoredItem
from unimetric.search.preparation import with_box_hash

ORIGINAL_SIDE = 1600
"""Pixels of the longer side of an original as it is shown, at most."""

_MOST_BYTES = 100_000_000
"""Bytes of a file that is read, at most."""

_MISSING = "the service cannot find its file"


def read_original(item: StoredItem, max_pixels: int) -> bytes:
    """Return the picture of an item as a JPEG of at most `ORIGINAL_SIDE` pixels a side, upright and without metadata.

    The file is the one that the item's row names, or the copy of its object in the cache. Its content has to be that
    which was indexed, by the recorded hash, so that a path in a row leads to no other file. Of an object in a box, it
    is the whole picture with the box outlined. A `NoOriginalError` if it is not here, was changed, is too large, or
    cannot be read.
    """
    path = recorded_file(item.path)
    if path is None:
        raise NoOriginalError(_MISSING)
    file, box = split_box(path)
    content = _content(file)
    if with_box_hash(hashlib.sha256(content).hexdigest(), box) != item.content_hash:
        raise NoOriginalError("its file was changed since it was indexed")
    try:
        picture = decode_image(content, max_pixels, name=file.name, at_least=None if box else ORIGINAL_SIDE)
    except ImageError as error:
        raise NoOriginalError(f"its file cannot be shown: {error.reason}") from error
    shown = contain(picture, ORIGINAL_SIDE) if max(picture.size) > ORIGINAL_SIDE else picture
    if box is not None:
        _outline(shown, box, shown.width / picture.width, shown.height / picture.height)
    return encode_image(shown, "JPEG", quality=88)


def _content(file: Path) -> bytes:
    try:
        # Opening a named pipe would wait for ever.
        if not stat.S_ISREG(file.stat().st_mode):
            raise NoOriginalError(_MISSING)
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:
        raise NoOriginalError(_MISSING) from error
    except OSError as error:
        raise NoOriginalError(f"its file cannot be shown: {file_reason(error)}") from error
    if len(content) > _MOST_BYTES:
        raise NoOriginalError(f"its file is larger than {_MOST_BYTES // 10**6} MB")
    return content


def _outline(picture: Image.Image, box: Box, across: float, down: float) -> None:
    """Draw a box of the unscaled picture around its content, white on black, so that it is seen on any ground."""
    left, top, width, height = box
    thick = max(2, round(max(picture.size) / 300))
    if min(picture.size) < 8 * thick:
        return  # the outline would hide the picture
    draw = ImageDraw.Draw(picture)
    for colour, out in (("black", 2 * thick), ("white", thick)):
        inset = 2 * thick - out  # at the picture's edges
        first = max(left * across - out, inset), max(top * down - out, inset)
        last = (
            max(first[0], min((left + width) * across - 1 + out, picture.width - 1 - inset)),
            max(first[1], min((top + height) * down - 1 + out, picture.height - 1 - inset)),
        )
        draw.rectangle((first, last), outline=colour, width=thick)
