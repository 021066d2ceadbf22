"""An upgrade in which both models embed queries: answers against a plain search, writes, and the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from search_toys import FP32, dump, make_model, new_picture
from test_upgrade_maps import classes

from unimetric.commands.index import index_sources
from unimetric.commands.upgrade import upgrade
from unimetric.errors import ArgumentError, UserError
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.source import ModelSource
from unimetric.search import SearchIndex
from unimetric.search.items import NewItem
from unimetric.search.scoring import unit
from unimetric.search.stores import open_place
from unimetric.search.stores.live import place_of, read_live
from unimetric.search.upgrade.decision import Gallery, compare
from unimetric.search.upgrade.embedding import UpgradeOptions
from unimetric.search.upgrade.maps import KINDS
from unimetric.search.upgrade.run import start_upgrade
from unimetric.search.upgrade.state import upgrade_state

OLD, NEW, ROWS = 16, 24, 24
OPTIONS = UpgradeOptions(sample=8, live="both", batch_size=2, commit_rows=4, precision="fp32")


class StoppedError(Exception):
    pass


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("other"), seed=1, size=NEW)


@pytest.fixture
def db(own: Path, model: Path, other: Path, tmp_path: Path) -> Path:
    """A database whose upgrade was cut off when both models answered."""
    index_sources(model, [str(own / "hats"), str(own / "shoes")], str(tmp_path / "db"), device=FP32)

    def progressed(done: int, total: int) -> None:
        if done >= 12:
            raise StoppedError

    started = start_upgrade(tmp_path / "db", ModelSource(other), options=OPTIONS, on_progress=progressed)
    with pytest.raises(StoppedError):
        started.run(Embedder.from_pretrained(other))
    return tmp_path / "db"


@pytest.fixture
def index(db: Path) -> Iterator[SearchIndex]:
    with SearchIndex.open(db, device=FP32) as opened:
        yield opened


def finish(db: Path, other: Path) -> None:
    options = {"sample": 8, "live": "both", "batch_size": 2, "commit_rows": 4, "device": FP32}
    assert upgrade(str(db), model=other, **options) == 0


def plain_scores(db: Path, query: np.ndarray) -> dict[str, float]:
    """Scores of all rows; a row that the old model has not has the new model's cosine."""
    live = read_live(str(db))
    new, old = (open_place(place_of(str(db), str(name))) for name in (live.live, live.previous))
    weight = new.about["upgrade"]["weight"]
    before = {row["id"]: row for row in old.rows(["id", "vector", "content_hash"]).to_pylist()}
    parts = unit(query[None, :NEW])[0], unit(query[None, NEW:])[0]
    scores = {}
    for row in new.rows(["id", "vector", "content_hash"]).to_pylist():
        score = float(parts[0] @ unit(np.array([row["vector"]]))[0])
        earlier = before.get(row["id"], {"content_hash": None})
        same = earlier["content_hash"] == row["content_hash"]
        others = float(parts[1] @ unit(np.array([earlier["vector"]]))[0]) if same else score
        scores[row["id"]] = weight * score + (1 - weight) * others
    return scores


@pytest.mark.parametrize("exact", [False, True])
def test_answers_are_those_of_a_plain_search(index: SearchIndex, db: Path, own: Path, exact: bool) -> None:
    assert index.embedding_size == OLD + NEW and index.count() == ROWS
    state = upgrade_state(db)
    assert state is not None and state.answers == "both" and 8 < state.embedded < ROWS
    pictures = sorted(own.glob("*/*/*.png"))[::5]
    vectors = index.embedder.encode([str(picture) for picture in pictures], precision="fp32")
    for vector, matches in zip(vectors, index.search_vectors(vectors, 7, exact=exact), strict=True):
        expected = plain_scores(db, vector)
        assert [match.score for match in matches] == pytest.approx(
            sorted(expected.values(), reverse=True)[:7], abs=1e-5
        )
        assert all(match.score == pytest.approx(expected[match.id], abs=1e-5) for match in matches)
        assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)


def test_datasets_and_conditions_hold(index: SearchIndex, db: Path, own: Path) -> None:
    picture = sorted(own.glob("hats/*/*.png"))[0]
    (among,) = index.search(str(picture), 5, datasets=["shoes"])
    assert len(among) == 5 and {match.dataset for match in among} == {"shoes"}
    label = among[2].label
    (found,) = index.search(str(picture), ROWS, where=f"label = '{label}'")
    assert found and {match.label for match in found} == {label}
    (vector,) = index.embedder.encode([str(picture)], precision="fp32")
    expected = plain_scores(db, vector)
    assert all(match.score == pytest.approx(expected[match.id], abs=1e-5) for match in found)


def test_an_item_is_a_query_and_several_are_their_mean(index: SearchIndex) -> None:
    one, other = (item.id for item in index.sample(2))
    alone = [{match.id: match.score for match in index.search_item(id, ROWS)} for id in (one, other)]
    assert one not in alone[0] and len(alone[0]) == ROWS - 1
    for match in index.search_together(ids=[one, other], k=ROWS):
        assert match.score == pytest.approx((alone[0][match.id] + alone[1][match.id]) / 2, abs=1e-5)


def test_rows_are_added_changed_and_deleted_meanwhile(index: SearchIndex, db: Path, own: Path, other: Path) -> None:
    added = new_picture(own / "hats" / "new" / "late.png")
    changed = sorted(own.glob("hats/*/*.png"))[0]
    new_picture(changed, (200, 30, 9))
    items = [NewItem(path, "hats", path.parent.name, str(path)) for path in (added, changed)]
    assert index.add(items).written == 2
    gone = sorted(own.glob("shoes/*/*.png"))[0]
    assert index.delete(path=str(gone)) == 1
    for path in (added, changed):
        (matches,) = index.search(str(path), ROWS)
        assert matches[0].path == str(path) and matches[0].score == pytest.approx(1, abs=1e-5)
        assert str(gone) not in {match.path for match in matches}
        (vector,) = index.embedder.encode([str(path)], precision="fp32")
        expected = plain_scores(db, vector)
        assert {match.id: match.score for match in matches} == pytest.approx(expected, abs=1e-5)
    (late,) = index.search_item(next(match.id for match in matches if match.path == str(added)), 1)
    assert late.path != str(added)
    finish(db, other)
    assert len(dump(db)) == ROWS and {row["fingerprint"] for row in dump(db)} == {dump(db)[0]["fingerprint"]}


def test_at_the_end_the_new_model_is_alone(
    index: SearchIndex, db: Path, own: Path, other: Path, tmp_path: Path
) -> None:
    picture = str(sorted(own.glob("hats/*/*.png"))[0])
    before = index.search(picture, 5)
    finish(db, other)
    index_sources(other, [str(own / "hats"), str(own / "shoes")], str(tmp_path / "new"), device=FP32)
    assert dump(db) == dump(tmp_path / "new") and upgrade_state(db) is None
    # One that was opened before goes on answering.
    assert len(index.search(picture, 5)[0]) == len(before[0])
    with SearchIndex.open(db, embedder=Embedder.from_pretrained(other), device=FP32) as opened:
        assert opened.embedding_size == NEW
        assert opened.search(picture, 1)[0][0].score == pytest.approx(1, abs=1e-5)


def test_models_that_are_loaded_after_the_end_are_those_of_the_vectors(
    index: SearchIndex, db: Path, own: Path, other: Path
) -> None:
    finish(db, other)
    assert index.embedder.embedding_size == index.embedding_size == NEW + OLD
    assert len(index.search(sorted(own.glob("hats/*/*.png"))[0], 5)[0]) == 5


def test_it_is_rolled_back(db: Path, model: Path) -> None:
    assert upgrade(str(db), rollback=True, device=FP32) == 0
    with SearchIndex.open(db, embedder=Embedder.from_pretrained(model), device=FP32) as opened:
        assert opened.embedding_size == OLD and opened.count() == ROWS


def test_vectors_of_one_model_are_refused(index: SearchIndex) -> None:
    with pytest.raises(ArgumentError, match=f"give floats \\[N, {OLD + NEW}\\]"):
        index.search_vectors(np.ones((1, NEW), np.float32))


def test_models_that_read_other_pixels_are_refused(own: Path, model: Path, tmp_path: Path) -> None:
    index_sources(model, [str(own / "hats")], str(tmp_path / "db"), device=FP32)
    torch.manual_seed(2)
    larger = Embedder(make_backbone("test_vit", weights="random", image_size=48), "linear", embedding_size=NEW)
    larger.eval().save_pretrained(tmp_path / "larger")
    before = dump(tmp_path / "db")
    with pytest.raises(UserError, match=r"48 px.*--live better"):
        upgrade(str(tmp_path / "db"), model=tmp_path / "larger", live="both", device=FP32)
    assert dump(tmp_path / "db") == before


def test_the_weight_follows_the_better_model() -> None:
    good, names = classes(0, 50, 8, 16, spread=0.3)
    rng = np.random.default_rng(2)
    poor = unit(good + 1.5 * rng.normal(size=good.shape) / 4)
    weights = []
    for old, new in ((good, poor[:200]), (poor, good[:200])):
        compared = compare(Gallery(old, names, new), KINDS["ridge"], both=True)
        assert compared.both is not None
        assert compared.both.mixed.recall >= max(compared.old.recall, compared.mixed.recall) - 0.02
        alone = compare(Gallery(old, names, new), KINDS["ridge"])
        assert alone.both is None and alone.mixed.recall == compared.mixed.recall
        weights.append(compared.both.weight)
    assert weights[0] < weights[1]
    unlabelled = compare(Gallery(good, [None] * 400, poor[:200]), KINDS["ridge"], both=True)
    assert unlabelled.both is not None and unlabelled.both.weight == 0.5
