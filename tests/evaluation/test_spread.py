from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from properties import examples
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.statistics import measure_spread
from unimetric.geometry import PoincareBall

BALL = PoincareBall(curvature=0.3)


def retrieval(
    queries: torch.Tensor,
    gallery: torch.Tensor,
    classes: list[int],
    gallery_classes: list[int],
    own: list[int],
    name: str,
) -> Retrieval:
    distance = make_distance(name, BALL.curvature)
    return Retrieval(
        distance.prepare(queries, "queries"),
        distance.prepare(gallery, "gallery"),
        torch.tensor(classes),
        torch.tensor(gallery_classes),
        torch.tensor(own),
        distance,
    )


def among_themselves(vectors: torch.Tensor, classes: list[int], name: str = "cosine") -> Retrieval:
    return retrieval(vectors, vectors, classes, classes, list(range(len(classes))), name)


@settings(max_examples=examples(60), deadline=None)
@given(
    classes=st.lists(st.integers(0, 3), min_size=1, max_size=90),
    gallery_classes=st.lists(st.integers(0, 3), min_size=1, max_size=9),
    name=st.sampled_from(["cosine", "poincare"]),
    data=st.data(),
)
def test_all_pairs_count_once(classes: list[int], gallery_classes: list[int], name: str, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(len(classes))
    queries = torch.randn(len(classes), 3, generator=generator, dtype=torch.float64) / 5
    gallery = torch.randn(len(gallery_classes), 3, generator=generator, dtype=torch.float64) / 5
    own = data.draw(st.lists(st.integers(-1, len(gallery) - 1), min_size=len(classes), max_size=len(classes)))
    found = measure_spread(retrieval(queries, gallery, classes, gallery_classes, own, name))
    near, every = [], []
    for q, query in enumerate(queries):
        for g, item in enumerate(gallery):
            if own[q] == g:
                continue
            if name == "cosine":
                gap = (query / query.norm() - item / item.norm()).norm().item()
            else:
                gap = BALL.distances(query[None], item[None]).item()
            every.append(gap**2)
            if classes[q] == gallery_classes[g]:
                near.append(gap**2)
    assert (found.positive_pairs, found.pairs, found.sampled) == (len(near), len(every), False)
    if every:
        uniformity = math.log(sum(math.exp(-2 * square) for square in every) / len(every))
        assert found.uniformity == pytest.approx(uniformity, abs=1e-4)
    else:
        assert found.uniformity is None
    if near:
        assert found.alignment == pytest.approx(sum(near) / len(near), abs=1e-4)
    else:
        assert found.alignment is None


def test_a_sample_comes_near_and_is_the_same_every_time() -> None:
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(10, (400,), generator=generator).tolist()
    vectors = torch.randn(10, 8, generator=generator)[classes] + torch.randn(400, 8, generator=generator)
    exact = measure_spread(among_themselves(vectors, classes), limit=1_000_000)
    sample = measure_spread(among_themselves(vectors, classes), limit=10_000)
    assert exact.pairs == 400 * 399
    assert not exact.sampled
    assert sample.sampled
    assert 9_900 < sample.pairs < 10_000
    assert sample.alignment == pytest.approx(exact.alignment, abs=0.05)
    assert sample.uniformity == pytest.approx(exact.uniformity, abs=0.1)
    assert sample == measure_spread(among_themselves(vectors, classes), limit=10_000)
    assert sample.uniformity != measure_spread(among_themselves(vectors, classes), limit=10_000, seed=1).uniformity


def test_the_ends_of_the_ranges() -> None:
    """One point for all: as near and as uneven as can be. Opposite points: as far as can be."""
    together = measure_spread(among_themselves(torch.ones(4, 3), [0] * 4))
    assert (together.alignment, together.uniformity) == pytest.approx((0, 0), abs=1e-5)
    apart = measure_spread(among_themselves(torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), [0, 0]))
    assert (apart.alignment, apart.uniformity) == pytest.approx((4, -8), abs=1e-5)


def test_distances_of_vectors_that_are_not_normalised() -> None:
    """Features of a network are often further apart than 19.3, where exp(-2 d²) is zero."""
    vectors = torch.tensor([[0.0, 0.0], [300.0, 400.0], [0.0, 800.0]], dtype=torch.float64)
    found = measure_spread(among_themselves(vectors, [0, 0, 1], "euclidean"))
    assert found.alignment == pytest.approx(500**2)
    assert found.uniformity == pytest.approx(math.log(4 / 6) - 2 * 500**2)
