"""The refined place of a part keeps the size of one: a strip, or one turned over, fits anything."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from unimetric.data.alignment import Prepared, best_overlay, refined
from unimetric.data.near_copies import near_copy, small_grey


def corner(box: tuple[int, int, int, int], fill: str, background: str, ellipse: bool) -> Image.Image:
    picture = Image.new("RGB", (224, 224), background)
    draw = ImageDraw.Draw(picture)
    (draw.ellipse if ellipse else draw.rectangle)(box, fill=fill)
    return picture


@pytest.mark.parametrize(
    ("rectangle", "ellipse"),
    # The widths of these parts became -0.15, 0.15, 0.13 and 0.05.
    [((20, 150), (10, 120)), ((20, 150), (10, 165)), ((20, 150), (30, 120)), ((20, 150), (30, 165))],
)
def test_a_part_stays_as_large_as_one(rectangle: tuple[int, int], ellipse: tuple[int, int]) -> None:
    one = corner((*rectangle, 224, 224), "#141918", "#e4ffff", ellipse=False)
    other = corner((*ellipse, 420, 300), "#969696", "#ffffff", ellipse=True)
    small = [Prepared.of(small_grey(picture)) for picture in (one, other)]
    greys = [np.asarray(picture.convert("L")) for picture in (one, other)]
    assert min(refined(greys[0], greys[1], best_overlay(*small)).box[2:]) >= 0.5
    near_copy(small[0], small[1], lambda: (one, other))
