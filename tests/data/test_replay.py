"""Which images a replay set keeps, how small it makes them, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

from toy_runs import make_images
from unimetric.data.catalog import Item
from unimetric.data.replay import choose_replay, read_replay, write_replay
from unimetric.data.sources import read_sources
from unimetric.errors import UserError


def items_of(*folders: Path) -> tuple[Item, ...]:
    return tuple(item for dataset in read_sources([str(folder) for folder in folders]) for item in dataset.items)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("replayed")
    return [make_images(root / "a", classes=3), make_images(root / "b", classes=2, seed=1)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_choice_depends_on_seed_and_class_alone(folders: list[Path], tmp_path: Path) -> None:
    both, alone = items_of(*folders), items_of(folders[0])
    chosen = choose_replay(both, 2, seed=3)
    assert [item for item in chosen if item.dataset == "a"] == list(choose_replay(tuple(reversed(alone)), 2, 3))[::-1]
    assert set(chosen) < set(choose_replay(both, 3, seed=3))
    assert set(chosen) != set(choose_replay(both, 2, seed=4))
    assert len(chosen) == 2 * 5
    for name in ("one", "other"):
        write_replay(tmp_path / name, both, 16, 2, seed=3)
    assert content(tmp_path / "one") == content(tmp_path / "other")


def test_images_are_small_and_what_is_written_is_read(tmp_path: Path) -> None:
    sizes = {"wide": (4000, 50), "large": (200, 100), "small": (9, 7)}
    for name, size in sizes.items():
        (tmp_path / "d" / name).mkdir(parents=True)
        Image.new("RGB", size, (200, 10, 10)).save(tmp_path / "d" / name / "x.png")
    (tmp_path / "d" / "large" / "broken.png").write_bytes(b"no image")
    written, notes = write_replay(tmp_path / "replay", items_of(tmp_path / "d"), 28, 5, seed=0)
    assert written == read_replay(tmp_path / "replay")
    assert {item.label: Image.open(item.path).size for item in written.items} == {
        "wide": (2560, 32),
        "large": (64, 32),
        "small": (9, 7),
    }
    assert written.bytes == sum(item.path.stat().st_size for item in written.items)
    assert written.classes == (("d", "large"), ("d", "small"), ("d", "wide"))
    assert len(notes) == 1 and "broken.png" in notes[0]


def test_what_is_replayed_again_is_not_compressed_again(folders: list[Path], tmp_path: Path) -> None:
    first, _ = write_replay(tmp_path / "first", items_of(*folders), 16, 3, seed=0)
    second, _ = write_replay(tmp_path / "second", first.items, 16, 2, seed=0)
    before = {item.path.read_bytes() for item in first.items}
    assert {item.path.read_bytes() for item in second.items} < before


@pytest.mark.parametrize("damage", ["cut", "class", "version", "gone"])
def test_a_damaged_set_is_refused_by_name(damage: str, folders: list[Path], tmp_path: Path) -> None:
    written, _ = write_replay(tmp_path / "replay", items_of(*folders), 16, 1, seed=0)
    path = tmp_path / "replay" / "replay.json"
    about = json.loads(path.read_text())
    if damage == "cut":
        path.write_text(path.read_text()[:40])
    elif damage == "class":
        path.write_text(json.dumps(about | {"classes": about["classes"][1:]}))
    elif damage == "version":
        path.write_text(json.dumps(about | {"format": 99}))
    else:
        written.items[0].path.unlink()
    with pytest.raises(UserError, match="replay"):
        read_replay(tmp_path / "replay")


def test_nothing_is_left_where_no_image_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "d" / "c").mkdir(parents=True)
    (tmp_path / "d" / "c" / "x.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"x\.png"):
        write_replay(tmp_path / "replay", items_of(tmp_path / "d"), 16, 1, seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d"]
