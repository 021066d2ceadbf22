"""Boxes: an object within a picture, by a media fragment behind the picture's path (``shelf.jpg#xywh=10,20,300,200``).

With it, one picture gives several items, each with a path of its own: https://www.w3.org/TR/media-frags/#naming-space.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypeAlias

Box: TypeAlias = "tuple[int, int, int, int]"
"""Left and upper edge, width and height in pixels of the upright picture."""

BOX_START = "#xywh="
_FRAGMENT = re.compile(BOX_START + r"(\d{1,9}),(\d{1,9}),(\d{1,9}),(\d{1,9})\Z")


def with_box(path: str, box: Box) -> str:
    """Return the path of the object in a picture's box.

    >>> with_box("shelf.jpg", (10, 20, 300, 200))
    'shelf.jpg#xywh=10,20,300,200'
    """
    return f"{path}{BOX_START}{','.join(map(str, box))}"


def split_box(path: Path) -> tuple[Path, Box | None]:
    """Return the file that a path leads to, and the box in it, or None for the whole picture."""
    found = _FRAGMENT.search(path.name)
    if found is None:
        return path, None
    left, top, width, height = map(int, found.groups())
    return Path(without_box(str(path))), (left, top, width, height)


def without_box(place: str) -> str:
    """Return a path or an address without its box."""
    return _FRAGMENT.sub("", place)


def image_file(path: Path) -> Path:
    """Return the file that a path leads to, with or without a box."""
    return split_box(path)[0]
