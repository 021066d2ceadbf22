"""Contents of a page against `evaluate`, ``metrics.json``, and neighbours found by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from runs import make_run, write_run

from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.report.analysis import analyse
from unimetric.report.collect import read_run
from unimetric.report.numbers import confusion, headline, metric_rows, spread_rows, tiles
from unimetric.report.space import map_positions
from unimetric.report.thresholds import threshold_values

"""Entries that an older ``metrics.json`` lacks."""


def metrics_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "metrics.json").read_text())
    return found


def test_numbers_are_those_of_metrics_json_and_not_computed_again(tmp_path: Path) -> None:
    """Other intervals than the vectors give, as of another number of resamples, come out as they are."""
    folder = make_run(tmp_path / "run", ("a", "b"))
    metrics = metrics_of(folder)
    metrics["intervals"]["separate"]["a"]["recall@1"] = [0.0123, 0.9876]
    metrics["intervals"]["unified_gap"]["a"] = [0.0456, 0.0567]
    metrics["intervals"]["unified"]["recall@1"] = [0.0111, 0.9222]
    metrics["unified_gap"]["a"] = 0.0505
    metrics["domain_confusion"]["matrix"][0] = [0.75, 0.25]
    metrics["spread"]["unified"]["alignment"] = 1.2345
    metrics["thresholds"]["unified"]["equal_error_rate"] = 0.4321
    metrics["thresholds"]["unified"]["consistency"] = {"opis": 0.04321, "classes": 1234}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    analysis = analyse(read_run(folder))
    row = next(headline(analysis))
    assert row["separate"]["interval"] == "1.2–98.8"
    assert row["gap"] == {"text": "5.1", "interval": "4.6–5.7"}
    assert tiles(analysis)[1]["words"].endswith("1.1–92.2")
    assert next(metric_rows(analysis.numbers))["values"][0]["interval"] == "1.2–98.8"
    matrix = confusion(analysis.numbers)
    assert matrix is not None
    assert [cell["text"] for cell in matrix["rows"][0]["cells"]] == ["75", "25"]
    assert spread_rows(analysis.numbers)["rows"][-1]["values"][0] == "1.23"
    assert threshold_values(analysis)["rows"][-1]["equal"]["text"] == "43.2 %"
    assert threshold_values(analysis)["rows"][-1]["consistency"] == {"text": "0.0432", "words": "1,234 classes"}


def test_metrics_that_lack_a_part_are_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    metrics = metrics_of(folder)
    del metrics["intervals"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=r"metrics\.json lacks intervals: write it again with: unimetric evaluate"):
        analyse(read_run(folder))


def test_union_intervals_are_drawn_as_all_others(tmp_path: Path) -> None:
    """With one dataset the union is that dataset, and both intervals are one."""
    analysis = analyse(read_run(make_run(tmp_path / "run", ("a",))))
    assert analysis.unified("a") == analysis.separate("a") == analysis.total("unified") == analysis.total("harmonic")
    assert 0 < analysis.separate("a").value < 1, "a test of intervals needs one with a width"


def test_separate_less_unified_is_the_gap(tmp_path: Path) -> None:
    analysis = analyse(read_run(make_run(tmp_path / "run", ("a", "b", "c"), noise=1.5)))
    gaps = [analysis.gap(name) for name in analysis.datasets]
    assert any(gap.value > 0 for gap in gaps), "a test of gaps needs one"
    for name, gap in zip(analysis.datasets, gaps, strict=True):
        assert gap.value == pytest.approx(analysis.separate(name).value - analysis.unified(name).value)
        assert gap.low <= gap.value <= gap.high


def test_mistakes_and_their_neighbours_by_brute_force(tmp_path: Path) -> None:
    measured = read_run(make_run(tmp_path / "run", ("a", "b")))
    analysis = analyse(measured)
    items, rows = measured.vectors.query, measured.vectors.query_vectors.astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    order = np.argsort(-cosines, axis=1)[:, :4]
    classes = [(item.dataset, item.label) for item in items]
    wrong = [row for row, item in enumerate(items) if item.dataset == "a" and classes[row] != classes[order[row, 0]]]
    assert wrong, "a test of mistakes needs one"
    assert analysis.wrong("a").tolist() == wrong
    wrong.sort(key=lambda row: -cosines[row].max())
    mistakes = analysis.mistakes("a", 100, neighbours=4)
    assert [mistake.query for mistake in mistakes] == [items[row] for row in wrong]
    for row, mistake in zip(wrong, mistakes, strict=True):
        assert [neighbour.item for neighbour in mistake.neighbours] == [items[other] for other in order[row]]
        assert [neighbour.right for neighbour in mistake.neighbours] == [
            classes[other] == classes[row] for other in order[row]
        ]
        assert [neighbour.similarity for neighbour in mistake.neighbours] == pytest.approx(cosines[row, order[row]])
    assert [mistake.query for mistake in analysis.mistakes("a", 1, 4)] == [items[wrong[0]]]
    assert analysis.mistakes("a", 0, 4) == []


def test_an_example_is_a_query_and_the_class_it_is_taken_for(tmp_path: Path) -> None:
    analysis = analyse(read_run(make_run(tmp_path / "run", ("a", "b"), noise=1.5)))
    shown = [
        (entry, analysis.example(name, entry["label"], entry["mistaken_for"]))
        for name, entries in analysis.numbers["worst_classes"].items()
        for entry in entries
        if entry["mistaken_for"] is not None
    ]
    assert shown
    for entry, example in shown:
        assert example is not None
        query, neighbour = example
        assert (query.label, neighbour.label) == (entry["label"], entry["mistaken_for"])
        assert query.dataset == neighbour.dataset


def test_queries_without_a_positive_are_counted_and_left_out(tmp_path: Path) -> None:
    items = tuple(Item(tmp_path / f"{n}.png", label, "a") for n, label in enumerate(["x", "x", "alone"]))
    analysis = analyse(read_run(write_run(tmp_path / "run", items, np.eye(3, dtype=np.float32))))
    assert analysis.scored() == 2
    assert np.isnan(analysis.hits).tolist() == [False, False, True]


def test_a_threshold_needs_enough_queries(tmp_path: Path) -> None:
    """12 queries of a dataset and 36 of all: only for the union is a rate of 10 % shown, by 30."""
    values = threshold_values(analyse(read_run(make_run(tmp_path / "run", ("a", "b", "c")))))
    assert values["rates"] == ["10 %"]
    assert [row["cells"][0]["text"] == "–" for row in values["rows"]] == [True, True, True, False]
    assert values["unreached"] == "1 % (300), 0.1 % (3,000), 0.01 % (30,000)"


def test_vectors_of_another_measurement_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    other = make_run(tmp_path / "other", noise=0.0, pictures=tmp_path / "run-pictures")
    (other / "vectors.parquet").replace(run / "vectors.parquet")
    with pytest.raises(UserError, match=r"its vectors give a Recall@1 of 1\.0000, .* different measurements"):
        analyse(read_run(run))
    metrics = json.loads((other / "metrics.json").read_text())
    metrics["separate"]["renamed"] = metrics["separate"].popitem()[1]
    (run / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(UserError, match=r"its vectors are of other datasets than its metrics\.json"):
        analyse(read_run(run))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [1, 2, 40])
def test_coinciding_vectors_have_a_place_on_the_map(count: int) -> None:
    positions = map_positions(np.ones((count, 8), np.float32))
    assert positions.shape == (count, 2)
    assert ((positions >= 0) & (positions <= 1)).all()
