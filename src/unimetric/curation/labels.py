"""Checks of labels against the pictures: wrong labels, two labels for one class, one label for two classes, strangers.

Every image is classified by a model that has seen neither it nor a copy of it: five folds of linear discriminant
analysis with shrinkage (Ledoit and Wolf, 2004) on the embeddings of its dataset, with one temperature that maximises
the likelihood of the given labels. The thresholds are those of confident learning (Northcutt et al., *Confident
Learning: Estimating Uncertainty in Dataset Labels*, JAIR 2021): an image counts as a member of a class if its
probability reaches the mean probability of the images with that label.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.covariance import ledoit_wolf

from unimetric.curation.copies import Groups

FOLDS = 5


@dataclass(frozen=True)
class Judged:
    """Out-of-fold probabilities of one dataset's images.

    Attributes:
        rows: Rows of the images, [N].
        classes: The labels, [C].
        given: Class number of each image's label, [N].
        probabilities: [N, C]; NaN in rows of classes with only one image.
    """

    rows: NDArray[np.int64]
    classes: tuple[str, ...]
    given: NDArray[np.int64]
    probabilities: NDArray[np.float64]


def judged(
    vectors: NDArray[np.float32], labels: list[str], rows: NDArray[np.int64], copies: Groups, seed: int = 0
) -> Judged | None:
    """Estimate the class of every image of a dataset from images that are not copies of it.

    Args:
        vectors: The dataset's unit vectors, [N, E].
        labels: Their labels.
        rows: Their rows in ``copies``.
        copies: Groups of copies, each of which stays in one fold.
        seed: Seed of the folds.

    Returns:
        The estimates, or None if there are fewer than two classes with at least two images.
    """
    classes = tuple(sorted(set(labels)))
    number = {label: index for index, label in enumerate(classes)}
    given = np.array([number[label] for label in labels], dtype=np.int64)
    folds = _folds(given, rows, copies, seed)
    scores = np.full((len(rows), len(classes)), np.nan)
    for fold in range(FOLDS):
        inside, outside = np.flatnonzero(folds == fold), np.flatnonzero(folds != fold)
        known = np.unique(given[outside])
        inside = inside[np.isin(given[inside], known)]
        if not len(inside) or len(known) < 2:
            continue
        scores[inside] = -np.inf
        scores[np.ix_(inside, known)] = _discriminant(vectors[outside], given[outside], known, vectors[inside])
    places = np.flatnonzero(~np.isnan(scores[:, 0]))
    if not len(places):
        return None
    probabilities = np.full_like(scores, np.nan)
    probabilities[places] = softmax(_temperature(scores[places], given[places]) * scores[places], axis=1)
    return Judged(rows, classes, given, probabilities)


def _discriminant(
    vectors: NDArray[np.float32],
    given: NDArray[np.int64],
    known: NDArray[np.int64],
    judged_vectors: NDArray[np.float32],
) -> NDArray[np.float64]:
    """Return linear scores [N, C'] of vectors for the known classes, with equal priors."""
    centres = np.stack([vectors[given == label].mean(axis=0) for label in known]).astype(np.float64)
    residuals = vectors - centres[np.searchsorted(known, given)]
    covariance = ledoit_wolf(residuals, assume_centered=True)[0] + 1e-9 * np.eye(vectors.shape[1])
    weights = np.linalg.solve(covariance, centres.T)  # (E, C')
    scores: NDArray[np.float64] = judged_vectors @ weights - 0.5 * (centres.T * weights).sum(axis=0)
    return scores


def _temperature(scores: NDArray[np.float64], given: NDArray[np.int64]) -> float:
    """Return the factor on the scores that maximises the likelihood of the given labels."""

    def loss(logarithm: float) -> float:
        likely = log_softmax(np.exp(logarithm) * scores, axis=1)[np.arange(len(given)), given]
        return -float(np.mean(np.maximum(likely, -50.0)))

    return float(np.exp(minimize_scalar(loss, bounds=(-8, 3), method="bounded").x))


def _folds(given: NDArray[np.int64], rows: NDArray[np.int64], copies: Groups, seed: int) -> NDArray[np.int64]:
    """Return the fold of every image: classes spread evenly, copies together."""
    folds = np.empty(len(rows), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for label in np.unique(given):
        members = generator.permutation(np.flatnonzero(given == label))
        folds[members] = (np.arange(len(members)) + generator.integers(FOLDS)) % FOLDS
    first: dict[int, int] = {}
    for place, row in enumerate(rows.tolist()):
        folds[place] = first.setdefault(copies.find(row), int(folds[place]))
    return folds


def wrong_labels(judgement: Judged, least: float = 0.5) -> list[tuple[int, str, float]]:
    """Return the images that confidently belong to another class: (place, better label, confidence).

    Args:
        judgement: Estimates of one dataset.
        least: Minimum difference between the probabilities of the better and the given label.
    """
    probabilities, given = judgement.probabilities, judgement.given
    places = np.flatnonzero(~np.isnan(probabilities[:, 0]))
    own = probabilities[np.arange(len(given)), given]
    thresholds = np.array([_mean(own[places][given[places] == label]) for label in range(len(judgement.classes))])
    found = []
    for place in places.tolist():
        confident = np.where(probabilities[place] >= thresholds, probabilities[place], -1.0)
        best = int(confident.argmax())
        confidence = float(probabilities[place, best] - own[place])
        if best != given[place] and confident[best] >= 0 and confidence >= least:
            found.append((place, judgement.classes[best], confidence))
    return sorted(found, key=lambda entry: -entry[2])


def _mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else np.inf


def one_class(judgement: Judged, least: float = 0.6) -> list[tuple[str, str, float]]:
    """Return pairs of classes that cannot be told apart: (label, label, confidence).

    Nearly all images of both classes are estimated as one of the two, but the choice between them is no better than
    chance.
    """
    predicted = np.where(np.isnan(judgement.probabilities[:, 0]), -1, judgement.probabilities.argmax(axis=1))
    count = len(judgement.classes)
    confusion = np.zeros((count, count))
    for own, guess in zip(judgement.given, predicted, strict=True):
        if guess >= 0:
            confusion[own, guess] += 1
    sizes = confusion.sum(axis=1)
    pairs = []
    for one in range(count):
        for other in range(one + 1, count):
            if min(sizes[one], sizes[other]) < 4:
                continue
            mixed = min(confusion[one, other] / sizes[one], confusion[other, one] / sizes[other])
            kept = min((confusion[row, one] + confusion[row, other]) / sizes[row] for row in (one, other))
            confidence = float(min(1.0, 2 * mixed) * kept)
            if confidence >= least:
                pairs.append((judgement.classes[one], judgement.classes[other], confidence))
    return sorted(pairs, key=lambda pair: -pair[2])


def two_classes(
    vectors: NDArray[np.float32], labels: list[str], neighbours: NDArray[np.int64]
) -> list[tuple[str, list[int], float]]:
    """Return classes that consist of two parts, neither of which has neighbours in the other.

    Args:
        vectors: A dataset's unit vectors, [N, E].
        labels: Their labels.
        neighbours: Places of the nearest images of the whole dataset, [N, k].

    Returns:
        For each such class its label, the places of the smaller part and a confidence.
    """
    found = []
    for label in sorted(set(labels)):
        places = np.array([place for place, own in enumerate(labels) if own == label])
        if len(places) < 8:
            continue
        side = _halves(vectors[places])
        parts = [places[side == value] for value in (False, True)]
        if min(len(part) for part in parts) < 4:
            continue
        within = min(float(np.isin(neighbours[part], part).mean()) for part in parts)
        across = max(float(np.isin(neighbours[parts[i]], parts[1 - i]).mean()) for i in (0, 1))
        if within >= 0.6 and across <= 0.02:
            found.append((label, min(parts, key=len).tolist(), within))
    return sorted(found, key=lambda entry: -entry[2])


def _halves(vectors: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Split into two clusters by k-means, initialised along the direction of largest spread."""
    centred = vectors - vectors.mean(axis=0)
    direction = np.linalg.svd(centred, full_matrices=False)[2][0]
    side: NDArray[np.bool_] = centred @ direction > 0
    for _ in range(20):
        if side.all() or not side.any():
            break
        centres = np.stack([vectors[~side].mean(axis=0), vectors[side].mean(axis=0)])
        distances = ((vectors[:, None] - centres[None]) ** 2).sum(-1)
        moved = distances[:, 1] < distances[:, 0]
        if (moved == side).all():
            break
        side = moved
    return side


def strangers(nearest: NDArray[np.float64], own: NDArray[np.float64], least: float = 5.0) -> list[tuple[int, float]]:
    """Return images that are unlike all others of their class and of their dataset: (place, confidence).

    Args:
        nearest: Similarity of each image to the most similar of its dataset, [N].
        own: Similarity to the most similar of its class, [N]; -inf where the class has no other image.
        least: Minimum number of robust standard deviations by which both lie below the median.
    """
    depth = np.minimum(_depth(nearest), _depth(np.where(np.isinf(own), nearest, own)))
    places = np.flatnonzero(depth >= least)
    return sorted(((int(place), float(1 - least / (2 * depth[place]))) for place in places), key=lambda pair: -pair[1])


def _depth(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the depth below the median, in robust standard deviations."""
    median = float(np.median(values))
    spread = 1.4826 * float(np.median(np.abs(values - median)))
    return (median - values) / max(spread, 1e-3)
