"""Copies of a picture folded into one match: by the audit's rule, in every way of searching."""

from __future__ import annotations

import gc
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image, ImageOps
from search_toys import FP32

from audit_pictures import compressed, picture
from toy_runs import unimetric
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.items import Match, NewItem

EDITS = {
    "re-encoded": compressed,
    "smaller": lambda image: image.resize((100, 75)),
    "cropped": lambda image: image.crop((9, 12, 152, 119)),
    "mirrored": ImageOps.mirror,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pictures, one of them with four copies, and one also in red; only to be read."""
    root = tmp_path_factory.mktemp("copies")
    for number in range(10):
        picture(number).save(root / f"{number}.png")
    for name, edit in EDITS.items():
        edit(picture(0)).save(root / f"0 {name}.png")
    ImageOps.colorize(picture(1).convert("L"), "black", "red").save(root / "1 red.png")
    shutil.copyfile(root / "2.png", root / "2 again.png")
    return root


@pytest.fixture(scope="module")
def db(folder: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of them; only to be read."""
    place = tmp_path_factory.mktemp("copies-database") / "db"
    with SearchIndex.create(place, model, device=FP32) as index:
        index.add([NewItem(path, "set", path.stem.split()[0]) for path in sorted(folder.glob("*.png"))])
    return place


@pytest.fixture
def copies(db: Path, embedder: Embedder) -> Iterator[SearchIndex]:
    with SearchIndex.open(db, embedder=embedder, device=FP32) as opened:
        yield opened


def names(matches: tuple[Match, ...] | list[Match]) -> list[str]:
    return [Path(match.path).stem for match in matches]


def test_copies_are_one_match(copies: SearchIndex, folder: Path) -> None:
    every = copies.search(folder / "0.png", 100)[0]
    folded = copies.search(folder / "0.png", 100, group_copies=True)[0]
    assert len(every) == 16
    assert all(match.copies == () for match in every)
    assert names(folded)[0] == "0"
    assert set(names(folded[0].copies)) == {f"0 {name}" for name in EDITS}
    groups = {frozenset([Path(match.path).stem, *names(match.copies)]) for match in folded}
    # The red one may be a variant of a product, so it stays.
    alone = [{str(number)} for number in range(3, 10)]
    expected = [{"0", *(f"0 {name}" for name in EDITS)}, {"2", "2 again"}, {"1"}, {"1 red"}, *alone]
    assert groups == {frozenset(group) for group in expected}
    assert sorted(id for match in folded for id in (match.id, *(copy.id for copy in match.copies))) == sorted(
        match.id for match in every
    )


@pytest.mark.parametrize("k", [1, 2, 5, 12])
def test_there_are_k_matches_in_the_same_order(copies: SearchIndex, folder: Path, k: int) -> None:
    every = copies.search(folder / "0.png", 100, group_copies=True)[0]
    some = copies.search(folder / "0.png", k, group_copies=True)[0]
    if 4 * k >= 16:
        assert [match.id for match in some] == [match.id for match in every[:k]]
    else:
        assert some[0].id == every[0].id
    scores = [match.score for match in some]
    assert scores == sorted(scores, reverse=True)
    for match in some:
        inner = [match.score, *(copy.score for copy in match.copies)]
        assert inner == sorted(inner, reverse=True)


def test_more_like_this_folds_too(copies: SearchIndex, folder: Path) -> None:
    item = next(match for match in copies.search(folder / "0.png", 100)[0] if Path(match.path).stem == "0")
    found = copies.search_item(item.id, 20, group_copies=True)
    assert item.id not in {match.id for match in found}
    group = next(match for match in found if Path(match.path).stem.startswith("0 "))
    assert {Path(group.path).stem, *names(group.copies)} == {f"0 {name}" for name in EDITS}


def test_several_images_are_folded_each(copies: SearchIndex, folder: Path) -> None:
    together = copies.search([folder / "0.png", folder / "2.png"], 5, group_copies=True)
    assert together == [copies.search(folder / name, 5, group_copies=True)[0] for name in ("0.png", "2.png")]


def test_compared_pictures_are_released_with_the_database(db: Path, embedder: Embedder, folder: Path) -> None:
    def pictures() -> int:
        return sum(isinstance(each, Image.Image) for each in gc.get_objects())

    vectors = embedder.encode([folder / "0.png"])
    gc.collect()
    before = pictures()
    index = SearchIndex.open(db, embedder=embedder, device=FP32)
    index.search_vectors(vectors, 100, group_copies=True)
    assert pictures() > before
    index.close()
    del index
    assert pictures() == before


def test_a_database_records_the_default(
    folder: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--db", tmp_path / "db", "--device.accelerator", "cpu", "--device.precision", "fp32")
    assert unimetric("index", model, folder, *options, "--group_copies", "true") == 0
    with SearchIndex.open(tmp_path / "db") as index:
        assert index.group_copies
    assert unimetric("index", model, folder, *options) == 0
    with SearchIndex.open(tmp_path / "db") as index:
        assert index.group_copies, "it is kept"
    capsys.readouterr()
    search = ("search", tmp_path / "db", folder / "0.png", "--k", 3, "--device.precision", "fp32")
    assert unimetric(*search, "--json") == 0
    best = json.loads(capsys.readouterr().out)[0]["matches"][0]
    assert {Path(copy["path"]).stem for copy in best["copies"]} == {f"0 {name}" for name in EDITS}
    assert unimetric(*search) == 0
    assert "copies" in capsys.readouterr().out
    assert unimetric(*search, "--group_copies", "false", "--json") == 0
    assert json.loads(capsys.readouterr().out)[0]["matches"][0]["copies"] == []
