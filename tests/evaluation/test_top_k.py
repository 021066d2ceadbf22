"""Screening in float32 changes nothing: whatever the data and the sizes, the result is that of exact arithmetic."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from properties import examples
from unimetric.evaluation import screen, top_k
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.rows import Tiling
from unimetric.evaluation.top_k import Gallery, find


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Groups and lists so small that a few items are screened."""
    for module in (screen, top_k):
        monkeypatch.setattr(module, "GROUP", 4)
    monkeypatch.setattr(top_k, "SPARE", 1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def some_vectors(kind: str, rows: int, width: int, seed: int) -> Tensor:
    """Vectors of which few, many or all are alike, or nearly."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(rows, width, generator=generator)
    if kind == "copies":
        vectors = vectors[torch.randint(max(1, rows // 6), (rows,), generator=generator)]
    if kind == "near copies":
        vectors = vectors[:1] + 1e-6 * vectors
    if kind == "equal":
        vectors = vectors[:1].expand(rows, -1)
    if kind == "coarse":
        vectors = vectors.round().clamp(-1, 1)
        vectors[:, 0] = 1.0
    # Within the Poincaré ball, too.
    return vectors / (1 + vectors.norm(dim=1, keepdim=True)) * 3


def by_definition(similarities: Tensor, own: Tensor, allowed: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """A stable sort of all allowed similarities."""
    hidden = similarities.clone()
    hidden[~allowed] = -torch.inf
    known = (own >= 0).nonzero()[:, 0]
    hidden[known, own[known]] = -torch.inf
    values, rows = hidden.sort(dim=1, descending=True, stable=True)
    values, rows = values[:, :k], rows[:, :k]
    return values, rows.masked_fill(values == -torch.inf, -1)


@settings(max_examples=examples(80), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(["random", "copies", "near copies", "equal", "coarse"]),
    distance=st.sampled_from(["cosine", "euclidean", "poincare"]),
    sizes=st.tuples(st.integers(1, 30), st.integers(1, 150)),
    width=st.integers(1, 20),
    k=st.integers(1, 12),
    datasets=st.integers(1, 5),
    tiles=st.tuples(st.integers(1, 40), st.integers(1, 60)),
    memory=st.sampled_from([4_000, 50_000, 2**30]),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_results_of_one_pass_are_those_of_a_full_sort(
    kind: str,
    distance: str,
    sizes: tuple[int, int],
    width: int,
    k: int,
    datasets: int,
    tiles: tuple[int, int],
    memory: int,
    seed: int,
) -> None:
    vectors = some_vectors(kind, sum(sizes), width, seed)
    comparison = make_distance(distance, sides={"vectors": vectors})
    rows = comparison.prepare(vectors, "vectors")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    queries, gallery = rows[order[: sizes[0]]], rows[order[sizes[0] :]]
    # Some queries are of datasets without a gallery, some galleries of datasets without queries.
    query_datasets = torch.randint(datasets + 1, (sizes[0],), generator=generator).sort().values
    gallery_datasets = torch.randint(1, datasets + 1, (sizes[1],), generator=generator)
    own = torch.randint(-1, sizes[1], (sizes[0],), generator=generator)
    laid_out = Gallery.of(gallery, comparison, gallery_datasets)
    both = find(queries, own, query_datasets, laid_out, k, Tiling(*tiles, memory=memory))

    similarities = comparison.similarities(queries.double(), gallery)
    same = query_datasets[:, None] == gallery_datasets
    for found, allowed in ((both.separate, same), (both.unified, torch.ones_like(same))):
        values, expected = by_definition(similarities, own, allowed, k)
        assert torch.equal(found.rows[:, : sizes[1]], expected)
        assert torch.equal(found.values[:, : sizes[1]], values)
        assert (found.rows[:, sizes[1] :] == -1).all()
