"""The hyperbolic loss against its definition, and where its gradient could break."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pytorch_metric_learning.distances import BaseDistance
from pytorch_metric_learning.losses import SupConLoss
from torch import Tensor

from unimetric.geometry import PoincareBall
from unimetric.losses.hyperbolic import Hyperbolic


def distance(x: list[float], y: list[float], c: float) -> float:
    """``(2 / sqrt(c)) artanh( sqrt(c) |-x (+) y| )`` by Möbius addition, in plain Python."""
    xy, xx, yy = (sum(a * b for a, b in zip(u, v, strict=True)) for u, v in ((x, y), (x, x), (y, y)))
    below = 1 - 2 * c * xy + c * c * xx * yy
    moved = [(-(1 - 2 * c * xy + c * yy) * a + (1 - c * xx) * b) / below for a, b in zip(x, y, strict=True)]
    return 2 / math.sqrt(c) * math.atanh(math.sqrt(c) * math.hypot(*moved))


def by_definition(points: list[list[float]], labels: list[int], c: float, temperature: float) -> float:
    terms = []
    everyone = range(len(points))
    for i in everyone:
        weights = {a: math.exp(-distance(points[i], points[a], c) / temperature) for a in everyone if a != i}
        terms += [-math.log(weights[p] / sum(weights.values())) for p in weights if labels[p] == labels[i]]
    return sum(terms) / len(terms) if terms else 0.0


def points_of(ball: PoincareBall, count: int, seed: int) -> Tensor:
    return ball.embed(2 * torch.randn(count, 4, generator=torch.Generator().manual_seed(seed)))


@settings(max_examples=40, deadline=None)
@given(
    labels=st.lists(st.integers(0, 2), min_size=1, max_size=7),
    curvature=st.sampled_from([0.02, 0.1, 1.0]),
    temperature=st.sampled_from([0.2, 1.0]),
    seed=st.integers(0, 1000),
)
def test_value_is_the_mean_over_positive_pairs(
    labels: list[int], curvature: float, temperature: float, seed: int
) -> None:
    loss = Hyperbolic(3, 4, temperature=temperature, curvature=curvature)
    points = points_of(loss.ball, len(labels), seed)
    expected = by_definition(points.double().tolist(), labels, curvature, temperature)
    assert loss(points, torch.tensor(labels)).item() == pytest.approx(expected, rel=1e-4, abs=1e-4)


class BallDistance(BaseDistance):  # type: ignore[misc]  # the library is untyped
    def __init__(self, ball: PoincareBall) -> None:
        super().__init__(normalize_embeddings=False)
        self.ball = ball

    def compute_mat(self, query_emb: Tensor, ref_emb: Tensor) -> Tensor:
        return self.ball.distances(query_emb, query_emb if ref_emb is None else ref_emb)


def test_with_equal_classes_it_is_the_library_s_supcon() -> None:
    loss = Hyperbolic(3, 4)
    points, labels = points_of(loss.ball, 12, 0), torch.arange(3).repeat(4)
    library = SupConLoss(temperature=0.2, distance=BallDistance(loss.ball))
    assert loss(points, labels).item() == pytest.approx(library(points, labels).item(), rel=1e-5)


def test_the_gradient_is_the_slope() -> None:
    ball = PoincareBall()
    points, labels = points_of(ball, 6, 1).double(), torch.tensor([0, 0, 1, 1, 2, 2])

    def value(points: Tensor) -> Tensor:
        from unimetric.losses.hyperbolic import supervised_contrast

        return supervised_contrast(ball.distances(points, points), labels, 0.2)

    assert torch.autograd.gradcheck(value, points.requires_grad_())


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-6, 1.0, 1e6, 1e18])
@pytest.mark.parametrize("clip", [2.3, 1e6])
def test_finite_gradients_from_the_centre_to_the_border(scale: float, clip: float) -> None:
    """Through the map into the ball too; the first two images are identical."""
    loss = Hyperbolic(2, 4, clip=clip)
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(2)) * scale
    features[1] = features[0]
    features.requires_grad_()
    points = loss.ball.embed(features)
    value = loss(points, torch.tensor([0, 0, 0, 1, 1, 1]))
    value.backward()
    assert torch.isfinite(value)
    assert features.grad is not None
    assert torch.isfinite(features.grad).all()
    if scale == 1.0:
        assert (features.grad.abs().sum(dim=1) > 0).all()


def test_points_beyond_the_border_count_as_on_it() -> None:
    loss = Hyperbolic(2, 4)
    directions, labels = torch.nn.functional.normalize(torch.randn(4, 4)), torch.tensor([0, 0, 1, 1])
    on_it = loss(directions * loss.ball.largest_norm, labels)
    assert loss(directions * 1e3, labels).item() == pytest.approx(on_it.item(), rel=1e-4)
