"""Rule for near copies: decide from their pixels if two pictures are one, re-encoded, cropped, mirrored or framed."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from unimetric.data.alignment import Grey, Prepared, best_overlay, placed, refined

RULE = 2
"""Version of the rule. Raise it with every change of a decision, so that decisions that were kept are made again."""

SIDE = 64
"""Side of the grey pictures that `Prepared` is made of."""

AGREEMENT = 0.84
"""Minimum correlation, in three quarters of the blocks of two overlaid pictures, for them to be copies."""

_PROMISING = 0.45
"""Minimum fit of two small pictures for comparing them at a larger size."""

_PLACED = 0.78
"""The same once the place is refined; that of 255 copies in `benchmarks/audit.py` is 0.88 to 1."""

_SIDE = 112
"""Side of the larger pictures."""

_AGREEMENT_IN_OTHER_COLOURS = 0.94
"""The same where the colours differ, because products on a white background share outlines with their variants."""

_EQUAL_COLOURS = 12.0
"""Maximum mean difference of the colours, 0 to 255, for these to be called different."""

_SAME_COLOURS = 2.0
"""Maximum difference of the mean colours, 0 to 255, for two images to be interchangeable.

Re-encoding hardly moves the mean (by less than this for 97 % of the copies that `benchmarks/audit.py` plants), unlike
photographs of one product in several colours.
"""


@dataclass(frozen=True)
class NearCopy:
    """Two images of one picture.

    Attributes:
        agreement: From `AGREEMENT` to 1.
        colours: Difference of the mean colours, 0 to 255.
        how: The edit in words.
    """

    agreement: float
    colours: float
    how: str

    @property
    def same_colours(self) -> bool:
        """True if the colours agree; if not, the images may show two variants of a product."""
        return self.colours <= _SAME_COLOURS


def small_grey(picture: Image.Image) -> Grey:
    """Return the grey values [SIDE, SIDE] of a picture, stretched to a square."""
    resampling = Image.Resampling.BOX if min(picture.size) >= SIDE else None
    return np.asarray(picture.convert("L").resize((SIDE, SIDE), resampling))


def near_copy(
    one: Prepared, other: Prepared, pictures: Callable[[], tuple[Image.Image, Image.Image]]
) -> NearCopy | None:
    """Return how two pictures are copies of each other, or None.

    The `small_grey` of both are given, prepared; ``pictures`` returns both, where the small ones are promising.
    """
    overlay = best_overlay(one, other)
    if overlay.fit < _PROMISING or (overlay := placed(one, other, overlay)).fit < _PLACED:
        return None
    squares = [_square(picture) for picture in pictures()]
    greys = [np.asarray(square.convert("L")) for square in squares]
    overlay = refined(greys[0], greys[1], overlay)
    if overlay.fit < AGREEMENT:
        return None
    whole, part = reversed(squares) if overlay.swapped else squares
    difference = _colour_differences(whole, ImageOps.mirror(part) if overlay.mirrored else part, overlay.box)
    if np.abs(difference).mean() > _EQUAL_COLOURS and overlay.fit < _AGREEMENT_IN_OTHER_COLOURS:
        return None
    colours = float(np.abs(difference.mean(axis=0)).mean())
    width, height = overlay.box[2:]
    edits = [
        "mirrored" if overlay.mirrored else "",
        "cropped or framed" if width * height < 0.97 else "",
        "other colours" if colours > _SAME_COLOURS else "",
    ]
    return NearCopy(overlay.fit, colours, ", ".join(filter(None, edits)) or "re-encoded")


def _colour_differences(
    whole: Image.Image, part: Image.Image, box: tuple[float, float, float, float]
) -> NDArray[np.float32]:
    """Return the differences of the colours [N, 3], -255 to 255, where either picture differs from its background."""
    left, top, width, height = box
    window = whole.crop((_SIDE * left, _SIDE * top, _SIDE * (left + width), _SIDE * (top + height)))
    one, other = (np.asarray(picture.resize((32, 32)), np.float32) for picture in (window, part))
    shows: NDArray[np.bool_] = np.zeros((32, 32), dtype=bool)
    for values in (one, other):
        edge = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
        shows |= np.abs(values - np.median(edge, axis=0)).max(axis=2) > 20
    difference: NDArray[np.float32] = one - other
    return difference[shows] if shows.mean() > 0.02 else difference.reshape(-1, 3)


def _square(picture: Image.Image) -> Image.Image:
    return picture.resize(
        (_SIDE, _SIDE), Image.Resampling.BOX if min(picture.size) >= _SIDE else Image.Resampling.BILINEAR
    )
