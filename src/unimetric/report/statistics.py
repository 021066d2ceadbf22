"""What a report needs beyond the metrics themselves: intervals, comparisons, and which domain is taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
"""How often the bootstrap draws."""

Floats = NDArray[np.float64]


def bootstrap_means(values: Floats, resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Means of resamples with replacement (Efron, *Bootstrap Methods*, 1979).

    Args:
        values: [N] or [N, C]; the columns are drawn together, which keeps runs paired.
        resamples: R.
        seed: Of the draws.

    Returns:
        [R], or [R, C].
    """
    # Recalls take few values; to draw how often each occurs is the same distribution as to draw queries.
    distinct, counts = np.unique(values, axis=0, return_counts=True)
    drawn = np.random.default_rng(seed).multinomial(len(values), counts / len(values), size=resamples)  # (R, distinct)
    means: Floats = drawn @ distinct / len(values)
    return means


def interval(means: Floats, level: float = 0.95) -> tuple[float, float]:
    """The percentile interval that holds ``level`` of the means [R]."""
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def harmonic_mean(values: Floats) -> Floats:
    """Over the last axis; 0 where one value is 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(values.shape[-1] / (1 / values).sum(axis=-1))


def bootstrap_harmonic_means(groups: Sequence[Floats], resamples: int = RESAMPLES, seed: int = 0) -> Floats:
    """Harmonic means of the groups' means, each group resampled on its own: [R], or [R, C] for groups [N_i, C]."""
    drawn = [bootstrap_means(values, resamples, seed + number) for number, values in enumerate(groups)]
    return harmonic_mean(np.stack(drawn, axis=-1))


def share_above(means: Floats) -> float:
    """The paired bootstrap's probability that the second run is above the first, in [0, 1].

    The share of the resampled means [R, 2] in which it is, ties counted as half: 0.5 says nothing; 0.975 and above, or
    0.025 and below, is what a two-sided test at 5 % calls significant.
    """
    # Sums of equal terms may differ by rounding.
    difference = np.round(means[:, 1] - means[:, 0], 12)
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def domain_confusion(
    query_datasets: Sequence[str], neighbour_datasets: Sequence[str], names: Sequence[str]
) -> tuple[Floats, NDArray[np.int64]]:
    """Of each dataset's queries, the share whose nearest neighbour in the union lies in each dataset.

    Args:
        query_datasets: N names.
        neighbour_datasets: N names, those of the queries' nearest neighbours.
        names: The K datasets, in the order of rows and columns.

    Returns:
        Shares [K, K], each row adding up to 1 (to 0 for a dataset without queries), and each row's queries [K].
    """
    number: Mapping[str, int] = {name: index for index, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, ([number[name] for name in query_datasets], [number[name] for name in neighbour_datasets]), 1)
    queries = counts.sum(axis=1)
    return counts / np.maximum(queries, 1)[:, None], queries.astype(np.int64)
