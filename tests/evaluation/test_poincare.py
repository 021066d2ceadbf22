"""Nearest neighbours in the Poincaré ball, against brute force by the formula in float64 and in exact fractions."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from properties import examples
from unimetric.errors import UserError
from unimetric.evaluation import evaluate, nearest_neighbours
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.poincare import lorentz_similarities


def some_points(count: int, width: int, seed: int, curvature: float = 0.1, reach: float = 0.62) -> Tensor:
    """Points up to ``reach`` times the ball's radius from the centre; 0.62 is what the paper's clipping allows."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.nn.functional.normalize(torch.randn(count, width, generator=generator), dim=1)
    return directions * torch.rand(count, 1, generator=generator) * reach / math.sqrt(curvature)


def brute_force(queries: Tensor, gallery: Tensor, c: float) -> Tensor:
    """``arcosh(1 + 2c |x - y|^2 / ((1 - c |x|^2)(1 - c |y|^2))) / sqrt(c)``, in float64."""
    queries, gallery = queries.double(), gallery.double()
    gaps = (queries[:, None] - gallery).square().sum(dim=2)
    to_border = (1 - c * queries.square().sum(dim=1))[:, None] * (1 - c * gallery.square().sum(dim=1))
    return torch.acosh(1 + 2 * c * gaps / to_border) / math.sqrt(c)


@settings(max_examples=examples(60), deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 130),
    curvature=st.sampled_from([0.001, 0.1, 1.0, 40.0]),
    reach=st.sampled_from([0.3, 0.62, 0.99]),
    tiles=st.tuples(st.integers(1, 20), st.integers(1, 40)),
)
def test_neighbours_are_those_of_brute_force(
    seed: int, width: int, curvature: float, reach: float, tiles: tuple[int, int]
) -> None:
    queries, gallery = some_points(9, width, seed, curvature, reach), some_points(31, width, seed + 1, curvature, reach)
    similarities, rows = nearest_neighbours(
        queries, gallery, 31, distance="poincare", curvature=curvature, query_tile=tiles[0], gallery_tile=tiles[1]
    )
    distances = brute_force(queries, gallery, curvature)
    found = distances.gather(1, rows)
    unit = 1 / math.sqrt(curvature)
    # No two random points come near each other; all that is left is rounding.
    assert (found.diff(dim=1) > -1e-6 * unit).all()
    torch.testing.assert_close(-similarities, found, rtol=1e-6, atol=2e-5 * unit)
    assert torch.equal(rows.sort(dim=1).values, torch.arange(31).expand(9, -1))


def test_hyperbolic_and_cosine_neighbours_differ() -> None:
    """The same direction, far out, is farther than another direction near the centre."""
    query, gallery = torch.tensor([[0.3, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 0.3]])
    assert nearest_neighbours(query, gallery, 1)[1].item() == 0
    assert nearest_neighbours(query, gallery, 1, distance="poincare")[1].item() == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 200), reach=st.sampled_from([0.5, 0.99999]))
def test_both_matrix_products_are_exact_sums(seed: int, width: int, reach: float) -> None:
    rows = make_distance("poincare").prepare(some_points(4, width, seed, reach=reach).double())
    product = lorentz_similarities(rows.double(), rows)
    half = width + 1
    fractions = [[Fraction(entry) for entry in row] for row in rows.tolist()]
    signs = [-1] + [1] * width
    for i, one in enumerate(fractions):
        for j, other in enumerate(fractions):
            coarse = sum(s * a * b for s, a, b in zip(signs, one[:half], other[:half], strict=True))
            mixed = sum(s * a * b for s, a, b in zip(signs, one[:half], other[half:], strict=True)) + sum(
                s * a * b for s, a, b in zip(signs, one[half:], other[:half], strict=True)
            )
            assert Fraction(float(coarse)) == coarse
            assert Fraction(float(mixed)) == mixed
            assert product[i, j].item() == float(coarse) + float(mixed)


@pytest.mark.parametrize("reach", [0.62, 0.999])
def test_tiles_change_no_bit_and_copies_tie_in_row_order(reach: float) -> None:
    distinct = some_points(20, 37, 3, reach=reach)
    gallery = distinct[torch.randint(20, (211,), generator=torch.Generator().manual_seed(0))]
    expected = nearest_neighbours(distinct, gallery, 50, distance="poincare")
    for query_tile, gallery_tile in [(1, 1000), (20, 1), (7, 13), (16, 64)]:
        found = nearest_neighbours(
            distinct, gallery, 50, distance="poincare", query_tile=query_tile, gallery_tile=gallery_tile
        )
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
    similarities, rows = expected
    tied = similarities[:, 1:] == similarities[:, :-1]
    assert tied.any()
    assert (rows[:, 1:] > rows[:, :-1])[tied].all()


def test_near_neighbours_are_told_apart() -> None:
    """Cosh is flat at 0: with entries of float32, distances below 1e-3 would all be one."""
    centre = some_points(1, 64, 5)
    step = torch.zeros(1, 64)
    step[0, 0] = 1.0
    gallery = torch.cat([centre + step * size for size in (3e-4, 1e-4, 2e-4)]).double()
    similarities, rows = nearest_neighbours(centre.double(), gallery, 3, distance="poincare")
    assert rows.tolist() == [[1, 2, 0]]
    torch.testing.assert_close(-similarities, brute_force(centre, gallery, 0.1)[:, [1, 2, 0]], rtol=0, atol=1e-5)


def test_the_centre_is_a_point_like_any_other() -> None:
    points = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    similarities, rows = nearest_neighbours(points, points, 2, distance="poincare", curvature=0.25)
    assert rows.tolist() == [[0, 1], [1, 0]]
    # (2 / 0.5) artanh(0.5)
    assert similarities[0].tolist() == pytest.approx([0.0, -4 * math.atanh(0.5)], abs=1e-5)


def test_missing_neighbours_are_infinitely_far() -> None:
    points = some_points(2, 3, 0)
    similarities, rows = nearest_neighbours(
        points, points, 3, query_ids=[0, 1], gallery_ids=[0, 1], distance="poincare"
    )
    assert rows[:, 1:].tolist() == [[-1, -1], [-1, -1]]
    assert (similarities[:, 1:] == -torch.inf).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(4, 30))
def test_scores_are_those_of_brute_force(seed: int, count: int) -> None:
    points = some_points(count, 6, seed)
    random = np.random.default_rng(seed)
    labels, datasets = random.integers(0, 2, count).tolist(), random.integers(0, 2, count).tolist()
    labels[:2], datasets[:2] = [0, 0], [0, 0]
    report = evaluate(points, labels, datasets, ks=(1, 3), distance="poincare")
    distances = brute_force(points, points, 0.1).fill_diagonal_(torch.inf)
    classes = list(zip(datasets, labels, strict=True))
    for k in (1, 3):
        hits = []
        for row in range(count):
            if classes.count(classes[row]) > 1:
                nearest = distances[row].argsort()[: min(k, count - 1)].tolist()
                hits.append(any(classes[other] == classes[row] for other in nearest))
        assert report.unified[f"recall@{k}"] == pytest.approx(sum(hits) / len(hits))
    assert report.distance == report.to_dict()["distance"] == "poincare"
    assert evaluate(points, labels, datasets).to_dict()["distance"] == "cosine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": "hyperbolic"}, "distance: 'hyperbolic'; valid: cosine, euclidean, poincare"),
        ({"distance": "poincare", "curvature": -0.1}, "curvature: -0.1; give a number from 1e-6 to 1e6"),
        ({"distance": "poincare", "curvature": "flat"}, "curvature: 'flat'; give a number from 1e-6 to 1e6"),
        (
            {"distance": "poincare", "curvature": 1.0},
            "gallery: row 1 has length 1, outside the Poincaré ball of radius 1 (curvature 1); give points of the "
            "ball, or the curvature that they were made with",
        ),
        (
            {"distance": "poincare", "queries": torch.tensor([[0.1, math.nan]])},
            "queries: row 0, column 1 is nan; drop that row or fix the model that made it",
        ),
        (
            {"distance": "poincare", "queries": torch.zeros(1, 3)},
            "gallery: 2 columns, but queries has 3; embed both sides with the same model",
        ),
        ({"distance": "poincare", "queries": torch.full((1, 2), 1e200, dtype=torch.float64)}, "row 0 has length 1.41"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], message: str) -> None:
    arguments = {"queries": torch.zeros(1, 2), "gallery": torch.tensor([[0.0, 0.5], [0.6, 0.8]]).double(), "k": 1}
    with pytest.raises(UserError) as caught:
        nearest_neighbours(**(arguments | options))  # type: ignore[arg-type]
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("reach", [0.62, 0.999])
def test_devices_agree_to_the_bit(reach: float) -> None:
    points = some_points(500, 37, 1, reach=reach)
    gallery = torch.cat([points, points])
    on_cpu = nearest_neighbours(points, gallery, 90, distance="poincare")
    on_cuda = nearest_neighbours(points, gallery, 90, distance="poincare", device="cuda")
    assert torch.equal(on_cpu[0], on_cuda[0])
    assert torch.equal(on_cpu[1], on_cuda[1])
