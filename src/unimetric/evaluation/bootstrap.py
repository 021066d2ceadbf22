"""How sure a number is: percentile bootstrap over queries.

A bootstrap resample draws as many queries as there are, with replacement, and computes the statistic again; the middle
95 % of many such values are the interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
Queries are drawn within their dataset: which datasets there are, and how large, is given and not left to chance.

What it covers is the choice of queries. It says nothing about another gallery or another training seed, and takes
queries for independent: where few classes have many queries each, the truth is wider. A value that is the same for all
queries, such as a Recall@1 of 1, has an interval of no width, however few the queries.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from unimetric.errors import UserError

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""The share of resamples within an interval."""
RESAMPLES = 1000
"""Enough for the ends of a 95 % interval: 25 resamples lie beyond each."""

_GRID = 2.0**-24
"""Values are rounded to multiples of this: sums of them are exact, so that no bit depends on the number of threads."""
_BLOCK = 2**20
"""Drawn queries that are kept at once."""


def resampled_means(values: Floats, resamples: int = RESAMPLES, seed: int | Sequence[int] = 0) -> Floats:
    """The means of bootstrap resamples, several metrics of the same queries at once.

    Args:
        values: Shape [Q, M], finite, at least one row: M metrics of Q queries, each of size 1 or so.
        resamples: B, how many resamples.
        seed: The same seed and Q draw the same queries.

    Returns:
        Shape [B, M]. Row b holds all metrics of the same resample, so differences and other functions of a row are
        bootstrap values, too.
    """
    queries = len(values)
    rounded = np.rint(values / _GRID)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, values.shape[1]))
    step = max(1, _BLOCK // queries)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(queries, size=(rows, queries))
        drawn += queries * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * queries).reshape(rows, queries)
        means[start : start + rows] = times.astype(np.float64) @ rounded
    means *= _GRID / queries
    # An interval of no width has to lie on the value, not next to it by the rounding.
    for column in (values == values[0]).all(axis=0).nonzero()[0]:
        means[:, column] = math.fsum(values[:, column].tolist()) / queries
    return means


def percentile_interval(samples: Floats, level: float = LEVEL) -> tuple[float, float]:
    """The middle of bootstrap values: from the (1 - level) / 2 quantile to the (1 + level) / 2 quantile.

    Args:
        samples: Shape [B], one value per resample.
        level: The share of them within the interval, from 0 to 1.

    >>> percentile_interval(np.arange(101.0), level=0.5)
    (25.0, 75.0)
    """
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    # Where all samples are equal, interpolation may round beyond them.
    return float(np.clip(low, samples.min(), samples.max())), float(np.clip(high, samples.min(), samples.max()))


def harmonic_mean(values: Sequence[float]) -> float:
    """The harmonic mean of values of at least 0: 0 if one of them is 0."""
    if min(values) == 0:
        return 0.0
    return len(values) / math.fsum(1 / value for value in values)


def harmonic_means(values: Floats) -> Floats:
    """The harmonic mean of every row of a matrix [B, K]."""
    return np.array([harmonic_mean(row) for row in values.tolist()])


@dataclass(frozen=True)
class Difference:
    """By how much the first of two runs is better."""

    difference: float
    """First minus second, on the queries as they are."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    probability: float
    """The share of resamples in which the first is better, those in which they are equal counted half: 0.5 where
    nothing tells them apart, near 1 where the first is surely better, near 0 where the second is."""


@dataclass(frozen=True)
class PairedComparison:
    """Two runs, on the same queries."""

    datasets: Mapping[str, Difference]
    """The mean over each dataset's queries."""
    harmonic: Difference
    """The harmonic mean of those means."""
    overall: Difference
    """The mean over all queries."""


def paired_bootstrap(
    first: Mapping[str, Floats], second: Mapping[str, Floats], resamples: int = RESAMPLES, seed: int = 0
) -> PairedComparison:
    """Whether one run is better than another: resample the queries, the same ones for both.

    The paired bootstrap of Koehn, Statistical Significance Tests for Machine Translation Evaluation, EMNLP 2004.

    Args:
        first: For each dataset, one metric of each of its queries, shape [Q], such as from `PerQuery.by_dataset`;
            NaN for a query without a positive, which is left out.
        second: The same of another run, the same queries in the same order.
        resamples: How many resamples.
        seed: The same seed draws the same queries.

    Raises:
        UserError: datasets or numbers of queries differ, a query has a value in one run only, or none has one.

    >>> paired_bootstrap({"birds": np.ones(9)}, {"birds": np.zeros(9)}).overall
    Difference(difference=1.0, low=1.0, high=1.0, probability=1.0)
    """
    pairs = _pairs(first, second)
    columns = {name: resampled_means(pair, resamples, [seed, i]) for i, (name, pair) in enumerate(pairs.items())}
    actual = np.array([pair.mean(axis=0) for pair in pairs.values()])  # (K, 2)
    drawn = np.array(list(columns.values()))  # (K, B, 2)
    sizes = np.array([len(pair) for pair in pairs.values()], dtype=np.float64)
    harmonic = np.stack([harmonic_means(drawn[:, :, run].T) for run in (0, 1)], axis=1)
    return PairedComparison(
        datasets={name: _difference(actual[i], drawn[i]) for i, name in enumerate(pairs)},
        harmonic=_difference(harmonic_means(actual.T), harmonic),
        overall=_difference(sizes @ actual / sizes.sum(), np.tensordot(sizes, drawn, axes=1) / sizes.sum()),
    )


def _pairs(first: Mapping[str, Floats], second: Mapping[str, Floats]) -> dict[str, Floats]:
    """For each dataset, both runs' values side by side, [Q, 2], without those that neither has."""
    if first.keys() != second.keys():
        only = sorted(first.keys() ^ second.keys())
        raise UserError(f"dataset {only[0]!r} was measured in one run only; measure both on the same datasets")
    pairs = {}
    for name, values in first.items():
        if len(values) != len(second[name]):
            raise UserError(
                f"dataset {name!r}: {len(values)} queries in one run, {len(second[name])} in the other; measure both "
                "on the same images"
            )
        pair = np.stack([values, second[name]], axis=1).astype(np.float64)
        missing = np.isnan(pair)
        if (differs := (missing[:, 0] != missing[:, 1]).nonzero()[0]).size:
            raise UserError(
                f"dataset {name!r}: query {differs[0]} could be scored in one run only; measure both with the same "
                "gallery"
            )
        if not missing.all():
            pairs[name] = pair[~missing[:, 0]]
    if not pairs:
        raise UserError("no query was scored in these runs; measure them on queries whose classes are in the gallery")
    return pairs


def _difference(actual: Floats, drawn: Floats) -> Difference:
    """From values [2] and resampled values [B, 2]."""
    differences = drawn[:, 0] - drawn[:, 1]
    low, high = percentile_interval(differences)
    better = (differences > 0).mean() + (differences == 0).mean() / 2
    return Difference(float(actual[0] - actual[1]), low, high, float(better))
