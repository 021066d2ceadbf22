"""Handwritten digits: twenty of each from scikit-learn's copy of the UCI set, by up to 13 writers."""

import gzip
from collections.abc import Iterator
from functools import partial

import numpy as np
from PIL import Image

from unimetric.data.sources.demo.drawing import SIDE, Drawing
from unimetric.data.sources.demo.packages import package_file

_PER_CLASS = 20
# Spread over the source, where neighbouring rows may be by one writer.
_STEP = 8
_MARGIN = SIDE // 8


def digit_drawings() -> Iterator[Drawing]:
    """Yield every digit, class by class, in the order of the source; a `UserError` if the file is missing."""
    # Read from the file: importing scikit-learn takes longer than drawing.
    with gzip.open(package_file("scikit-learn", "sklearn/datasets/data/digits.csv.gz"), "rt") as file:
        rows = np.loadtxt(file, delimiter=",", dtype=np.int64)  # (1797, 8*8 + 1)
    for digit in range(10):
        for number in np.flatnonzero(rows[:, -1] == digit)[::_STEP][:_PER_CLASS].tolist():
            yield Drawing(str(digit), f"{number:04d}", partial(_draw, rows[number, :-1].reshape(8, 8)))


def _draw(ink: np.ndarray) -> Image.Image:
    """Draw dark ink on paper; ``ink`` is [8 x 8], 0 to 16. Only the handwriting varies."""
    grey = Image.fromarray((255 - ink * 255 // 16).astype(np.uint8))
    inner = SIDE - 2 * _MARGIN
    picture = Image.new("L", (SIDE, SIDE), 255)
    picture.paste(grey.resize((inner, inner), Image.Resampling.BICUBIC), (_MARGIN, _MARGIN))
    return picture.convert("RGB")
