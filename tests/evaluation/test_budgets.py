"""Recall@1 of shorter vectors and coarser types, against a naive count; and the types themselves."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.evaluation.budgets import RESCORED, budget_sizes, measure_budgets
from unimetric.evaluation.evaluate_split import evaluate_vectors
from unimetric.formats.stored_types import STORED_TYPES, check_type, decode_vectors, encode_vectors, stored_bytes
from unimetric.formats.vectors import MeasuredVectors
from unimetric.geometry import PoincareBall, Sphere
from unimetric.models.sizes import Sizes, fit_rotation


def units(rows, width=24, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def unit(vectors):
    return vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)


def measured(rows=90, width=24, seed=0, gallery=None):
    """Three datasets of classes that hang together loosely; one image has no other of its class."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 9, rows)
    labels[0] = 99
    items = tuple(Item(Path(f"/i/{n}.png"), str(label), f"d{label % 3}") for n, label in enumerate(labels))
    centres = random.normal(size=(100, width))
    vectors = centres[labels] + random.normal(0, 1.5, (rows, width))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    if gallery is None:
        return MeasuredVectors(items, vectors, items, vectors)
    return MeasuredVectors(items[:gallery], vectors[:gallery], items[gallery // 2 :], vectors[gallery // 2 :])


def naive(vectors, stored, finer, within):
    """Recall@1 by dataset: of all queries with a positive, the share whose nearest stored vector is of their class."""
    hits = {}
    for query, vector in zip(vectors.query, vectors.query_vectors, strict=True):
        scores = stored.astype(np.float64) @ vector.astype(np.float64)
        other = np.array([item.path != query.path for item in vectors.gallery])
        allowed = other & np.array([not within or item.dataset == query.dataset for item in vectors.gallery])
        same = np.array([(item.dataset, item.label) == (query.dataset, query.label) for item in vectors.gallery])
        if not (same & other).any():
            continue
        order = [row for row in np.argsort(-scores, kind="stable") if allowed[row]]
        if finer is not None:
            exact = finer.astype(np.float64) @ vector.astype(np.float64)
            order = sorted(order[:RESCORED], key=lambda row: (-exact[row], row))
        hits.setdefault(query.dataset, []).append(bool(same[order[0]]))
    return {name: np.mean(values) for name, values in hits.items()}, np.mean(
        [hit for values in hits.values() for hit in values]
    )


@pytest.mark.parametrize("gallery", [None, 50])
def test_every_point_is_that_of_a_naive_count(gallery):
    vectors = measured(gallery=gallery)
    sizes = Sizes(rotation=fit_rotation(units(60)))
    budgets = measure_budgets(vectors, sizes, Sphere())
    assert [(p["size"], p["type"], p["rescored"]) for p in budgets["points"][:5]] == [
        *((24, type, False) for type in STORED_TYPES),
        (24, "bit", True),
    ]
    assert {point["size"] for point in budgets["points"]} == {24, 16}
    for point in budgets["points"]:
        query, kept = (sizes.shorten(v, point["size"]) for v in (vectors.query_vectors, vectors.gallery_vectors))
        short = MeasuredVectors(vectors.query, query, vectors.gallery, kept)
        stored = unit(decode_vectors(point["type"], encode_vectors(point["type"], kept), point["size"]))
        finer = unit(decode_vectors("int8", encode_vectors("int8", kept), point["size"])) if point["rescored"] else None
        separate, _ = naive(short, stored, finer, within=True)
        _, unified = naive(short, stored, finer, within=False)
        assert point["separate"] == pytest.approx(separate)
        assert point["unified"] == pytest.approx(unified)
        assert point["harmonic"] == pytest.approx(len(separate) / sum(1 / value for value in separate.values()))
        for part in ("harmonic", "unified"):
            low, high = point["intervals"][part]
            assert low <= point[part] <= high


def test_whole_float32_vectors_have_the_numbers_and_intervals_of_the_report():
    vectors = measured()
    whole = measure_budgets(vectors, Sizes(), Sphere())["points"][0]
    report = evaluate_vectors(vectors, Sphere(), ks=(1,)).to_dict()
    for part in ("harmonic", "unified"):
        assert whole[part] == pytest.approx(report[part]["recall@1"], abs=1e-12)
        assert whole["intervals"][part] == pytest.approx(report["intervals"][part]["recall@1"], abs=1e-12)
    assert whole["separate"] == pytest.approx({n: values["recall@1"] for n, values in report["separate"].items()})


def test_images_with_several_labels_are_right_where_they_share_one():
    plain = measured()
    random = np.random.default_rng(3)
    items = tuple(
        replace(item, labels=(item.label, *random.choice(["0", "3", "6", "x"], 2, replace=False)))
        for item in plain.query
    )
    vectors = MeasuredVectors(items, plain.query_vectors, items, plain.query_vectors)
    whole = measure_budgets(vectors, Sizes(), Sphere())["points"][0]
    report = evaluate_vectors(vectors, Sphere(), ks=(1,)).to_dict()
    for part in ("harmonic", "unified"):
        assert whole[part] == pytest.approx(report[part]["recall@1"], abs=1e-12)
        assert whole["intervals"][part] == pytest.approx(report["intervals"][part]["recall@1"], abs=1e-12)


def test_thresholds_of_a_size_are_those_of_its_vectors():
    vectors, sizes = measured(), Sizes(nested=(8,))
    budgets = measure_budgets(vectors, sizes, Sphere())
    short = sizes.shorten(vectors.query_vectors, 8)
    report = evaluate_vectors(MeasuredVectors(vectors.query, short, vectors.query, short), Sphere(), ks=(1,))
    assert budgets["thresholds"].keys() == {"8", "16"}
    assert budgets["thresholds"]["8"] == report.to_dict()["thresholds"]


def test_sizes_that_are_measured():
    assert budget_sizes(128, Sizes()) == [128]
    assert budget_sizes(128, Sizes(nested=(16, 48))) == [128, 64, 48, 32, 16]
    assert budget_sizes(16, Sizes(rotation=fit_rotation(units(20, 16)))) == [16]
    assert measure_budgets(measured(), Sizes(), PoincareBall()) is None


def test_a_vector_without_kept_numbers_finds_nothing():
    vectors = measured()
    changed = vectors.query_vectors.copy()
    changed[3, :8] = 0
    budgets = measure_budgets(
        MeasuredVectors(vectors.query, changed, vectors.query, changed), Sizes(nested=(8,)), Sphere()
    )
    assert all(0 < point["unified"] <= 1 for point in budgets["points"])
    assert budgets["thresholds"].keys() == {"16"}


@pytest.mark.parametrize(("type", "error"), [("float32", 0), ("float16", 1e-3), ("int8", 6e-3), ("bit", 0.9)])
def test_codes_keep_directions(type, error):
    vectors = units(200, 40)
    codes = encode_vectors(type, vectors)
    assert codes.nbytes == 200 * stored_bytes(type, 40)
    decoded = decode_vectors(type, codes, 40)
    assert decoded.dtype == np.float32
    assert np.abs(unit(decoded) - unit(vectors)).max() <= error * np.abs(vectors).max() + 1e-12
    # Written again, as where only the label has changed, they stay as they are.
    np.testing.assert_array_equal(encode_vectors(type, decoded), codes)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(0, 99), st.sampled_from(STORED_TYPES))
def test_a_code_depends_on_its_vector_alone(width, seed, type):
    vectors = units(7, width, seed)
    codes = encode_vectors(type, vectors)
    np.testing.assert_array_equal(np.concatenate([encode_vectors(type, vectors[n : n + 1]) for n in range(7)]), codes)
    whole = decode_vectors(type, codes, width)
    alone = [decode_vectors(type, codes[row : row + 1], width) for row in range(7)]
    np.testing.assert_array_equal(np.concatenate(alone), whole)


def test_int8_keeps_the_cosines_of_vectors_of_any_shape():
    for vectors in (np.eye(8, dtype=np.float32), units(300, 128), np.abs(units(300, 16))):
        decoded = unit(decode_vectors("int8", encode_vectors("int8", vectors), vectors.shape[1]))
        wanted = unit(vectors)
        assert np.abs(wanted @ decoded.T - wanted @ wanted.T).max() < 0.01


def test_no_vectors_zero_vectors_and_unknown_types():
    for type in STORED_TYPES:
        assert check_type(type) == type
        assert decode_vectors(type, encode_vectors(type, np.empty((0, 16), np.float32)), 16).shape == (0, 16)
    assert not encode_vectors("int8", np.zeros((1, 16), np.float32)).any()
    with pytest.raises(UserError, match="'int4'"):
        check_type("int4")
