"""Objects in boxes: one picture gives several items, wherever an image is read."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from image_files import pixels
from unimetric.data.cache import CacheKind, ImageCache
from unimetric.data.copies import find_copies
from unimetric.data.images import ImageError, decode_image, image_file, is_image_name, split_box, with_box
from unimetric.data.preparing import prepare_cache
from unimetric.data.sources.manifest import read_manifest
from unimetric.errors import UserError

PICTURE = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
numbers = st.integers(0, 10**9 - 1)


@given(box=st.tuples(numbers, numbers, numbers, numbers), name=st.sampled_from(["a.jpg", "b#1.png", "c d.webp"]))
def test_a_box_is_written_and_read(box: tuple[int, int, int, int], name: str) -> None:
    path = Path(with_box(f"x/{name}", box))
    assert split_box(path) == (Path("x") / name, box)
    assert split_box(Path("x") / name) == (Path("x") / name, None)
    assert is_image_name(path)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(PICTURE).save(tmp_path / "shelf.png")
    return tmp_path / "shelf.png"


def test_the_box_is_cut_out_of_the_upright_picture(picture: Path) -> None:
    for left, top, width, height in ((0, 0, 40, 30), (3, 5, 1, 1), (10, 20, 30, 10)):
        path = with_box(str(picture), (left, top, width, height))
        wanted = PICTURE[top : top + height, left : left + width]
        np.testing.assert_array_equal(pixels(decode_image(path)), wanted)
        np.testing.assert_array_equal(pixels(decode_image(picture.read_bytes(), name=path)), wanted)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PICTURE).save(picture, exif=exif)
    upright = np.rot90(PICTURE, -1)
    np.testing.assert_array_equal(pixels(decode_image(with_box(str(picture), (1, 2, 3, 4)))), upright[2:6, 1:4])


@pytest.mark.parametrize("box", [(0, 0, 41, 1), (40, 0, 1, 1), (0, 29, 1, 2), (0, 0, 0, 5), (5, 5, 5, 0)])
def test_a_box_outside_of_the_picture_is_named(box: tuple[int, int, int, int], picture: Path) -> None:
    path = Path(with_box(str(picture), box))
    with pytest.raises(ImageError, match="its box is empty or reaches out of the picture") as caught:
        decode_image(path)
    assert caught.value.path == path


def test_a_missing_picture_is_named_with_its_box(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"gone.png#xywh=0,0,1,1: file not found"):
        decode_image(with_box(str(tmp_path / "gone.png"), (0, 0, 1, 1)))


def test_manifest_columns_give_several_items_of_one_picture(picture: Path) -> None:
    manifest = picture.with_name("m.csv")
    manifest.write_text(
        "path,label,X,y,Width,height\n"
        "shelf.png,mug,0,0,10,10\nshelf.png,bowl,10.4,0,10,9.6\nshelf.png,whole,,,,\nshelf.png,mug,0,0,10,10\n"
    )
    (dataset,) = read_manifest(manifest)
    assert [(split_box(item.path)[1], item.label) for item in dataset.items] == [
        ((0, 0, 10, 10), "mug"),
        ((10, 0, 10, 10), "bowl"),
        (None, "whole"),
    ]
    assert {image_file(item.path) for item in dataset.items} == {picture}
    assert any("cut out by the columns x, y, width, height" in note for note in dataset.notes)
    assert len(dataset.ignored) == 1


def test_a_box_between_pixels_that_ends_at_the_edge_stays_in_the_picture(picture: Path) -> None:
    """As detectors write them: x and width each round up, and their sum does not."""
    manifest = picture.with_name("m.csv")
    manifest.write_text(
        "path,label,x,y,width,height\nshelf.png,mug,1.5,0.7,38.5,29.3\nshelf.png,mug,3.5,1.5,36.5,28.5\n"
    )
    (dataset,) = read_manifest(manifest)
    assert [split_box(item.path)[1] for item in dataset.items] == [(2, 1, 38, 29), (4, 2, 36, 28)]
    for item in dataset.items:
        decode_image(item.path)


def test_missing_numbers_mean_the_whole_picture(picture: Path) -> None:
    """As pandas writes them, which makes floats of whole numbers with gaps."""
    columns = {"x": [1.0, None], "y": [2.0, float("nan")], "width": [3.0, None], "height": [4.0, None]}
    table = pa.table({"path": [picture.name] * 2, "label": ["a", "a"], **columns})
    pq.write_table(table, picture.parent / "m.parquet")
    (picture.parent / "m.csv").write_text(
        f"path,label,x,y,width,height\n{picture.name},a,1.0,2.0,3.0,4.0\n{picture.name},a,nan,NaN,,NULL\n"
    )
    for name in ("m.parquet", "m.csv"):
        (dataset,) = read_manifest(picture.parent / name)
        assert [item.path for item in dataset.items] == [Path(with_box(str(picture), (1, 2, 3, 4))), picture]


def test_a_size_alone_is_no_box(picture: Path) -> None:
    manifest = picture.with_name("m.csv")
    manifest.write_text("path,label,width,height\nshelf.png,mug,40,30\n")
    (dataset,) = read_manifest(manifest)
    assert dataset.items[0].path == picture


@pytest.mark.parametrize(
    "cells", ["1,2,3,", "-1,0,5,5", "0,0,0,5", "a,b,c,d", "nan,0,1,1", "inf,0,1,1", ".5,.5,.7,.9", "0,0,1,1"]
)
def test_bad_boxes_are_refused_with_their_row(cells: str, picture: Path) -> None:
    manifest = picture.with_name("m.csv")
    manifest.write_text(f"path,label,x,y,width,height\nshelf.png,mug,1,1,5,5\nshelf.png,mug,{cells}\n")
    with pytest.raises(
        UserError, match=r"m\.csv, row 2 \(line 3\): x, y, width, height are .*give pixels of the upright picture"
    ):
        read_manifest(manifest)


def test_a_cache_holds_objects_apart(picture: Path, tmp_path: Path) -> None:
    paths = [Path(with_box(str(picture), (left, 0, 10, 30))) for left in (0, 10)] + [picture]
    prepared = prepare_cache(paths, tmp_path / "cache", CacheKind(64, "jpeg"), threads=2)
    assert (prepared.written, prepared.refused) == (3, ())
    cache = ImageCache.open(tmp_path / "cache")
    assert [cached.size for path in paths if (cached := cache.read(path))] == [(10, 30), (10, 30), (40, 30)]
    os.utime(picture)
    assert not any(cache.holds(path) for path in paths)


def test_objects_of_one_picture_are_no_copies_of_each_other(picture: Path) -> None:
    first, second = (Path(with_box(str(picture), (left, 0, 10, 10))) for left in (0, 10))
    copy = picture.with_name("copy.png")
    copy.write_bytes(picture.read_bytes())
    assert find_copies([first], [second]).pairs == ()
    same = Path(with_box(str(copy), (0, 0, 10, 10)))
    assert find_copies([first], [same]).pairs == ((first, same),)
