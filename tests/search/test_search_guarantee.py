"""Answers with a guarantee: the sets against their definition, the promise on new queries, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from search_toys import FP32, store

from toy_runs import make_images
from unimetric.commands.index import ThresholdOptions
from unimetric.commands.index import index as index_command
from unimetric.commands.search import search
from unimetric.conformal import FLOOR_WEIGHT
from unimetric.errors import ArgumentError, UserError
from unimetric.evaluation import evaluate
from unimetric.search import Guarantee, NotCalibratedError, SearchIndex

CLASSES, EACH = 24, 5


def drawn(generator: np.random.Generator, centres: np.ndarray, classes: np.ndarray) -> np.ndarray:
    return (centres[classes] + 0.35 * generator.normal(size=(len(classes), 16))).astype(np.float32)


@pytest.fixture
def world(tmp_path: Path, fill: Callable[..., SearchIndex]) -> Any:
    """A database of 24 classes in two datasets, calibrated on 300 queries; and 400 new queries with their classes."""
    generator = np.random.default_rng(5)
    centres = generator.normal(size=(CLASSES, 16))
    rows = np.repeat(np.arange(CLASSES), EACH)
    gallery = drawn(generator, centres, rows)
    known, new = (generator.integers(CLASSES, size=count) for count in (300, 400))
    names = np.where(np.arange(CLASSES) % 3, "d0", "d1")
    index = fill(tmp_path / "db", gallery, names[rows].tolist())
    table = store(index).rows(store(index).column_names)
    order = [int(id[2:]) for id in table["id"].to_pylist()]
    labels = pa.array([str(rows[row]) for row in order])
    store(index).merge(table.set_column(table.column_names.index("label"), "label", labels))
    report = evaluate(
        drawn(generator, centres, known),
        [str(number) for number in known],
        names[known].tolist(),
        gallery=(gallery, [str(number) for number in rows], names[rows].tolist()),
        resamples=2,
    )
    record(index, report.to_dict()["thresholds"])
    index.close()
    with SearchIndex.open(tmp_path / "db") as opened:
        yield opened, drawn(generator, centres, new), new, names, gallery, rows


def record(index: SearchIndex, thresholds: dict[str, Any]) -> None:
    store(index).write_about({**store(index).about, "calibration": thresholds})


def test_sets_are_those_of_the_definition(world: Any) -> None:
    index, queries, _, names, gallery, rows = world
    sets = store(index).about["calibration"]["unified"]["sets"]
    limit = sets["shortfalls"][sets["ranks"].index(int(0.2 * (sets["queries"] + 1)))]
    answers = index.search_vectors(queries[:40], k=1, guarantee=0.8)
    for query, matches in zip(queries[:40].astype(float), answers, strict=True):
        scores = gallery @ query / np.linalg.norm(gallery, axis=1) / np.linalg.norm(query)
        best = {number: scores[rows == number].max() for number in range(CLASSES)}
        lowest = max(scores.max() - limit, 1 - limit / FLOOR_WEIGHT)
        expected = {(names[number], str(number)) for number, score in best.items() if score >= lowest}
        assert {(match.dataset, match.label) for match in matches} == expected
        assert len(matches) == len(expected)
        for match in matches:
            assert match.score == pytest.approx(best[int(match.label)], abs=1e-5)
        assert [match.score for match in matches] == sorted((match.score for match in matches), reverse=True)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_new_queries_are_covered(world: Any, level: float) -> None:
    index, queries, classes, names, *_ = world
    answers = index.search_vectors(queries, guarantee=level)
    covered = [str(number) in {match.label for match in found} for found, number in zip(answers, classes, strict=True)]
    # 300 calibration and 400 new queries: 4 standard deviations.
    assert np.mean(covered) > level - 4 * np.sqrt(level * (1 - level) * (1 / 300 + 1 / 400))
    safe = index.search_vectors(queries, guarantee=Guarantee(level, delta=0.01))
    assert sum(map(len, safe)) > sum(map(len, answers))
    own = names[classes] == "d1"
    only = index.search_vectors(queries[own], datasets=["d1"], guarantee=level)
    assert all(match.dataset == "d1" for found in only for match in found)
    covered = [
        str(number) in {match.label for match in found} for found, number in zip(only, classes[own], strict=True)
    ]
    assert np.mean(covered) > level - 4 * np.sqrt(level * (1 - level) * (1 / 90 + 1 / own.sum()))


def test_nothing_fits(world: Any) -> None:
    index, *_ = world
    away = -np.sum(world[4], axis=0, dtype=np.float32)
    assert index.search_vectors(away, guarantee=0.8) == [[]]
    assert len(index.search_vectors(away, k=3)[0]) == 3


def test_what_cannot_be_promised_is_refused(world: Any, fill: Callable[..., SearchIndex], tmp_path: Path) -> None:
    index, queries, *_ = world
    with pytest.raises(NotCalibratedError, match=r"guarantee is 0\.999: that takes 999 .* had 300; lower it"):
        index.search_vectors(queries, guarantee=0.999)
    with pytest.raises(NotCalibratedError, match=r"0\.99 with a delta of 0\.01: that takes 459 .* had 300"):
        index.search_vectors(queries, guarantee=Guarantee(0.99, 0.01))
    with pytest.raises(ArgumentError, match="guarantee and where exclude each other"):
        index.search_vectors(queries, where="label = '3'", guarantee=0.9)
    for wrong in (0.3, 1, 1.5, -1, float("nan"), True, "0.9"):
        with pytest.raises(ArgumentError, match=r"guarantee is .*: use a probability from 0\.5"):
            index.check(guarantee=wrong)
    with pytest.raises(ArgumentError, match="guarantee_delta is 0: use"):
        Guarantee(0.9, 0)
    with pytest.raises(ArgumentError, match="give guarantee as well"):
        Guarantee.of(None, 0.1)
    with (
        fill(tmp_path / "other", queries[:5]) as other,
        pytest.raises(NotCalibratedError, match="not calibrated for 'd'"),
    ):
        other.search_vectors(queries, guarantee=0.9)


def test_a_search_that_may_miss_rows_promises_nothing(tmp_path: Path, model: Path) -> None:
    with (
        SearchIndex.create(tmp_path / "db", model, vector_type="bit") as index,
        pytest.raises(NotCalibratedError, match="one bit a number may miss"),
    ):
        index.check(guarantee=0.9)


def test_another_catalogue_than_the_calibrated_one_is_refused(world: Any) -> None:
    index, queries, *_ = world
    rows = store(index).rows(store(index).column_names)
    some = rows["id"].to_pylist()[:9]
    index.delete(ids=some)
    index.search_vectors(queries[:2], guarantee=0.9)
    index.delete(ids=rows["id"].to_pylist()[9:30])
    with pytest.raises(
        NotCalibratedError, match=r"calibrated for .* with 120 rows, and there are 90 now; calibrate on"
    ):
        index.search_vectors(queries, guarantee=0.9)
    more = rows.slice(0, 30)
    index.merge(more.set_column(more.column_names.index("dataset"), "dataset", pa.array(["new"] * 30)))
    with pytest.raises(NotCalibratedError, match=r"all datasets \(the calibration has d0, d1\)"):
        index.search_vectors(queries, guarantee=0.9)
    with pytest.raises(NotCalibratedError, match="for single datasets and for all together, not for 2 of 3"):
        index.search_vectors(queries, datasets=["d0", "new"], guarantee=0.9)


def test_a_calibration_of_another_process_is_used(world: Any, tmp_path: Path) -> None:
    index, queries, *_ = world
    before = index.search_vectors(queries[:20], guarantee=0.9)
    with SearchIndex.open(tmp_path / "db") as other:
        changed = json.loads(json.dumps(store(other).about["calibration"]))
        changed["unified"]["sets"]["shortfalls"] = [2.0] * len(changed["unified"]["sets"]["ranks"])
        record(other, changed)
    after = index.search_vectors(queries[:20], guarantee=0.9)
    assert all(len(wide) == CLASSES > len(narrow) for wide, narrow in zip(after, before, strict=True))


def test_rows_without_a_label_are_answers_of_their_own(world: Any) -> None:
    index, queries, *_ = world
    rows = store(index).rows(store(index).column_names)
    blank = pa.array([""] * len(rows))
    index.merge(rows.set_column(rows.column_names.index("label"), "label", blank))
    (found,) = index.search_vectors(queries[:1], guarantee=0.99)
    assert len({match.id for match in found}) == len(found) > 1


def test_a_set_without_an_end_is_refused(tmp_path: Path, fill: Callable[..., SearchIndex]) -> None:
    vectors = np.random.default_rng(0).normal(size=(1100, 16))
    sets = {"queries": 19, "gallery": 1100, "ranks": [1], "shortfalls": [3.0]}
    nothing = {"impostors": 0, "operating_points": [{"wanted_false_match_rate": 0.01, "threshold": None}], "roc": None}
    gallery = {**nothing, "sets": sets}
    with fill(tmp_path / "db", vectors) as index:
        record(index, {"unified": gallery, "separate": {"d": gallery}})
    with SearchIndex.open(tmp_path / "db") as index, pytest.raises(ArgumentError, match="more than 1000 items"):
        index.search_vectors(vectors[:1].astype(np.float32), guarantee=0.95)


def test_a_database_is_calibrated_on_images(
    catalogue: Path, model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = tmp_path / "db"
    sources = [f"{name}={images / name}" for name in ("hats", "shoes")]
    index_command(model, sources, db=str(db), device=FP32)
    one = str(next(images.glob("hats/*/*.png")))
    with pytest.raises(NotCalibratedError, match="was not calibrated for"):
        search(str(db), [one], guarantee=0.8, json=True, device=FP32)
    make_images(tmp_path / "queries" / "hats", classes=4, images=3, seed=7)
    make_images(tmp_path / "queries" / "shoes", classes=3, images=3, seed=8)
    queries = [f"{name}={tmp_path / 'queries' / name}" for name in ("hats", "shoes")]
    index_command(db=str(db), thresholds=ThresholdOptions(calibrate=queries), device=FP32)
    with SearchIndex.open(db) as index:
        sets = store(index).about["calibration"]["unified"]["sets"]
        assert (sets["queries"], sets["gallery"]) == (18, 24), "3 of 21 queries are of a class that the database lacks"
    capsys.readouterr()
    search(str(db), [one], guarantee=0.8, json=True, device=FP32)
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["is_match"] is bool(answer["matches"])
    assert answer["guarantee"] == {"level": 0.8, "delta": None}
    assert len({(match["dataset"], match["label"]) for match in answer["matches"]}) == len(answer["matches"])
    # Indexing again leaves the database's own calibration, but for a measurement that is named.
    (tmp_path / "metrics.json").write_text((catalogue.parent / "metrics.json").read_text())
    index_command(model, sources, db=str(db), device=FP32)
    with SearchIndex.open(db) as index:
        assert store(index).about["calibration"]["unified"]["sets"] == sets
    index_command(model, sources, db=str(db), thresholds=ThresholdOptions(metrics=str(tmp_path)), device=FP32)
    with SearchIndex.open(db) as index:
        assert "sets" not in store(index).about["calibration"]["unified"]
    with pytest.raises(UserError, match=r"dataset 'gloves' of the calibration is not in .*, which has hats, shoes"):
        index_command(
            db=str(db), thresholds=ThresholdOptions(calibrate=[f"gloves={tmp_path / 'queries' / 'hats'}"]), device=FP32
        )


def test_an_indexed_query_is_not_its_own_answer(model: Path, images: Path, tmp_path: Path) -> None:
    db, source = tmp_path / "db", f"hats={images / 'hats'}"
    index_command(model, [source], db=str(db), thresholds=ThresholdOptions(calibrate=[source]), device=FP32)
    with SearchIndex.open(db) as index:
        calibration = json.loads(json.dumps(store(index).about["calibration"]))
    assert calibration["unified"]["sets"]["queries"] == 12
    assert calibration["unified"]["sets"]["shortfalls"][0] > 0.0


def test_damaged_sets(catalogue: Path, tmp_path: Path, model: Path) -> None:
    values = json.loads((catalogue.parent / "metrics.json").read_text())
    values["thresholds"]["unified"]["sets"] = {"queries": 9, "gallery": 9, "ranks": [1], "shortfalls": []}
    (tmp_path / "metrics.json").write_text(json.dumps(values))
    with pytest.raises(UserError, match="measure the model again"):
        SearchIndex.create(tmp_path / "db", model, metrics=tmp_path)
