"""Thresholds for each class: the rates against a count by hand, and their use in a search."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from search_toys import FP32, store

from toy_runs import make_images
from unimetric.commands.index import ThresholdOptions
from unimetric.commands.index import index as index_command
from unimetric.errors import OptionError, UserError
from unimetric.evaluation import evaluate
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.neighbours import compared
from unimetric.evaluation.thresholds import calibrate
from unimetric.search import SearchIndex
from unimetric.search.calibration import Calibration
from unimetric.search.class_thresholds import NO_LABEL, with_class_thresholds


def world() -> tuple[Any, ...]:
    """Rows of 12 classes in two datasets, of unlike tightness, some without a label; and queries, some of them rows."""
    generator = np.random.default_rng(2)
    centres, spread = generator.normal(size=(12, 8)), np.linspace(0.2, 1.1, 12)
    rows, queries = np.repeat(np.arange(12), 8), generator.integers(12, size=150)
    vectors = [centres[own] + spread[own, None] * generator.normal(size=(len(own), 8)) for own in (rows, queries)]
    names = np.where(np.arange(12) < 6, "a", "b")
    row_ids = [f"row{number}" for number in range(len(rows))]
    labels = [
        f"{NO_LABEL}{id}" if n % 16 == 0 else str(own) for n, (id, own) in enumerate(zip(row_ids, rows, strict=True))
    ]
    ids = [f"query{number}" for number in range(len(queries))]
    for query in range(0, 150, 10):
        same = np.flatnonzero((rows == queries[query]) & (np.arange(len(rows)) % 16 != 0))
        ids[query], vectors[1][query] = row_ids[same[query % 5]], vectors[0][same[query % 5]]
    ids = [id if ids.index(id) == n else f"copy{n}" for n, id in enumerate(ids)]
    return vectors, rows, queries, names, row_ids, labels, ids


@pytest.mark.parametrize("distance", ["cosine", "poincare"])
def test_rates_are_those_of_similarities_less_offsets(distance: str) -> None:
    (row_vectors, query_vectors), rows, queries, names, row_ids, labels, ids = world()
    if distance == "poincare":
        row_vectors, query_vectors = row_vectors / 4, query_vectors / 4
    gallery = (row_vectors, labels, names[rows].tolist(), row_ids)
    query_labels = [str(number) for number in queries]
    report = evaluate(
        query_vectors, query_labels, names[queries].tolist(), gallery=gallery, ids=ids, resamples=2, distance=distance
    )
    query_rows, gallery_rows, measured = compared(query_vectors, row_vectors, ("queries", "rows"), distance, 0.1, 2**28)
    own = torch.tensor([row_ids.index(id) if id in row_ids else -1 for id in ids])
    searched = Retrieval(
        query_rows,
        gallery_rows,
        torch.from_numpy(report.per_query.query_classes),
        torch.from_numpy(report.per_query.gallery_classes),
        own,
        measured,
    )
    found = with_class_thresholds(report, searched)
    calibration = Calibration.from_dict(found)
    assert calibration.to_dict() == found
    similarities = measured.reported(measured.similarities(query_rows[:].double(), gallery_rows[:].double())).numpy()
    shown = ["" if label.startswith(NO_LABEL) else label for label in labels]
    evidence = np.array(
        [
            [
                calibration.evidence(value, names[number], label)
                for value, number, label in zip(line, rows, shown, strict=True)
            ]
            for line in similarities.tolist()
        ]
    )
    evidence[np.flatnonzero(own >= 0), own[own >= 0].numpy()] = -np.inf
    same = np.array([[label == shown_label for shown_label in labels] for label in query_labels])
    for part, chosen in (("unified", slice(None)), ("a", names[queries] == "a"), ("b", names[queries] == "b")):
        inside = np.ones(len(rows), bool) if part == "unified" else names[rows] == part
        genuine = np.where(same & inside, evidence, -np.inf).max(axis=1)[chosen]
        impostors = np.where(~same & inside, evidence, -np.inf).max(axis=1)[chosen]
        results = report.per_query.unified if part == "unified" else report.per_query.separate
        expected = calibrate(genuine, impostors, results.scores["recall@1"][chosen]).to_dict()
        measured = found["unified"] if part == "unified" else found["separate"][part]
        raw = report.unified_thresholds if part == "unified" else report.separate_thresholds[part]
        for name in ("genuine", "impostors", "equal_error_rate", "equal_error_threshold"):
            assert measured[name] == pytest.approx(expected[name], abs=1e-6)
        assert measured["operating_points"][0] == pytest.approx(expected["operating_points"][0], abs=1e-6)
        assert measured["sets"] == raw.to_dict()["sets"], "sets are of the similarities themselves"
    assert report.unified_thresholds.consistency is not None
    assert found["unified"]["consistency"]["opis"] < report.unified_thresholds.consistency.opis
    assert set(found["classes"]["a"]["labels"]) == {str(number) for number in range(6)}


def test_a_search_judges_each_class_by_its_own(tmp_path: Path, fill: Callable[..., SearchIndex]) -> None:
    vectors = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    points = [{"wanted_false_match_rate": 0.01, "threshold": 0.1}]
    answers = {"scores": [-1.0, 0.0, 1.0], "right": [0.1, 0.4, 0.9]}
    gallery = {"impostors": 99, "operating_points": points, "roc": None, "answers": answers}
    labels = {f"label{row:06}": 0.2 if row % 2 else -0.3 for row in range(30)}
    calibration = {"unified": gallery, "separate": {}, "classes": {"d": {"labels": labels, "other": 0.05}}}
    with fill(tmp_path / "db", vectors) as index:
        plain = index.search_vectors(vectors[:4], k=40)
        store(index).write_about({**store(index).about, "calibration": calibration})
    with SearchIndex.open(tmp_path / "db", false_match_rate=0.01) as index:
        judged = index.search_vectors(vectors[:4], k=40)
    for before, after in zip(plain, judged, strict=True):
        assert [(match.id, match.score) for match in after] == [(match.id, match.score) for match in before]
        for match in after:
            evidence = match.score - labels.get(match.label, 0.05)
            assert match.is_match == (evidence >= 0.1)
            assert match.confidence == pytest.approx(np.interp(evidence, [-1, 0, 1], [0.1, 0.4, 0.9]))
    assert len({match.is_match for match in judged[0]}) == 2


def test_the_command_calibrates_every_class(model: Path, images: Path, tmp_path: Path) -> None:
    db = tmp_path / "db"
    index_command(model, [f"hats={images / 'hats'}", f"shoes={images / 'shoes'}"], db=str(db), device=FP32)
    make_images(tmp_path / "queries", classes=3, images=3, seed=7)
    index_command(
        db=str(db), thresholds=ThresholdOptions(calibrate=[f"hats={tmp_path / 'queries'}"], per_class=True), device=FP32
    )
    with SearchIndex.open(db) as index:
        recorded = store(index).about["calibration"]
        assert {name: sorted(own["labels"]) for name, own in recorded["classes"].items()}["hats"] == sorted(
            {path.name for path in (images / "hats").iterdir()}
        )
        assert index.search_vectors(np.ones(16, np.float32), 24)
    index_command(db=str(db), thresholds=ThresholdOptions(calibrate=[f"hats={tmp_path / 'queries'}"]), device=FP32)
    with SearchIndex.open(db) as index:
        assert "classes" not in store(index).about["calibration"]
    with pytest.raises(OptionError, match="--per_class needs --calibrate"):
        index_command(
            model, [f"hats={images / 'hats'}"], db=str(db), thresholds=ThresholdOptions(per_class=True), device=FP32
        )


def test_calibrating_on_copies_of_the_rows_is_noted(
    model: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    db = str(tmp_path / "db")
    index_command(model, [f"hats={images / 'hats'}"], db=db, device=FP32)
    make_images(tmp_path / "queries", classes=3, images=3, seed=7)
    for copies in (0, 2):
        for path in sorted((images / "hats/c1").iterdir())[:copies]:
            shutil.copy(path, tmp_path / "queries/c1" / f"copy-{path.name}")
        capsys.readouterr()
        index_command(db=db, thresholds=ThresholdOptions(calibrate=[f"hats={tmp_path / 'queries'}"]), device=FP32)
        said = capsys.readouterr().err
        assert ("note: 2 of these images are in the database under another path" in said) == bool(copies)
        assert ("note:" in said) == bool(copies)


def test_damaged_offsets_are_named() -> None:
    gallery = {"impostors": 0, "operating_points": [], "roc": None}
    with pytest.raises(UserError, match="the thresholds are damaged"):
        Calibration.from_dict({"unified": gallery, "separate": {}, "classes": {"d": {"labels": {}}}})
