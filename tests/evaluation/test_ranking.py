from __future__ import annotations

import pytest
import torch
from pytorch_metric_learning.distances import CosineSimilarity
from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator
from pytorch_metric_learning.utils.inference import CustomKNN
from sklearn.metrics import average_precision_score

from unimetric.evaluation import evaluate
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.metrics import Retrieval, average_precisions
from unimetric.evaluation.neighbours import Tiling

unit_vectors = make_distance().prepare


def clusters(seed: int, images: int = 80, classes: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=generator)
    centres = torch.randn(classes, 9, generator=generator)
    return centres[labels] + 1.5 * torch.randn(images, 9, generator=generator), labels


def test_agrees_with_scikit_learn_query_by_query() -> None:
    vectors, labels = clusters(0)
    units = unit_vectors(vectors)
    own = torch.arange(len(labels))
    found = average_precisions(Retrieval(units, units, labels, labels, own), Tiling())
    cosines = units.double() @ units.double().T
    for query in range(len(labels)):
        others = own != query
        expected = average_precision_score(labels[others] == labels[query], cosines[query, others])
        assert found[query].item() == pytest.approx(expected, abs=1e-12)


def test_agrees_with_pytorch_metric_learning() -> None:
    vectors, labels = clusters(1)
    calculator = AccuracyCalculator(
        include=("mean_average_precision",), k=len(labels) - 1, knn_func=CustomKNN(CosineSimilarity())
    )
    theirs = calculator.get_accuracy(vectors, labels)["mean_average_precision"]
    ours = evaluate(vectors, labels, [0] * len(labels), mean_average_precision=True)
    assert ours.unified["map"] == pytest.approx(theirs, abs=1e-12)
    assert ours.harmonic["map"] == pytest.approx(theirs, abs=1e-12)
    assert "map" not in evaluate(vectors, labels, [0] * len(labels)).unified


def test_tile_sizes_change_no_bit() -> None:
    vectors, labels = clusters(2)
    units = unit_vectors(vectors[torch.arange(len(vectors)) // 3])
    retrieval = Retrieval(units, units, labels, labels, torch.arange(len(labels)))
    expected = average_precisions(retrieval, Tiling())
    for tiling in [Tiling(1, 1), Tiling(7, 13), Tiling(1000, 79), Tiling(3, 1000)]:
        assert torch.equal(average_precisions(retrieval, tiling), expected)


def test_of_many_equals_the_lower_row_comes_first() -> None:
    gallery = torch.ones(5000, 3)
    for row in (0, 2499, 4999):
        labels = ["wrong"] * 5000
        labels[row] = "right"
        report = evaluate(
            torch.ones(1, 3), ["right"], ["one"], (gallery, labels, ["one"] * 5000), mean_average_precision=True
        )
        assert report.unified["map"] == pytest.approx(1 / (row + 1))


def test_a_positive_that_comes_last_counts() -> None:
    """MAP@R of such a query is 0, its average precision 1/3."""
    vectors = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.8, 0.2], [0.0, 1.0]])
    report = evaluate(
        vectors[:1], ["a"], ["one"], (vectors[1:], ["b", "c", "a"], ["one"] * 3), mean_average_precision=True
    )
    assert report.unified["map@r"] == 0
    assert report.unified["map"] == pytest.approx(1 / 3)
