"""Copies of seeded pictures under common edits are found; unrelated pictures are not."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from audit_pictures import Colours, compressed, picture
from unimetric.curation.copies import best_of, exact_copies, grouped, members, near_copies
from unimetric.curation.measurements import measure
from unimetric.data.alignment import Prepared, best_fits, best_overlay
from unimetric.data.catalog import Item
from unimetric.data.near_copies import AGREEMENT, small_grey
from unimetric.errors import UserError


def watermarked(image: Image.Image) -> Image.Image:
    marked = image.copy()
    ImageDraw.Draw(marked).rectangle((30, 52, 130, 64), fill="white")
    return Image.blend(image, marked, 0.5)


GREY = np.full((64, 64), 128, np.uint8)

EDITS = {
    "re-encoded": compressed,
    "smaller": lambda image: image.resize((100, 75)),
    "cropped to 80 %": lambda image: image.crop((9, 12, 152, 119)),
    "mirrored": ImageOps.mirror,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.2),
    "framed": lambda image: ImageOps.expand(image, 10, "white"),
    "watermarked": watermarked,
    "mirrored and re-encoded": lambda image: compressed(ImageOps.mirror(image)),
}


def measured(folder: Path, images: dict[str, Image.Image]):
    items = []
    for name, image in images.items():
        path = folder / f"{name}.png"
        image.save(path)
        items.append(Item(path, "a", "set"))
    return measure(items, Colours(), "colours", folder / "work", "auto")


@pytest.mark.parametrize("edit", EDITS)
def test_an_edited_copy_is_found(edit: str, tmp_path: Path) -> None:
    images = {f"other{seed}": picture(seed) for seed in range(1, 7)}
    found = near_copies(measured(tmp_path, images | {"one": picture(0), "two": EDITS[edit](picture(0))}), [])
    assert [(copy.one, copy.other) for copy in found] == [(6, 7)]
    assert AGREEMENT <= found[0].agreement <= 1
    assert ("mirrored" in found[0].how) == ("mirrored" in edit)
    assert found[0].same_colours or edit in ("grey", "brighter", "watermarked")


def test_many_pairs_at_once_fit_as_each_pair_does() -> None:
    """The quick comparison of many pairs and the alignment of one are the same comparison."""
    greys = np.stack([small_grey(edit(picture(seed))) for seed in (0, 1) for edit in EDITS.values()] + [GREY])
    pairs = np.array([(one, other) for one in range(len(greys)) for other in range(0, len(greys), 4)])
    many = Prepared.of(greys)
    fits = best_fits(*(many.at(column) for column in pairs.T))
    alone = [Prepared.of(grey) for grey in greys]
    for (one, other), fit in zip(pairs.tolist(), fits.tolist(), strict=True):
        assert best_overlay(alone[one], alone[other]).fit == pytest.approx(fit, abs=1e-4)
        assert best_overlay(many.at(one), many.at(other)) == best_overlay(alone[one], alone[other])


def product(colour: tuple[int, int, int]) -> Image.Image:
    """A photograph of a box on white ground."""
    image = Image.new("RGB", (160, 120), "white")
    draw = ImageDraw.Draw(image)
    draw.polygon([(30, 50), (90, 30), (130, 45), (125, 95), (60, 105)], fill=colour)
    draw.line([(30, 50), (80, 62), (130, 45)], fill=tuple(value // 2 for value in colour), width=3)
    draw.line([(80, 62), (60, 105)], fill=tuple(value // 2 for value in colour), width=3)
    return image


def test_a_product_in_another_colour_is_not_interchangeable(tmp_path: Path) -> None:
    """It is reported, but its removal is not suggested."""
    images = {"red": product((150, 40, 50)), "wine": product((120, 40, 70)), "same": compressed(product((150, 40, 50)))}
    images |= {f"other{seed}": picture(seed) for seed in range(4)}
    found = {(copy.one, copy.other): copy.same_colours for copy in near_copies(measured(tmp_path, images), [])}
    assert found[0, 2]
    assert not found.get((0, 1), False)
    assert not found.get((1, 2), False)


def test_an_image_that_is_gone_meanwhile_stops_the_audit(tmp_path: Path) -> None:
    found = measured(tmp_path, {"one": picture(0), "two": compressed(picture(0))})
    (tmp_path / "two.png").unlink()
    with pytest.raises(UserError, match=r"two\.png: file not found.*run the audit again"):
        near_copies(found, [])


def test_unrelated_pictures_are_no_copies(tmp_path: Path) -> None:
    assert near_copies(measured(tmp_path, {f"{seed:02}": picture(seed) for seed in range(24)}), []) == []


def test_equal_pixels_in_other_files_are_exact_copies(tmp_path: Path) -> None:
    image = picture(3)
    for name, options in (("a.png", {}), ("b.png", {"compress_level": 0}), ("c.bmp", {})):
        image.save(tmp_path / name, **options)
    picture(4).save(tmp_path / "d.png")
    items = [Item(tmp_path / name, "a", "set") for name in ("a.png", "b.png", "c.bmp", "d.png")]
    found = measure(items, Colours(), "colours", tmp_path / "work", "auto")
    copies = exact_copies(found)
    assert [(copy.one, copy.other, copy.how) for copy in copies] == [(0, 1, "equal pixels"), (0, 2, "equal pixels")]
    assert members(grouped(copies, 4)) == [[0, 1, 2]]
    sizes = [(tmp_path / name).stat().st_size for name in ("a.png", "b.png", "c.bmp")]
    assert best_of(found, [0, 1, 2]) == int(np.argmax(sizes))
    assert near_copies(found, copies) == []
