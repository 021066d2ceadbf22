from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_products import Products
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN

from properties import examples
from unimetric.evaluation import evaluate
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.metrics import Retrieval, judge_both, score_hits
from unimetric.evaluation.neighbours import Tiling

unit_vectors = make_distance().prepare


def test_the_paper_s_example_of_map_at_r() -> None:
    """Musgrave et al. compare four retrievals for R = 10: MAP@R 10, 12, 20 and 100 percent."""
    only_first = [True] + [False] * 9
    first_and_last = [True] + [False] * 8 + [True]
    first_two = [True] * 2 + [False] * 8
    all_ten = [True] * 10
    hits = torch.tensor([only_first, first_and_last, first_two, all_ten])
    scores = score_hits(hits, torch.tensor([10] * 4), [1])
    assert scores["recall@1"].tolist() == [1, 1, 1, 1]
    assert scores["r-precision"].tolist() == [0.1, 0.2, 0.2, 1.0]
    assert scores["map@r"].tolist() == pytest.approx([0.1, 0.12, 0.2, 1.0])


@settings(max_examples=examples(100), deadline=None)
@given(hits=st.lists(st.booleans(), min_size=1, max_size=30), data=st.data())
def test_hits_are_scored_by_the_definitions(hits: list[bool], data: st.DataObject) -> None:
    r = data.draw(st.integers(1, len(hits)))
    k = data.draw(st.integers(1, 40))
    scores = score_hits(torch.tensor([hits]), torch.tensor([r]), [k])
    average = sum(Fraction(sum(hits[:i]), i) for i in range(1, r + 1) if hits[i - 1]) / r
    assert scores[f"recall@{k}"].item() == any(hits[:k])
    assert scores["r-precision"].item() == pytest.approx(sum(hits[:r]) / r)
    assert scores["map@r"].item() == pytest.approx(float(average))


@pytest.mark.parametrize(("classes", "noise"), [(3, 1.0), (12, 0.5), (40, 2.0)])
def test_agrees_with_pytorch_metric_learning(classes: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.cat([torch.arange(classes).repeat(2), torch.randint(classes, (150,), generator=generator)])
    vectors = torch.randn(classes, 16, generator=generator)[labels]
    vectors = vectors + noise * torch.randn(len(labels), 16, generator=generator)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    theirs = calculator.get_accuracy(vectors, labels)
    ours = evaluate(vectors, labels, ["one"] * len(labels), query_tile=50, gallery_tile=37).unified
    assert ours["recall@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-12)
    assert ours["r-precision"] == pytest.approx(theirs["r_precision"], abs=1e-12)
    assert ours["map@r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-12)
    assert 0.03 < ours["map@r"] < 1


def test_agrees_with_pytorch_metric_learning_on_a_separate_gallery() -> None:
    generator = torch.Generator().manual_seed(0)
    vectors, gallery = torch.randn(2, 90, 4, generator=generator)
    labels, gallery_labels = torch.randint(9, (2, 90), generator=generator)
    vectors += 2 * torch.nn.functional.one_hot(labels % 4, 4)
    gallery += 2 * torch.nn.functional.one_hot(gallery_labels % 4, 4)
    calculator = AccuracyCalculator(
        include=("precision_at_1", "r_precision", "mean_average_precision_at_r"),
        knn_func=CustomKNN(CosineSimilarity()),
    )
    theirs = calculator.get_accuracy(vectors, labels, gallery, gallery_labels)
    ours = evaluate(vectors, labels, [0] * 90, (gallery, gallery_labels, [0] * 90)).unified
    assert ours["recall@1"] == pytest.approx(theirs["precision_at_1"], abs=1e-12)
    assert ours["r-precision"] == pytest.approx(theirs["r_precision"], abs=1e-12)
    assert ours["map@r"] == pytest.approx(theirs["mean_average_precision_at_r"], abs=1e-12)


def random_retrieval(sizes: list[int]) -> Retrieval:
    """Classes of the given sizes, each query its own gallery item."""
    classes = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    generator = torch.Generator().manual_seed(len(classes))
    classes = classes[torch.randperm(len(classes), generator=generator)]
    vectors = torch.randn(len(sizes), 6, generator=generator)[classes]
    units = unit_vectors(vectors + torch.randn(len(classes), 6, generator=generator))
    return Retrieval(units, units, classes, classes, torch.arange(len(classes)))


@pytest.mark.parametrize("ks", [[1], [1, 30], [1000]])
def test_tile_sizes_change_no_bit_of_a_score(ks: list[int]) -> None:
    retrieval = random_retrieval([1, 2, 2, 3, 5, 9, 17, 60, 150])
    expected = judge_both(retrieval, None, ks, Tiling())[1].scores
    for tiling in [Tiling(1, 1000), Tiling(16, 16), Tiling(100, 7), Tiling(249, 249)]:
        scores = judge_both(retrieval, None, ks, tiling)[1].scores
        assert scores.keys() == expected.keys()
        for metric, values in scores.items():
            np.testing.assert_array_equal(values, expected[metric])


def test_a_large_class_costs_the_others_nothing() -> None:
    with Products() as products:
        judge_both(random_retrieval([1, 2, 2, 200]), None, [1], Tiling(queries=50, gallery=40, memory=400_000))
    rows = [product.rows for product in products.all]
    # The single member with a list of one, then the four in pairs with lists of two.
    assert [*dict.fromkeys(rows)][:2] == [1, 4]
    # Lists of 200 for fewer queries at once: similarities and rows, twice, within a quarter of the memory.
    assert max(rows) <= 400_000 // 4 // (200 * 32)
    # Members of pairs that are not each other's nearest are compared with their pair once more.
    assert 205 * 205 <= sum(product.size for product in products.all) <= 205 * 205 + 2 * (2 * 2)


def test_restriction_renumbers_a_query_s_own_row() -> None:
    vectors = unit_vectors(torch.eye(5))
    self_indices = torch.tensor([4, -1, 2, 0, 1])
    whole = Retrieval(vectors, vectors, torch.arange(5), torch.arange(5), self_indices)
    part = whole.restrict(torch.tensor([0, 1, 3]), torch.tensor([1, 4]))
    assert part.self_indices.tolist() == [1, -1, -1]
    assert part.gallery_classes.tolist() == [1, 4]
    assert part.query_classes.tolist() == [0, 1, 3]
    assert torch.equal(part.gallery[:], vectors[[1, 4]])
    assert torch.equal(part.queries[torch.tensor([2])], vectors[[3]])
