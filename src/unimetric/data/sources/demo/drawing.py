"""Shared by the domains: a picture to be drawn, its own random numbers, and a shape on a plain ground."""

import colorsys
import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

SIDE = 128
"""Side in pixels of an icon, a glyph and a digit."""


@dataclass(frozen=True, slots=True)
class Drawing:
    """A picture to be drawn, with its class and its origin, which is part of the file's name."""

    label: str
    origin: str
    draw: Callable[[], Image.Image]
    """Return an RGB picture, the same at every call."""
    jpeg_quality: int | None = None
    """Saved as JPEG of this quality; as PNG, without loss, if None."""


def generator(*parts: str) -> np.random.Generator:
    """Return random numbers that depend on ``parts`` only, not on the order in which pictures are drawn."""
    digest = hashlib.sha256("\0".join(parts).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def place(mask: Image.Image, rng: np.random.Generator, *, turn: float) -> Image.Image:
    """Put a shape on a plain ground: random colours, size, position, and rotation up to ``turn`` degrees either way.

    The mask is grey, white where the shape is, and not empty. All of it stays within the middle 87 % of the RGB picture
    [SIDE x SIDE], which evaluation's centre crop keeps.
    """
    mask = mask.rotate(rng.uniform(-turn, turn), Image.Resampling.BICUBIC, expand=True)
    mask = mask.crop(mask.getbbox())
    longer = SIDE * rng.uniform(0.55, 0.78)
    scale = longer / max(mask.size)
    width, height = (max(1, round(length * scale)) for length in mask.size)
    mask = mask.resize((width, height), Image.Resampling.LANCZOS)
    margin = SIDE // 16
    left = int(rng.integers(margin, SIDE - margin - width + 1))
    top = int(rng.integers(margin, SIDE - margin - height + 1))
    ground, ink = two_colours(rng)
    picture = Image.new("RGB", (SIDE, SIDE), ground)
    picture.paste(ink, (left, top, left + width, top + height), mask)
    return picture


def two_colours(rng: np.random.Generator, contrast: float = 90.0) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Return two random colours of which the luminances differ by ``contrast`` at least (of 255)."""
    while True:
        first, second = _colour(rng), _colour(rng)
        if abs(_luminance(first) - _luminance(second)) >= contrast:
            return first, second


def _colour(rng: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 0.9), rng.uniform(0.05, 1))
    return round(255 * red), round(255 * green), round(255 * blue)


def _luminance(colour: tuple[int, int, int]) -> float:
    return 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]
