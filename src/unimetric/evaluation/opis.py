"""Operating-point inconsistency: how differently one threshold treats the classes, and offsets that even it out.

A match is a pair of a query and a gallery item whose similarity reaches a threshold t. For a class,

- its sensitivity at t is the share of pairs of a query and an item of the class that match;
- its specificity is the share of pairs of one of its items and a query of another class that do not match;
- its utility U(t) is the harmonic mean of both, from 0 to 1.

OPIS is the variance of U(t) over the classes, averaged over thresholds from the one with a false-accept rate of 10 % of
all pairs of different classes to the one with 1 %: 0 if a threshold means the same for every class (Zhang et al.,
Threshold-Consistent Margin Loss for Open-World Deep Metric Learning, ICLR 2024, arXiv 2307.04047). In the paper, a
pair of different classes counts for both of them; here for the class of the gallery item, which the query would be
taken for. Where every image is query and gallery item, that is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from unimetric.evaluation.metrics import Retrieval

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

FALSE_ACCEPT_RATES = (0.1, 0.01)
"""The false-accept rates at the lowest and at the highest threshold."""
THRESHOLDS = 101
"""Thresholds between them, equally spaced."""
PAIRS = 2_000_000
"""Pairs of each kind in all, at most, if there are no more than 40,000 classes."""
_PER_CLASS = (50, 2000)
"""The fewest and the most pairs of each kind that represent a class."""

_HIGH, _BETWEEN, _PRIOR = 0.99, 0.5, 1.0


@dataclass(frozen=True)
class Inconsistency:
    """OPIS of one gallery."""

    opis: float | None
    """From 0 to 0.25, 0 is best. None with fewer than two classes that have pairs of both kinds."""
    utility: float | None
    """The mean utility over the same classes and thresholds, from 0 to 1, 1 is best."""
    classes: int
    """Classes with pairs of both kinds."""
    thresholds: tuple[float, float] | None
    """The lowest and the highest threshold."""


@dataclass(frozen=True, eq=False)
class ClassPairs:
    """Similarities of the pairs of C classes, all of them or a sample."""

    classes: Integers
    """Their numbers, shape [C], ascending."""
    positives: tuple[Floats, ...]
    """Of pairs of a query and an item of the class."""
    negatives: tuple[Floats, ...]
    """Of pairs of an item of the class and a query of another one."""
    negative_pairs: Integers
    """The number of such pairs that there are, shape [C]."""

    def shifted(self, offsets: Floats) -> "ClassPairs":
        """Return the pairs with an offset of each class, shape [C], subtracted."""
        sides = zip(self.positives, self.negatives, offsets, strict=True)
        moved = [(positives - offset, negatives - offset) for positives, negatives, offset in sides]
        return ClassPairs(self.classes, tuple(p for p, _ in moved), tuple(n for _, n in moved), self.negative_pairs)


def class_pairs(retrieval: Retrieval, seed: int = 0) -> ClassPairs:
    """Return the similarities of the pairs of every class in the gallery that has a query.

    Of more than 2,000 pairs of a kind (fewer with more than 1,000 classes), as many are drawn with replacement; the
    same seed draws the same ones. A query is not paired with itself.
    """
    generator = np.random.default_rng(seed)
    queries, gallery = _Groups(retrieval.query_classes.numpy()), _Groups(retrieval.gallery_classes.numpy())
    own = retrieval.self_indices.numpy()
    numbers = np.intersect1d(gallery.classes, queries.classes)
    limit = int(np.clip(PAIRS // max(1, len(numbers)), *_PER_CLASS))
    pairs, sizes, totals = [np.empty((0, 2), np.int64)], [], []
    for number in numbers.tolist():
        items, inside = gallery.of(number), queries.of(number)
        outside = len(own) - len(inside)
        for count, rows in ((len(inside), inside.take), (outside, partial(queries.other_than, number))):
            asked, found = _product(count, items, limit, generator)
            chosen = np.stack([rows(asked), found], axis=1)
            pairs.append(chosen[own[chosen[:, 0]] != chosen[:, 1]])
            sizes.append(len(pairs[-1]))
        totals.append(len(items) * outside)
    similarities = retrieval.similarities(torch.from_numpy(np.concatenate(pairs))).numpy()
    parts = np.split(similarities, np.cumsum(sizes)[:-1])
    return ClassPairs(numbers, tuple(parts[0::2]), tuple(parts[1::2]), np.array(totals, dtype=np.int64))


def inconsistency(pairs: ClassPairs) -> Inconsistency:
    """Return OPIS and the mean utility of the classes with pairs of both kinds."""
    rows = [row for row, both in enumerate(zip(pairs.positives, pairs.negatives, strict=True)) if all(map(len, both))]
    if len(rows) < 2:
        return Inconsistency(None, None, len(rows), None)
    low, high = _threshold_range(pairs, rows)
    thresholds = np.linspace(low, high, THRESHOLDS)
    utilities = np.stack([_utility(pairs.positives[row], pairs.negatives[row], thresholds) for row in rows])
    return Inconsistency(float(utilities.var(axis=0).mean()), float(utilities.mean()), len(rows), (low, high))


def class_offsets(pairs: ClassPairs, groups: Sequence[int], members: Sequence[int]) -> Floats:
    """Return an offset for each of C classes; similarities less their class's offset mean more nearly the same.

    The offset is half way between the similarity that 1 % of the pairs with other classes reach, and the mean of the
    pairs within the class. With few ``members`` [C], the distance between the two is drawn towards the mean of the
    class's group, [C], such as its dataset. The mean of all offsets is 0, so that thresholds keep their scale.
    """
    if not len(pairs.classes):
        return np.zeros(0)
    high = np.array([np.quantile(values, _HIGH) if len(values) else np.nan for values in pairs.negatives])
    high = np.where(np.isnan(high), np.nanmean(high) if not np.isnan(high).all() else 0.0, high)
    gaps = np.array([values.mean() if len(values) else np.nan for values in pairs.positives]) - high
    group = np.asarray(groups)
    usual = np.zeros(len(gaps))
    for number in np.unique(group):
        known = gaps[(group == number) & ~np.isnan(gaps)]
        usual[group == number] = known.mean() if len(known) else 0.0
    weight = np.asarray(members) / (np.asarray(members) + _PRIOR)
    drawn = np.where(np.isnan(gaps), usual, weight * np.nan_to_num(gaps) + (1 - weight) * usual)
    offsets: Floats = high + _BETWEEN * drawn
    offsets -= offsets.mean()
    return offsets


class _Groups:
    """Rows by class."""

    def __init__(self, classes: Integers) -> None:
        self.classes = classes
        self._order = np.argsort(classes, kind="stable")
        self._sorted = classes[self._order]

    def of(self, number: int) -> Integers:
        return self._order[slice(*np.searchsorted(self._sorted, [number, number + 1]))]

    def other_than(self, number: int, places: Integers) -> Integers:
        """Return rows of all classes but one, by their places in the sorted list of these."""
        start, stop = np.searchsorted(self._sorted, [number, number + 1])
        rows: Integers = self._order[places + (stop - start) * (places >= start)]
        return rows


def _product(queries: int, items: Integers, limit: int, generator: np.random.Generator) -> tuple[Integers, Integers]:
    """Return all pairs of the numbers below ``queries`` with some rows, or ``limit`` of them: both sides, each [P]."""
    total = queries * len(items)
    numbers = np.arange(total) if total <= limit else generator.integers(total, size=limit)
    return numbers // max(1, len(items)), items[numbers % max(1, len(items))]


def _threshold_range(pairs: ClassPairs, rows: Sequence[int]) -> tuple[float, float]:
    """Return the similarities that 10 % and 1 % of the pairs of different classes reach."""
    values = np.concatenate([pairs.negatives[row] for row in rows])
    # A sampled pair represents as many as there are for each of its class.
    weights = np.concatenate(
        [np.full(len(pairs.negatives[row]), pairs.negative_pairs[row] / len(pairs.negatives[row])) for row in rows]
    )
    order = np.argsort(-values, kind="stable")
    values, above = values[order], np.cumsum(weights[order])
    low, high = (
        values[max(0, np.searchsorted(above, rate * above[-1], side="right") - 1)] for rate in FALSE_ACCEPT_RATES
    )
    return float(low), float(high)


def _utility(positives: Floats, negatives: Floats, thresholds: Floats) -> Floats:
    sensitivity = 1 - np.searchsorted(np.sort(positives), thresholds) / len(positives)
    specificity = np.searchsorted(np.sort(negatives), thresholds) / len(negatives)
    both = sensitivity + specificity
    return np.divide(2 * sensitivity * specificity, both, out=np.zeros_like(both), where=both > 0)
