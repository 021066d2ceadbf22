"""Results of single queries, against plain Python."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from image_pools import columns, images
from retrieval_oracle import Image, mean_scores, ranking, scores_of, similarity

from properties import examples
from unimetric.evaluation import PerQuery, Report, evaluate
from unimetric.evaluation.per_query import QueryResults
from unimetric.geometry import PoincareBall

TILE = st.integers(1, 20)


def best(query: Image, gallery: Sequence[Image], rows: Sequence[int]) -> float:
    """The similarity of the first of some gallery rows, ordered by similarity; NaN for none."""
    return float(similarity(query.vector, gallery[rows[0]].vector)) if rows else math.nan


def check_results(
    results: QueryResults, queries: Sequence[Image], gallery: Sequence[Image], allowed: Callable[[Image, Image], bool]
) -> None:
    for row, query in enumerate(queries):
        rows = [g for g in ranking(query, gallery) if allowed(query, gallery[g])]
        right = [g for g in rows if (gallery[g].dataset, gallery[g].label) == (query.dataset, query.label)]
        wrong = [g for g in rows if g not in right]
        assert results.nearest[row] == (rows[0] if rows else -1)
        expected = [best(query, gallery, right), best(query, gallery, wrong)]
        assert [results.best_positive[row], results.best_negative[row]] == pytest.approx(expected, nan_ok=True, abs=0)
        part = [item for item in gallery if allowed(query, item)]
        scores = scores_of(query, part, [1, 2], whole_ranking=True)
        for metric, values in results.scores.items():
            value = math.nan if scores is None else float(scores[metric])
            assert values[row] == pytest.approx(value, nan_ok=True, abs=1e-12)


@settings(max_examples=examples(100), deadline=None)
@given(pool=images(), query_tile=TILE, gallery_tile=TILE, data=st.data())
def test_every_query_is_judged_by_the_definitions(
    pool: list[Image], query_tile: int, gallery_tile: int, data: st.DataObject
) -> None:
    """The gallery may share none, some or all of its images with the queries."""
    some = st.lists(st.sampled_from(pool), min_size=1, unique_by=lambda image: image.identity)
    queries, gallery = data.draw(some), data.draw(some)
    assume(mean_scores(queries, gallery, [1]) is not None)
    *query_columns, ids = columns(queries)
    options: dict[str, Any] = {"ids": ids, "query_tile": query_tile, "gallery_tile": gallery_tile}
    report = evaluate(*query_columns, columns(gallery), ks=[2], mean_average_precision=True, resamples=1, **options)
    valued = {str(name) for name in report.separate}
    per_query = report.per_query
    check_results(per_query.unified, queries, gallery, lambda query, item: True)
    check_results(
        per_query.separate,
        queries,
        gallery,
        lambda query, item: item.dataset == query.dataset and str(query.dataset) in valued,
    )
    assert [per_query.classes[c] for c in per_query.query_classes] == [(q.dataset, q.label) for q in queries]
    assert [per_query.classes[c] for c in per_query.gallery_classes] == [(g.dataset, g.label) for g in gallery]
    assert [per_query.datasets[d] for d in per_query.query_datasets] == [str(q.dataset) for q in queries]
    assert [per_query.datasets[d] for d in per_query.gallery_datasets] == [str(g.dataset) for g in gallery]
    means = mean_scores(queries, gallery, [2], whole_ranking=True)
    assert means is not None
    assert report.unified == pytest.approx({metric: float(value) for metric, value in means.items()}, abs=1e-12)


def random_report(**options: Any) -> Report:
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(12, (90,), generator=generator)
    vectors = torch.randn(12, 5, generator=generator)[labels] + torch.randn(90, 5, generator=generator)
    return evaluate(vectors / 12, labels, labels % 3, **options)


def test_in_the_ball_similarities_are_minus_distances() -> None:
    report = random_report(distance="poincare", curvature=0.5)
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(12, (90,), generator=generator)
    vectors = torch.randn(12, 5, generator=generator)[labels] + torch.randn(90, 5, generator=generator)
    distances = PoincareBall(0.5).distances(vectors.double() / 12, vectors.double() / 12)
    distances.fill_diagonal_(torch.inf)
    same = labels[:, None] == labels
    results = report.per_query.unified
    nearest_positive = distances.masked_fill(~same, torch.inf).amin(dim=1)
    nearest_negative = distances.masked_fill(same, torch.inf).amin(dim=1)
    np.testing.assert_allclose(results.best_positive, -nearest_positive.numpy(), rtol=1e-5)
    np.testing.assert_allclose(results.best_negative, -nearest_negative.numpy(), rtol=1e-5)
    np.testing.assert_array_equal(results.nearest, distances.argmin(dim=1).numpy())


def test_arrays_survive_a_file_without_pickles() -> None:
    per_query = random_report(mean_average_precision=True).per_query
    file = io.BytesIO()
    np.savez_compressed(file, **per_query.to_arrays())
    file.seek(0)
    with np.load(file, allow_pickle=False) as opened:
        again = PerQuery.from_arrays(opened)
    assert again.datasets == per_query.datasets
    assert again.classes == tuple((str(dataset), str(label)) for dataset, label in per_query.classes)
    assert again.to_arrays().keys() == per_query.to_arrays().keys()
    for name, values in per_query.to_arrays().items():
        np.testing.assert_array_equal(again.to_arrays()[name], values)


def test_by_dataset_keeps_the_order_of_the_queries() -> None:
    vectors = torch.eye(4)[[0, 1, 0, 1, 0, 2]]
    report = evaluate(vectors, ["a", "b", "a", "c", "b", "d"], ["one", "two", "one", "two", "two", "one"])
    separate = report.per_query.by_dataset("separate")
    assert separate.keys() == {"one", "two"}
    assert separate["one"].tolist()[:2] == [1.0, 1.0]
    assert math.isnan(separate["one"][2])
    assert separate["two"][[0, 2]].tolist() == [0.0, 1.0]
    assert math.isnan(separate["two"][1])
    assert report.per_query.by_dataset("unified", "r-precision")["two"][0] == Fraction(0)


def test_equal_scores_make_equal_reports() -> None:
    """The comparison ignores the results of each query."""
    assert random_report() == random_report(query_tile=7, gallery_tile=11)
    assert random_report() != random_report(seed=1)
