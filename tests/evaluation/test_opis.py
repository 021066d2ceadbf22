"""Operating-point inconsistency against its definition, pair by pair; and offsets that lower it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimetric.evaluation import evaluate
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.opis import THRESHOLDS, ClassPairs, class_offsets, class_pairs, inconsistency


def oracle(similarities: np.ndarray, queries: list[Any], gallery: list[Any]) -> tuple[float, float] | None:
    """OPIS and the mean utility of a matrix [Q, G], NaN where a query is the item itself."""
    cells = [(i, j) for i in range(len(queries)) for j in range(len(gallery)) if not np.isnan(similarities[i, j])]
    positives = {c: [similarities[i, j] for i, j in cells if queries[i] == c == gallery[j]] for c in set(gallery)}
    negatives = {c: [similarities[i, j] for i, j in cells if queries[i] != c == gallery[j]] for c in set(gallery)}
    classes = [c for c in positives if positives[c] and negatives[c]]
    if len(classes) < 2:
        return None
    falls = sorted((value for c in classes for value in negatives[c]), reverse=True)
    low, high = (falls[max(0, int(rate * len(falls) + 1e-9) - 1)] for rate in (0.1, 0.01))
    utilities = []
    for t in np.linspace(low, high, THRESHOLDS):
        row = []
        for c in classes:
            sensitivity = np.mean([value >= t for value in positives[c]])
            specificity = np.mean([value < t for value in negatives[c]])
            total = sensitivity + specificity
            row.append(2 * sensitivity * specificity / total if total else 0.0)
        utilities.append(row)
    return float(np.var(utilities, axis=1).mean()), float(np.mean(utilities))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 9999), count=st.integers(2, 30), classes=st.integers(1, 6), own_gallery=st.booleans())
def test_opis_is_that_of_the_definition(seed: int, count: int, classes: int, own_gallery: bool) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.integers(classes, size=count).tolist()
    vectors = generator.normal(size=(count, 3))
    items, found = (vectors, labels) if not own_gallery else (generator.normal(size=(20, 3)), labels[:20] + [0] * 20)
    found = found[: len(items)]
    rows = make_distance().prepare(torch.tensor(vectors), "vectors"), make_distance().prepare(torch.tensor(items), "g")
    own = torch.full((count,), -1) if own_gallery else torch.arange(count)
    retrieval = Retrieval(*rows, torch.tensor(labels), torch.tensor(found), own)
    similarities = (rows[0].double() @ rows[1].double().T).numpy()
    if not own_gallery:
        np.fill_diagonal(similarities, np.nan)
    expected = oracle(similarities, labels, found)
    result = inconsistency(class_pairs(retrieval))
    if expected is None:
        assert (result.opis, result.utility, result.thresholds) == (None, None, None)
    else:
        assert (result.opis, result.utility) == pytest.approx(expected, abs=1e-9)
        assert 0 <= result.opis <= 0.25


def pairs(shifts: list[float], spread: float = 0.1, count: int = 500) -> ClassPairs:
    generator = np.random.default_rng(0)
    draw = [generator.normal(size=(2, count)) * spread for _ in shifts]
    positives = tuple(0.5 + shift + d[0] for shift, d in zip(shifts, draw, strict=True))
    negatives = tuple(shift + d[1] for shift, d in zip(shifts, draw, strict=True))
    return ClassPairs(np.arange(len(shifts)), positives, negatives, np.full(len(shifts), count))


def test_classes_that_are_alike_are_consistent_and_offsets_make_them_so() -> None:
    alike = inconsistency(pairs([0.0] * 6)).opis
    shifted = pairs([-0.3, -0.2, 0.0, 0.1, 0.2, 0.2])
    before = inconsistency(shifted)
    assert alike is not None
    assert before.opis is not None
    assert alike < 0.001 < 0.03 < before.opis
    offsets = class_offsets(shifted, groups=[0] * 6, members=[9] * 6)
    assert offsets.mean() == pytest.approx(0, abs=1e-12)
    assert offsets == pytest.approx(np.array([-0.3, -0.2, 0.0, 0.1, 0.2, 0.2]), abs=0.05)
    after = inconsistency(shifted.shifted(offsets))
    assert after.opis is not None
    assert after.opis < before.opis / 10
    assert after.utility > before.utility


def test_a_class_without_pairs_has_the_offset_of_its_group() -> None:
    known = pairs([0.0, 0.0, 0.2])
    nothing = np.empty(0)
    wider = ClassPairs(
        np.arange(4), (*known.positives, nothing), (*known.negatives, known.negatives[0]), np.full(4, 500)
    )
    offsets = class_offsets(wider, groups=[0, 0, 1, 0], members=[5, 5, 5, 1])
    assert offsets[3] == pytest.approx(offsets[0], abs=0.02)
    assert np.isfinite(offsets).all()
    empty = ClassPairs(np.arange(2), (nothing, nothing), (nothing, nothing), np.zeros(2, dtype=np.int64))
    assert class_offsets(empty, groups=[0, 1], members=[1, 1]).tolist() == [0, 0]
    assert inconsistency(empty).opis is None


def test_a_sample_of_many_pairs_comes_near() -> None:
    generator = np.random.default_rng(1)
    labels = generator.integers(4, size=900)
    vectors = (
        generator.normal(size=(4, 6))[labels]
        + generator.normal(size=(900, 6)) * np.array([0.3, 0.6, 1, 1])[labels, None]
    )
    report = evaluate(vectors, labels, ["a"] * 900, resamples=2)
    result = report.unified_thresholds.consistency
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    matrix = unit @ unit.T
    np.fill_diagonal(matrix, np.nan)
    positive = {c: matrix[np.ix_(labels == c, labels == c)] for c in range(4)}
    exact = ClassPairs(
        np.arange(4),
        tuple(values[~np.isnan(values)] for values in positive.values()),
        tuple(matrix[np.ix_(labels != c, labels == c)].ravel() for c in range(4)),
        np.array([(labels != c).sum() * (labels == c).sum() for c in range(4)]),
    )
    expected = inconsistency(exact)
    assert result is not None
    assert result.opis == pytest.approx(expected.opis, rel=0.05)
    assert report.separate_thresholds["a"].consistency == result, "the union of one dataset is that dataset"


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "poincare"])
def test_a_report_has_it_for_every_gallery(distance: str) -> None:
    generator = np.random.default_rng(0)
    vectors, labels = generator.normal(size=(60, 4)) / 5, [row % 5 for row in range(60)]
    datasets = ["a" if row < 40 else "b" for row in range(60)]
    plain = evaluate(vectors, labels, datasets, distance=distance, resamples=2).to_dict()["thresholds"]
    assert plain["unified"]["consistency"]["classes"] == 10
    for name in "ab":
        values = plain["separate"][name]["consistency"]
        assert values["classes"] == 5
        assert values["thresholds"][0] <= values["thresholds"][1] <= (1 if distance == "cosine" else 0)
