"""Checks of labels against the pictures: wrong labels, two labels for one class, one label for two classes, strangers.

Every image is classified by a model that has seen neither it nor a copy of it: ten folds of linear discriminant
analysis on the embeddings of its dataset, with shrinkage and one temperature that maximises the likelihood of the given
labels. Both this likelihood and the probability of a wrong label assume that one label in twenty is wrong: half of
these are of any class, half of a class that the classifier takes the true one for.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.cluster.vq import kmeans2
from scipy.optimize import minimize_scalar
from scipy.sparse import csr_array
from scipy.special import softmax

from unimetric.curation.whitening import TILE, shrunk_covariance

FOLDS = 10

_NOISE = 0.05
"""Assumed share of wrong labels."""

_RIVALS = 16
"""Number of the most probable classes that are kept for an image."""

_SCORES = 2**24
"""Maximum number of scores kept to fit the temperature."""

_TILE_SCORES = 2**22
"""Maximum number of scores computed at once."""


@dataclass(frozen=True)
class Judged:
    """Out-of-fold probabilities of one dataset's images.

    Attributes:
        rows: Rows of the images, [N].
        classes: The labels, [C].
        given: Class number of each image's label, [N].
        own: Probability of that class, [N]; NaN for images of classes with only one image, which are not judged.
        rivals: Class numbers of the K most probable classes, most probable first, [N, K].
        likely: Their probabilities, [N, K].
    """

    rows: NDArray[np.int64]
    classes: tuple[str, ...]
    given: NDArray[np.int64]
    own: NDArray[np.float64]
    rivals: NDArray[np.int64]
    likely: NDArray[np.float64]

    @property
    def places(self) -> NDArray[np.int64]:
        """Places of the images that were judged, ascending."""
        return np.flatnonzero(~np.isnan(self.own))

    @property
    def agreement(self) -> float:
        """Share of the judged images whose most probable class is that of their label."""
        return float((self.rivals[self.places, 0] == self.given[self.places]).mean())


def judged(
    vectors: NDArray[np.float32],
    labels: list[str],
    rows: NDArray[np.int64],
    copies: NDArray[np.int64],
    seed: int = 0,
) -> Judged | None:
    """Estimate the class of every image of a dataset from images that are not copies of it.

    Args:
        vectors: The dataset's unit vectors, [N, E].
        labels: Their labels.
        rows: Their rows in ``copies``.
        copies: Number of the group of copies of every row, [N]; each group stays in one fold.
        seed: Seed of the folds.

    Returns:
        The estimates, or None if there are fewer than two classes with at least two images.
    """
    classes, given = numbered_classes(labels)
    folds = _folds(given, rows, copies, seed)
    parts = []
    for fold in np.unique(folds):
        outside = np.flatnonzero(folds != fold)
        known = np.unique(given[outside])
        inside = np.flatnonzero((folds == fold) & np.isin(given, known))
        if len(inside) and len(known) > 1:
            parts.append((inside, _Discriminant.fit(vectors, given, outside, known)))
    if not parts:
        return None
    width = min(_RIVALS, len(classes))
    heat = _temperature(vectors, given, parts)
    own = np.full(len(rows), np.nan)
    rivals = np.full((len(rows), width), -1, np.int64)
    likely = np.zeros((len(rows), width))
    for inside, discriminant in parts:
        step = max(1, _TILE_SCORES // len(classes))
        for places in (inside[start : start + step] for start in range(0, len(inside), step)):
            probabilities = softmax(heat * discriminant.scores(vectors[places]), axis=1)
            own[places] = probabilities[np.arange(len(places)), np.searchsorted(discriminant.known, given[places])]
            best = _highest(probabilities, width)
            rivals[places, : best.shape[1]] = discriminant.known[best]
            likely[places, : best.shape[1]] = np.take_along_axis(probabilities, best, axis=1)
    return Judged(rows, classes, given, own, rivals, likely)


def _highest(values: NDArray[np.floating[Any]], count: int) -> NDArray[np.int64]:
    """Return the columns of the highest values of every row, highest first, [N, min(count, columns)]."""
    if count < values.shape[1]:
        columns = np.sort(np.argpartition(values, -count, axis=1)[:, -count:], axis=1)
        values = np.take_along_axis(values, columns, axis=1)
    else:
        columns = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    return np.take_along_axis(columns, np.argsort(-values, axis=1, kind="stable"), axis=1)


@dataclass(frozen=True)
class _Discriminant:
    """Linear discriminant analysis with equal priors.

    Attributes:
        known: Its C' classes, ascending.
        weights: [E, C'].
        offsets: [C'].
    """

    known: NDArray[np.int64]
    weights: NDArray[np.float32]
    offsets: NDArray[np.float32]

    @classmethod
    def fit(
        cls, vectors: NDArray[np.float32], given: NDArray[np.int64], places: NDArray[np.int64], known: NDArray[np.int64]
    ) -> "_Discriminant":
        """Fit to the vectors at some places."""
        number = np.searchsorted(known, given[places])
        counts = np.bincount(number)
        ones = np.ones(len(places), np.float32)
        members = csr_array((ones, (number, places)), shape=(len(known), len(vectors)))
        centres = np.asarray(members @ vectors / counts[:, None], np.float32)
        starts = range(0, len(places), TILE)
        covariance = shrunk_covariance(vectors[places[s : s + TILE]] - centres[number[s : s + TILE]] for s in starts)
        weights = np.linalg.solve(covariance, centres.T)
        offsets = -0.5 * (centres.T * weights).sum(axis=0)
        return cls(known, weights.astype(np.float32), offsets.astype(np.float32))

    def scores(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return scores [N, C'] of vectors."""
        found: NDArray[np.float32] = vectors @ self.weights + self.offsets
        return found


def _temperature(
    vectors: NDArray[np.float32], given: NDArray[np.int64], parts: list[tuple[NDArray[np.int64], _Discriminant]]
) -> float:
    """Return the factor on the scores that maximises the likelihood of the given labels, some of which are wrong."""
    classes = int(given.max()) + 1
    most = max(1, min(4096, _SCORES // classes) // len(parts))
    samples = []
    for inside, discriminant in parts:
        chosen = inside[:: -(-len(inside) // most)]
        samples.append((discriminant.scores(vectors[chosen]), np.searchsorted(discriminant.known, given[chosen])))

    def loss(logarithm: float) -> float:
        own = np.concatenate(
            [
                softmax(np.exp(logarithm) * scores.astype(np.float64), axis=1)[np.arange(len(own)), own]
                for scores, own in samples
            ]
        )
        return -float(np.log((1 - _NOISE) * own + _NOISE * (1 - own) / (classes - 1)).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-8, 3), method="bounded").x))


def _folds(
    given: NDArray[np.int64], rows: NDArray[np.int64], copies: NDArray[np.int64], seed: int
) -> NDArray[np.int64]:
    """Return the fold of every image: classes spread evenly, copies together."""
    folds = np.empty(len(rows), dtype=np.int64)
    generator = np.random.default_rng(seed)
    for members in places_by_class(given):
        shuffled = generator.permutation(members)
        folds[shuffled] = (np.arange(len(members)) + generator.integers(FOLDS)) % FOLDS
    first: dict[int, int] = {}
    for place, group in enumerate(copies[rows].tolist()):
        folds[place] = first.setdefault(group, int(folds[place]))
    return folds


def numbered_classes(labels: Sequence[str]) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    """Return the sorted classes [C] and the class number of every label, [N]."""
    classes = tuple(sorted(set(labels)))
    number = {label: index for index, label in enumerate(classes)}
    return classes, np.array([number[label] for label in labels], dtype=np.int64)


def places_by_class(given: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """Return the places of every class, ascending, for class numbers [N] from 0 to C - 1 that all occur."""
    order = np.argsort(given, kind="stable")
    return np.split(order, np.cumsum(np.bincount(given))[:-1])


def wrong_labels(judgement: Judged, least: float = 0.5) -> list[tuple[int, str, float]]:
    """Return the images whose label is probably wrong: (place, better label, probability that it is wrong).

    Args:
        judgement: Estimates of one dataset.
        least: Minimum probability.
    """
    places, classes = judgement.places, len(judgement.classes)
    given, own = judgement.given[places], judgement.own[places]
    rivals = judgement.rivals[places]
    likely = np.where((rivals == given[:, None]) | (rivals < 0), 0.0, judgement.likely[places])
    taken = _taken_for(given, rivals, likely, classes)
    confused = (
        likely * taken[np.maximum(rivals, 0).ravel(), np.repeat(given, rivals.shape[1])].reshape(likely.shape)
    ).sum(axis=1)
    wrong = _NOISE * (0.5 * (1 - own) / (classes - 1) + 0.5 * confused)
    probability = wrong / (wrong + (1 - _NOISE) * own)
    better = np.take_along_axis(rivals, likely.argmax(axis=1)[:, None], axis=1)[:, 0]
    found = np.flatnonzero((probability >= least) & (likely.max(axis=1) > own))
    entries = [(int(places[i]), judgement.classes[better[i]], float(probability[i])) for i in found]
    return sorted(entries, key=lambda entry: -entry[2])


def _taken_for(
    given: NDArray[np.int64], rivals: NDArray[np.int64], likely: NDArray[np.float64], classes: int
) -> csr_array:
    """Return the shares [C, C] in which the classifier takes images of a class for each other class."""
    shown = likely > 0
    own = np.repeat(given, shown.sum(axis=1))
    sums = csr_array((likely[shown], (own, rivals[shown])), shape=(classes, classes))
    totals = np.maximum(np.asarray(sums.sum(axis=1)), 1e-9)
    return csr_array(sums.multiply(1 / totals[:, None]))


def one_class(judgement: Judged, least: float = 0.6) -> list[tuple[str, str, float]]:
    """Return pairs of classes that cannot be distinguished: (label, label, confidence).

    Nearly all images of both classes are estimated as one of the two, but the choice between them is no better than
    chance.
    """
    places = judgement.places
    guesses = zip(judgement.given[places].tolist(), judgement.rivals[places, 0].tolist(), strict=True)
    confusion = Counter(guesses)
    sizes = np.bincount(judgement.given[places], minlength=len(judgement.classes))
    pairs = []
    for one, other in sorted({(min(pair), max(pair)) for pair in confusion if pair[0] != pair[1]}):
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
    classes, given = numbered_classes(labels)
    for label, places in zip(classes, places_by_class(given), strict=True):
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
    # In float64: of nearly equal vectors, rounding would leave one cluster empty.
    centred = vectors - vectors.mean(axis=0, dtype=np.float64)
    side: NDArray[np.bool_] = centred @ np.linalg.svd(centred, full_matrices=False)[2][0] > 0
    if side.all() or not side.any():
        return side
    centres = np.stack([centred[~side].mean(axis=0), centred[side].mean(axis=0)])
    _, nearest = kmeans2(centred, centres, iter=20, minit="matrix")
    return np.asarray(nearest == 1)


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
