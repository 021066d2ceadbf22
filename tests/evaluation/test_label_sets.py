"""Images with several labels, against an oracle that sorts and counts in plain Python."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unimetric.errors import UserError
from unimetric.evaluation import evaluate

KS = (1, 2, 5)
METRICS = (*(f"recall@{k}" for k in KS), "map@r", "r-precision", "map")


def pool(
    seed: int, queries: int = 40, gallery: int = 60, labels: int = 5
) -> tuple[NDArray[np.float32], list[frozenset[str]], list[str], NDArray[np.float32], list[frozenset[str]], list[str]]:
    """Vectors of few values, so that there are ties; one to three labels an image; two datasets with the same ones."""
    random = np.random.default_rng(seed)

    def side(count: int) -> tuple[NDArray[np.float32], list[frozenset[str]], list[str]]:
        vectors = random.integers(-2, 3, (count, 4)).astype(np.float32)
        sets = [frozenset(f"l{n}" for n in random.choice(labels, random.integers(1, 4))) for _ in range(count)]
        return vectors, sets, [str(name) for name in random.choice(["a", "b"], count)]

    return (*side(queries), *side(gallery))


def oracle(
    similarity: NDArray[np.float64], relevant: NDArray[np.bool_], allowed: NDArray[np.bool_]
) -> dict[str, list[float]]:
    """Every metric of every query: lower rows first among ties, the query itself and other datasets left out."""
    scores: dict[str, list[float]] = {name: [] for name in METRICS}
    for row in range(len(similarity)):
        order = [
            n for n in sorted(range(similarity.shape[1]), key=lambda n: (-similarity[row, n], n)) if allowed[row, n]
        ]
        hits = [bool(relevant[row, number]) for number in order]
        positives = sum(hits)
        if not positives:
            for values in scores.values():
                values.append(np.nan)
            continue
        for k in KS:
            scores[f"recall@{k}"].append(float(any(hits[:k])))
        precisions = [sum(hits[: rank + 1]) / (rank + 1) for rank, hit in enumerate(hits) if hit]
        scores["map"].append(sum(precisions) / positives)
        scores["map@r"].append(
            sum(sum(hits[: rank + 1]) / (rank + 1) for rank in range(min(positives, len(hits))) if hits[rank])
            / positives
        )
        scores["r-precision"].append(sum(hits[:positives]) / positives)
    return scores


@pytest.mark.parametrize("with_gallery", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_against_the_oracle(seed: int, with_gallery: bool) -> None:
    vectors, labels, datasets, other_vectors, other_labels, other_datasets = pool(seed)
    gallery: Any = (other_vectors, other_labels, other_datasets)
    if not with_gallery:
        other_vectors, other_labels, other_datasets, gallery = vectors, labels, datasets, None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = evaluate(
            vectors,
            labels,
            datasets,
            gallery,
            KS,
            distance="euclidean",
            mean_average_precision=True,
            query_tile=7,
            gallery_tile=11,
            resamples=9,
        )
    # Of small whole numbers, distances are exact, so that ties are ties.
    similarity = np.array([[-np.sqrt(np.square(a - b).sum()) for b in other_vectors] for a in vectors])
    same = np.array([[a == b for b in other_datasets] for a in datasets])
    relevant = same & np.array([[bool(a & b) for b in other_labels] for a in labels])
    allowed = np.ones_like(same) if with_gallery else ~np.eye(len(vectors), dtype=bool)
    for results, mask in ((report.per_query.separate, allowed & same), (report.per_query.unified, allowed)):
        for name, expected in oracle(similarity, relevant, mask).items():
            np.testing.assert_allclose(results.scores[name], expected, atol=1e-12, err_msg=name)
        best = np.where(relevant & mask, similarity, -np.inf).max(axis=1)
        np.testing.assert_allclose(results.best_positive, np.where(np.isinf(best), np.nan, best), atol=1e-6)
    lonely = (relevant & allowed).sum(axis=1) == 0
    assert report.counts.queries_without_positive == lonely.sum()
    # What compares classes with each other is not defined here.
    assert report.to_dict()["spread"]["unified"]["alignment"] is None
    assert report.unified_thresholds.consistency is None


def test_very_many_labels() -> None:
    """Memory and time grow with the labels that images have, not with the classes times all labels."""
    count = 20_000
    vectors = np.zeros((count, 1), dtype=np.float32) + np.arange(count, dtype=np.float32)[:, None]
    # Each image shares a label with the one before and the one behind it.
    labels = [frozenset([number, number + 1]) for number in range(count)]
    queries = slice(0, count, 100)
    report = evaluate(
        vectors[queries] + 0.25,
        labels[queries],
        ["a"] * 200,
        (vectors, labels, ["a"] * count),
        (1, 2),
        distance="euclidean",
        resamples=2,
    )
    # The first has two positives, itself and the next; all others have three.
    assert report.unified == {"recall@1": 1, "recall@2": 1, "map@r": 1, "r-precision": 1}


def test_sets_of_one_label_are_plain_labels() -> None:
    vectors, _, datasets, *_ = pool(9)
    labels = [f"l{n % 6}" for n in range(len(vectors))]
    plain = evaluate(vectors, labels, datasets, None, KS, mean_average_precision=True)
    # One frozenset makes all of them sets.
    sets = evaluate(vectors, [frozenset(labels[:1]), *labels[1:]], datasets, None, KS, mean_average_precision=True)
    assert sets.separate == plain.separate
    assert sets.unified == plain.unified
    assert sets.counts == plain.counts
    worst = sets.to_dict()["worst_classes"]["a"]
    assert {entry["label"] for entry in worst} <= set(labels)


def test_a_positive_far_behind_is_found() -> None:
    """The best positive of a query whose nearest neighbours are all wrong, with more labels than fit in one number."""
    angles = np.linspace(0, np.pi / 2, 200)
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    labels = [frozenset({f"own{row}", f"pair{row % 100}"}) for row in range(200)]
    report = evaluate(vectors, labels, ["a"] * 200)
    assert report.counts.queries_without_positive == 0
    assert report.per_query.unified.best_positive[0] == pytest.approx(np.cos(angles[100]), abs=1e-6)
    assert str(report.per_query.classes[0][1]) == "own0|pair0"


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(UserError, match="labels: row 1 is an empty set"):
        evaluate(np.eye(2), [frozenset({"a"}), frozenset()], ["d", "d"])
