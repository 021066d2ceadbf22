"""Hits, confusion and mistakes, against neighbours found by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from runs import make_run, write_run

from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.report.analysis import analyse
from unimetric.report.collect import read_run


def test_the_numbers_are_those_of_metrics_json(tmp_path: Path) -> None:
    measured = read_run(make_run(tmp_path / "run", ("a", "b", "c")))
    scores = analyse(measured).scores()
    for name, values in measured.metrics["separate"].items():
        assert scores["separate"][name].value == pytest.approx(values["recall@1"], abs=1e-12)
    for part in ("harmonic", "unified"):
        score = scores["all"][part]
        assert score.value == pytest.approx(measured.metrics[part]["recall@1"], abs=1e-12)
        assert score.low <= score.value <= score.high


def test_neighbours_of_every_query_by_brute_force(tmp_path: Path) -> None:
    measured = read_run(make_run(tmp_path / "run", ("a", "b")))
    analysis = analyse(measured, neighbours=4)
    items, rows = measured.vectors.query, measured.vectors.query_vectors.astype(np.float64)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    cosines = unit @ unit.T
    np.fill_diagonal(cosines, -np.inf)
    expected = np.argsort(-cosines, axis=1)[:, :4]
    assert np.array_equal(analysis.neighbours, expected)
    wrong = {
        (row, cosines[row].max())
        for row, item in enumerate(items)
        if (item.dataset, item.label) != (items[expected[row, 0]].dataset, items[expected[row, 0]].label)
    }
    of_a = sorted((-cosine, row) for row, cosine in wrong if items[row].dataset == "a")
    assert of_a, "a test of mistakes needs one"
    assert [mistake.query for mistake in analysis.mistakes("a", 100)] == [items[row] for _, row in of_a]
    assert [mistake.query for mistake in analysis.mistakes("a", 1)] == [items[of_a[0][1]]]
    assert not any(mistake.neighbours[0].right for mistake in analysis.mistakes("a", 100))
    names, shares, queries = analysis.confusion()
    found = np.array([items[row].dataset for row in expected[:, 0]])
    own = np.array([item.dataset for item in items])
    assert names == ("a", "b")
    assert queries.tolist() == [12, 12]
    assert shares[0, 1] == pytest.approx((found[own == "a"] == "b").mean())


def test_queries_without_a_positive_are_left_out(tmp_path: Path) -> None:
    items = tuple(Item(tmp_path / f"{n}.png", label, "a") for n, label in enumerate(["x", "x", "alone"]))
    vectors = np.eye(3, dtype=np.float32)
    analysis = analyse(read_run(write_run(tmp_path / "run", items, vectors)))
    assert [item.label for item in analysis.queries] == ["x", "x"]


def test_vectors_of_another_measurement_are_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    other = make_run(tmp_path / "other", noise=0.0, pictures=tmp_path / "run-pictures")
    (other / "vectors.parquet").replace(run / "vectors.parquet")
    with pytest.raises(UserError, match="different measurements"):
        analyse(read_run(run))
