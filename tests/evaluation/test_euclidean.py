"""Nearest neighbours in Euclidean distance, against the definition in exact fractions and in float64."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from properties import examples
from unimetric.errors import UserError
from unimetric.evaluation import evaluate, nearest_neighbours
from unimetric.evaluation.distances import common_exponent, euclidean_rows, minus_squared_distances

COARSE = st.tuples(*[st.integers(-3, 3).map(float)] * 3)


@settings(max_examples=examples(100), deadline=None)
@given(
    queries=st.lists(COARSE, min_size=1, max_size=6),
    gallery=st.lists(COARSE, min_size=1, max_size=20),
    k=st.integers(1, 22),
    scale=st.sampled_from([1.0, 2.0**-70, 2.0**90, 0.37]),
)
def test_neighbours_are_those_of_the_definition(
    queries: list[tuple[float, ...]], gallery: list[tuple[float, ...]], k: int, scale: float
) -> None:
    similarities, rows = nearest_neighbours(
        np.array(queries) * scale, np.array(gallery) * scale, k, distance="euclidean", gallery_tile=7
    )
    for query, values, found in zip(queries, similarities.tolist(), rows.tolist(), strict=True):
        squares = [sum((a - b) ** 2 for a, b in zip(query, item, strict=True)) for item in gallery]
        expected = sorted(range(len(gallery)), key=lambda row: (squares[row], row))[:k]
        missing = k - len(expected)
        if scale != 0.37:
            # Whole numbers times a power of two are on the grid.
            assert found == expected + [-1] * missing
        assert [value for value in values if value > -np.inf] == pytest.approx(
            [-scale * squares[row] ** 0.5 for row in expected], rel=1e-6, abs=1e-6 * scale
        )


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 100))
def test_a_matrix_product_is_the_exact_sum(seed: int, width: int) -> None:
    vectors = torch.randn(4, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows = euclidean_rows(common_exponent({"vectors": vectors}), vectors, 0, "vectors")
    product = minus_squared_distances(rows.double(), rows)
    fractions = [[Fraction(entry) for entry in row[:-3]] for row in rows.tolist()]
    assert rows[:, :-3].double().norm(dim=1).max() <= 1 + 1e-6
    for i, one in enumerate(fractions):
        for j, other in enumerate(fractions):
            assert Fraction(product[i, j].item()) == -sum((a - b) ** 2 for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_no_length_overflows_or_vanishes(size: float) -> None:
    vectors = np.array([[3.0, 4.0], [0.0, 0.0], [3.0, 0.0]]) * size
    similarities, rows = nearest_neighbours(vectors, vectors, 3, distance="euclidean")
    assert rows.tolist() == [[0, 2, 1], [1, 2, 0], [2, 1, 0]]
    assert (similarities / size).tolist() == [
        pytest.approx(row, rel=1e-6) for row in ([0, -4, -5], [0, -3, -5], [0, -3, -4])
    ]


def test_the_error_is_within_what_is_promised() -> None:
    vectors = torch.randn(300, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7
    similarities, rows = nearest_neighbours(vectors, vectors, 300, distance="euclidean")
    exact = torch.cdist(vectors, vectors, compute_mode="donot_use_mm_for_euclid_dist")
    bound = 64**0.5 * 2**-23 * vectors.norm(dim=1).max()
    assert (-similarities - exact.gather(1, rows)).abs().max() <= bound
    assert (exact.gather(1, rows).diff(dim=1) >= -2 * bound).all()


def test_length_matters_and_sides_are_scaled_alike() -> None:
    query, gallery = torch.tensor([[1.0, 0.0]]), torch.tensor([[1000.0, 0.0], [0.0, 0.5]])
    assert nearest_neighbours(query, gallery, 1)[1].item() == 0
    similarities, rows = nearest_neighbours(query, gallery, 2, distance="euclidean")
    assert rows.tolist() == [[1, 0]]
    assert similarities[0].tolist() == pytest.approx([-(1.25**0.5), -999.0], rel=1e-3)


def test_all_zeros_are_equally_near() -> None:
    similarities, rows = nearest_neighbours(torch.zeros(2, 3), torch.zeros(3, 3), 2, distance="euclidean")
    assert rows.tolist() == [[0, 1], [0, 1]]
    assert similarities.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert not torch.signbit(similarities).any()


def test_scores_of_unit_vectors_are_those_of_cosines() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(12, (150,), generator=generator)
    vectors = torch.randn(12, 8, generator=generator)[labels] + torch.randn(150, 8, generator=generator)
    vectors = torch.nn.functional.normalize(vectors.double())
    datasets = (labels % 3).tolist()
    cosines, distances = (evaluate(vectors, labels, datasets, ks=[1, 5], distance=d) for d in ("cosine", "euclidean"))
    assert distances.unified == cosines.unified
    assert distances.separate == cosines.separate
    assert distances.distance == distances.to_dict()["distance"] == "euclidean"
    # Thresholds are minus distances, the spread is that of unit vectors.
    best = cosines.per_query.unified.best_positive
    np.testing.assert_allclose(distances.per_query.unified.best_positive, -np.sqrt(2 - 2 * best), atol=1e-6)
    assert distances.unified_spread.alignment == pytest.approx(cosines.unified_spread.alignment, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"queries": torch.tensor([[np.nan, 1.0]])}, "queries: row 0, column 0 is nan"),
        ({"gallery": torch.tensor([[1.0, 1.0], [1.0, np.inf]])}, "gallery: row 1, column 1 is inf"),
        ({"gallery": torch.ones(2, 3)}, "gallery: 3 columns, but queries has 2"),
        ({"gallery": torch.ones(0, 2)}, r"gallery: shape \[0, 2\] holds nothing"),
        ({"distance": "euclidian"}, "distance: 'euclidian'; did you mean 'euclidean'"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"queries": torch.eye(2), "gallery": torch.eye(2), "k": 1, "distance": "euclidean"}
    with pytest.raises(UserError, match=message):
        nearest_neighbours(**(arguments | options))
