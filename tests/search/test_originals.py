"""The picture of an item from its own file: only that which was indexed, upright, limited in size, without metadata."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unimetric.data.images import with_box
from unimetric.files import cache_folder
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.errors import NoOriginalError
from unimetric.search.items import NewItem, StoredItem
from unimetric.search.originals import ORIGINAL_SIDE, read_original
from unimetric.search.preparation import with_box_hash

LIMIT = 50_000_000


@pytest.fixture
def own_index(model: Path, embedder: Embedder, tmp_path: Path) -> Any:
    with SearchIndex.create(tmp_path / "db", model, embedder=embedder) as opened:
        yield opened


def quarters(size: tuple[int, int] = (300, 200)) -> Image.Image:
    """Red, green, blue and yellow, from the upper left corner on, line by line."""
    pixels = np.asarray([[[200, 0, 0], [0, 200, 0]], [[0, 0, 200], [200, 200, 0]]], np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def saved(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def item_of(path: Path, content: bytes | None = None) -> StoredItem:
    """The row of a file."""
    digest = hashlib.sha256(path.read_bytes() if content is None else content).hexdigest()
    return StoredItem("0" * 32, "d", "a", str(path), {}, digest)


def added(index: SearchIndex, item: NewItem) -> StoredItem:
    result = index.add([item])
    assert not result.refused
    return index.item(str(result.ids[0]))


def opened(content: bytes) -> Image.Image:
    image = Image.open(BytesIO(content))
    assert image.format == "JPEG"
    return image


def colours(image: Image.Image) -> list[str]:
    """The names of the colours in the middles of the quarters, line by line."""
    names = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
    places = [(x, y) for y in (1, 3) for x in (1, 3)]
    found = [image.getpixel((image.width * x // 4, image.height * y // 4)) for x, y in places]
    return [names[tuple(int(value > 100) for value in colour)] for colour in found]  # type: ignore[union-attr,index]


@pytest.mark.parametrize(
    ("ending", "options"), [("png", {}), ("tiff", {"compression": "tiff_lzw"}), ("webp", {}), ("heic", {})]
)
def test_every_format_is_shown_as_it_was_indexed(
    own_index: SearchIndex, tmp_path: Path, ending: str, options: dict[str, Any]
) -> None:
    if ending == "heic":
        pytest.importorskip("pillow_heif").register_heif_opener()
    item = added(own_index, NewItem(saved(tmp_path / f"a.{ending}", quarters(), **options), "d"))
    image = opened(read_original(item, LIMIT))
    assert image.size == (300, 200)
    assert colours(image) == ["red", "green", "blue", "yellow"]


def test_a_photograph_is_upright_smaller_and_without_metadata(own_index: SearchIndex, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    exif[0x010F] = "a camera"
    item = added(own_index, NewItem(saved(tmp_path / "a.jpg", quarters((3000, 2000)), exif=exif, quality=95), "d"))
    image = opened(read_original(item, LIMIT))
    assert image.size == (1067, ORIGINAL_SIDE)
    assert colours(image) == ["blue", "red", "yellow", "green"]
    assert not image.getexif()


def test_small_pictures_are_not_enlarged(own_index: SearchIndex, tmp_path: Path) -> None:
    item = added(own_index, NewItem(saved(tmp_path / "a.png", quarters((1, 3))), "d"))
    assert opened(read_original(item, LIMIT)).size == (1, 3)


@pytest.mark.parametrize("box", [(100, 50, 80, 60), (0, 0, 150, 200), (299, 199, 1, 1), (0, 0, 300, 200)])
def test_an_object_is_outlined_in_its_whole_picture(
    own_index: SearchIndex, tmp_path: Path, box: tuple[int, int, int, int]
) -> None:
    file = saved(tmp_path / "a.png", Image.new("RGB", (300, 200), (0, 0, 200)))
    item = added(own_index, NewItem(Path(with_box(str(file), box)), "d"))
    image = opened(read_original(item, LIMIT))
    assert image.size == (300, 200)
    bright = np.asarray(image.convert("RGB")).min(axis=2) > 180
    left, top, width, height = box
    rows, columns = np.nonzero(bright)
    # White lines within four pixels of each edge of the box, and nowhere else.
    for found, (first, last) in ((columns, (left, left + width)), (rows, (top, top + height))):
        assert max(0, first - 4) <= found.min() <= first + 4
        assert last - 5 <= found.max() <= last + 3
    assert not bright[top + 5 : top + height - 5, left + 5 : left + width - 5].any()


def test_the_outline_follows_the_scale(own_index: SearchIndex, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", Image.new("RGB", (3200, 1600), (0, 0, 200)))
    item = added(own_index, NewItem(Path(with_box(str(file), (1000, 400, 800, 600))), "d"))
    image = opened(read_original(item, LIMIT))
    assert image.size == (1600, 800)
    rows, columns = np.nonzero(np.asarray(image.convert("RGB")).min(axis=2) > 180)
    assert np.abs([columns.min() - 500, columns.max() - 900, rows.min() - 200, rows.max() - 500]).max() <= 12


@pytest.mark.parametrize(
    "box", [(0, 0, 1, 1), (3999, 0, 1, 3000), (0, 10, 2, 50), (100, 2999, 50, 1), (3999, 2999, 1, 1)]
)
def test_a_box_of_a_pixel_at_an_edge_is_outlined(box: tuple[int, int, int, int], tmp_path: Path) -> None:
    path = saved(tmp_path / "large.png", quarters((4000, 3000)))
    item = item_of(path)
    boxed = replace(item, path=with_box(str(path), box), content_hash=with_box_hash(item.content_hash, box))
    assert opened(read_original(boxed, LIMIT)).size == (1600, 1200)


@pytest.mark.parametrize(("size", "box"), [((1, 1), (0, 0, 1, 1)), ((4000, 3), (0, 0, 9, 3)), ((9, 9), (4, 4, 1, 1))])
def test_a_picture_too_small_for_an_outline_is_shown_without(
    own_index: SearchIndex, tmp_path: Path, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    file = saved(tmp_path / "a.png", Image.new("RGB", size, (0, 0, 200)))
    item = added(own_index, NewItem(Path(with_box(str(file), box)), "d"))
    assert np.asarray(opened(read_original(item, LIMIT))).max() <= 210


def test_a_changed_file_is_not_shown(own_index: SearchIndex, tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", quarters())
    item = added(own_index, NewItem(path, "d"))
    saved(path, quarters((200, 300)))
    with pytest.raises(NoOriginalError, match="its file was changed since it was indexed"):
        read_original(item, LIMIT)
    again = added(own_index, NewItem(path, "d"))
    assert opened(read_original(again, LIMIT)).size == (200, 300)


def test_another_box_is_another_item(own_index: SearchIndex, tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", quarters())
    item = added(own_index, NewItem(Path(with_box(str(file), (1, 2, 30, 40))), "d"))
    with pytest.raises(NoOriginalError, match="was changed"):
        read_original(replace(item, path=with_box(str(file), (1, 2, 30, 41))), LIMIT)


def test_a_path_that_somebody_claims_leads_to_no_file(own_index: SearchIndex, tmp_path: Path) -> None:
    """Clients of the service may add pictures under any path."""
    secret = saved(tmp_path / "secret.png", quarters())
    other = BytesIO()
    quarters((30, 30)).save(other, "PNG")
    for path in (str(secret), with_box(str(secret), (0, 0, 9, 9)), f"{tmp_path}/x/../secret.png"):
        item = added(own_index, NewItem(other.getvalue(), "d", path=path))
        with pytest.raises(NoOriginalError):
            read_original(item, LIMIT)


@pytest.mark.parametrize(
    "path",
    [
        "a.png",
        "./a.png",
        "sha256:0",
        "https://example.org/a.png",
        "file:///a.png",
        "s3://../../a.png",
        "s3://a",
        "",
        "/a\0b",
        "/tmp/#xywh=0,0,1,1",
        "/tmp/.#xywh=0,0,1,1",
        "s3://b/#xywh=1,1,1,1",
    ],
)
def test_names_that_are_no_paths_of_this_machine(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path / "a.png", quarters())
    with pytest.raises(NoOriginalError, match="the service cannot find its file"):
        read_original(replace(item_of(file), path=path), LIMIT)


def test_an_object_in_storage_is_read_from_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    copy = cache_folder() / "objects" / "s3" / "bucket" / "birds" / "a.png"
    file = saved(tmp_path / "a.png", quarters())
    item = replace(item_of(file), path="s3://bucket/birds/a.png")
    with pytest.raises(NoOriginalError, match="cannot find"):
        read_original(item, LIMIT)
    copy.parent.mkdir(parents=True)
    copy.write_bytes(file.read_bytes())
    assert opened(read_original(item, LIMIT)).size == (300, 200)


def test_what_cannot_be_shown_says_why(tmp_path: Path) -> None:
    file = saved(tmp_path / "a.png", quarters())
    item = item_of(file)
    with pytest.raises(NoOriginalError, match=r"its file cannot be shown: too many pixels \(60000 > 59999\)"):
        read_original(item, 59_999)
    folder = tmp_path / "folder.png"
    folder.mkdir()
    for missing in (folder, tmp_path / "no.png", file / "b.png"):
        with pytest.raises(NoOriginalError, match="the service cannot find its file"):
            read_original(item_of(missing, b""), LIMIT)
    text = tmp_path / "text.png"
    text.write_text("Dear diary")
    with pytest.raises(NoOriginalError, match="its file cannot be shown: not an image"):
        read_original(item_of(text), LIMIT)
    with (tmp_path / "huge.png").open("wb") as huge:
        huge.truncate(100_000_001)
    with pytest.raises(NoOriginalError, match="its file is larger than 100 MB"):
        read_original(item_of(tmp_path / "huge.png", b""), LIMIT)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(NoOriginalError, match="the service cannot find its file"):
        read_original(item_of(tmp_path / "a.png", b""), LIMIT)
