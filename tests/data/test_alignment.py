"""A part is found where it was cut; strips and tiny corners, which fit anything, are no parts and no copies."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from audit_pictures import picture
from unimetric.data.alignment import Prepared, best_overlay, placed, refined
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


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    share=st.tuples(st.floats(0.72, 1), st.floats(0.72, 1)).filter(lambda share: abs(share[0] - share[1]) < 0.1),
    place=st.tuples(st.floats(0, 1), st.floats(0, 1)),
    mirrored=st.booleans(),
    swapped=st.booleans(),
)
def test_a_part_is_found_where_it_was_cut(
    seed: int, share: tuple[float, float], place: tuple[float, float], mirrored: bool, swapped: bool
) -> None:
    whole = picture(seed, 224, 224)
    box = (place[0] * (1 - share[0]), place[1] * (1 - share[1]), *share)
    left, top, width, height = (224 * value for value in box)
    part = whole.transform((224, 224), Image.Transform.EXTENT, (left, top, left + width, top + height), 2)
    pictures = [whole, ImageOps.mirror(part) if mirrored else part]
    if swapped:
        pictures.reverse()
    small = [Prepared.of(small_grey(each)) for each in pictures]
    greys = [np.asarray(each.convert("L").resize((112, 112), Image.Resampling.BOX)) for each in pictures]
    found = refined(greys[0], greys[1], placed(small[0], small[1], best_overlay(*small)))
    assert found.box == pytest.approx(box, abs=0.01)
    assert found.fit > 0.9
    if max(share) < 0.95:  # Else either picture may be the whole.
        assert (found.swapped, found.mirrored) == (swapped, mirrored)


def test_refining_a_place_never_makes_it_fit_less() -> None:
    for seed in range(10):
        pair = [Prepared.of(small_grey(picture(seed + number, 224, 224))) for number in (0, seed % 2)]
        start = best_overlay(*pair)
        here = replace(start, box=(0.02, 0.01, 0.97, 0.95))
        once = placed(*pair, here)
        assert placed(*pair, once).fit >= once.fit - 1e-6


def test_tiny_corners_of_objects_are_no_copies() -> None:
    """Little else than white ground: any two corners fit."""
    pictures = [
        corner((204, 204, 224, 224), "black", "white", ellipse=False),
        corner((202, 206, 240, 240), "black", "white", ellipse=True),
    ]
    small = [Prepared.of(small_grey(each)) for each in pictures]
    assert best_overlay(*small).fit > 0.8
    assert near_copy(small[0], small[1], lambda: (pictures[0], pictures[1])) is None
