"""Confidence intervals by the percentile bootstrap over queries, and alignment and uniformity.

A bootstrap resample draws as many queries as there are, with replacement, and computes the statistic again; the middle
95 % of many such values are the interval (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).
Queries are drawn within their dataset, so that the datasets and their sizes stay fixed.

The interval covers the choice of queries only, not another gallery or another training seed. It treats queries as
independent: where few classes have many queries each, the true interval is wider. A value that is the same for all
queries, such as a Recall@1 of 1, has an interval of zero width, however few the queries.

Alignment and uniformity are those of Wang and Isola, Understanding Contrastive Representation Learning through
Alignment and Uniformity on the Hypersphere, ICML 2020, with alpha = 2 and t = 2. With d the distance of two embeddings:

- alignment: the mean of d^2 over all pairs of a query and a gallery item of its class;
- uniformity: the logarithm of the mean of exp(-2 d^2) over all pairs of a query and a gallery item.

A query is not paired with itself. On the unit sphere, d is the length of the difference: alignment is from 0 to 4,
uniformity from -8 to 0, and lower is better for both (points spread evenly over a sphere of many dimensions have -4).
For vectors of any length and in the Poincaré ball the paper defines neither; here d is the Euclidean or the hyperbolic
distance, alignment is at least 0 and uniformity at most 0, and only models of the same scale or curvature can be
compared.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimetric.errors import UserError
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.per_query import PerQuery

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
"""The share of resamples within an interval."""
RESAMPLES = 1000
"""Default number of resamples; 25 of them lie beyond each end of a 95 % interval."""

_GRID = 2.0**-24
"""Values are rounded to multiples of this, so that their sums are exact and do not depend on the number of threads."""
_BLOCK = 2**20
"""Maximum number of drawn queries in memory."""


def resampled_means(values: Floats, resamples: int = RESAMPLES, seed: int | Sequence[int] = 0) -> Floats:
    """Return the means [B, M] of B bootstrap resamples of M metrics of the same queries, [Q, M], finite.

    The metrics have a magnitude of about 1. The same seed and Q draw the same queries. A row holds all metrics of the
    same resample, so differences and other functions of a row are bootstrap values, too.
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
    # Rounding must not move an interval of zero width off the value.
    for column in (values == values[0]).all(axis=0).nonzero()[0]:
        means[:, column] = math.fsum(values[:, column].tolist()) / queries
    return means


def percentile_interval(samples: Floats, level: float = LEVEL) -> tuple[float, float]:
    """Return the (1 - level) / 2 and the (1 + level) / 2 quantile of bootstrap values.

    Args:
        samples: Shape [B], one value per resample.
        level: The share of values within the interval, from 0 to 1.

    >>> percentile_interval(np.arange(101.0), level=0.5)
    (25.0, 75.0)
    """
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    # Where all samples are equal, interpolation may round beyond them.
    return float(np.clip(low, samples.min(), samples.max())), float(np.clip(high, samples.min(), samples.max()))


def harmonic_mean(values: Sequence[float]) -> float:
    """Return the harmonic mean of non-negative values; 0 if one of them is 0."""
    if min(values) == 0:
        return 0.0
    return len(values) / math.fsum(1 / value for value in values)


def harmonic_means(values: Floats) -> Floats:
    """Return the harmonic mean of every row of a matrix [B, K]."""
    return np.array([harmonic_mean(row) for row in values.tolist()])


@dataclass(frozen=True)
class Difference:
    """Difference between two runs, positive where the first is better."""

    difference: float
    """First minus second, on the original queries."""
    low: float
    """Lower end of its 95 % interval."""
    high: float
    """Upper end."""
    probability: float
    """The share of resamples in which the first is better, with ties counted half: about 0.5 where the runs cannot be
    distinguished, near 1 where the first is better, near 0 where the second is."""


@dataclass(frozen=True)
class PairedComparison:
    """Comparison of two runs on the same queries."""

    datasets: Mapping[str, Difference]
    """The mean over each dataset's queries."""
    harmonic: Difference
    """The harmonic mean of those means."""
    overall: Difference
    """The mean over all queries."""


def paired_bootstrap(
    first: Mapping[str, Floats], second: Mapping[str, Floats], resamples: int = RESAMPLES, seed: int = 0
) -> PairedComparison:
    """Compare two runs by resampling their queries, the same ones for both.

    The paired bootstrap of Koehn, Statistical Significance Tests for Machine Translation Evaluation, EMNLP 2004.

    Args:
        first: For each dataset, one metric of each of its queries, shape [Q], such as from `PerQuery.by_dataset`;
            NaN for a query without a positive, which is skipped.
        second: The same for another run, with the same queries in the same order.
        resamples: Number of resamples.
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
    """Return both runs' values side by side, [Q, 2], for each dataset, without queries that have a value in neither."""
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
    """Return the difference of two values [2], with its interval from resampled values [B, 2]."""
    differences = drawn[:, 0] - drawn[:, 1]
    low, high = percentile_interval(differences)
    better = (differences > 0).mean() + (differences == 0).mean() / 2
    return Difference(float(actual[0] - actual[1]), low, high, float(better))


Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Lower and upper ends of bootstrap intervals; the keys are those of the `Report`."""

    level: float
    """The share of resamples within an interval."""
    resamples: int
    """Number of resamples."""
    seed: int
    """Seed of the resamples."""
    separate: Mapping[str, Mapping[str, Interval]]
    """For each dataset and metric."""
    harmonic: Mapping[str, Interval]
    """For each metric, of the harmonic mean."""
    unified: Mapping[str, Interval]
    """For each metric."""
    unified_gap: Mapping[str, Interval]
    """For each dataset, of its separate minus its unified Recall@1, each resample holding both."""


def bootstrap_intervals(per_query: PerQuery, metrics: Sequence[str], resamples: int, seed: int) -> Intervals:
    """Resample the queries with a positive within each dataset, the same ones for all metrics and protocols.

    The ``metrics`` are M names of scores; there is at least one resample, and the same seed draws the same queries.
    """
    separate, unified, gaps, sizes = {}, {}, {}, {}
    for number, name in enumerate(per_query.datasets):
        rows = (per_query.query_datasets == number) & ~np.isnan(per_query.separate.scores["recall@1"])
        if not rows.any():
            continue
        columns = [
            *(per_query.separate.scores[metric][rows] for metric in metrics),
            *(per_query.unified.scores[metric][rows] for metric in metrics),
            per_query.separate.scores["recall@1"][rows] - per_query.unified.scores["recall@1"][rows],
        ]
        drawn = resampled_means(np.stack(columns, axis=1), resamples, [seed, number])  # (B, 2 M + 1)
        separate[name], unified[name], gaps[name] = np.split(drawn, [len(metrics), 2 * len(metrics)], axis=1)
        sizes[name] = int(rows.sum())
    counts = np.array(list(sizes.values()), dtype=np.float64)
    overall = np.tensordot(counts, np.array(list(unified.values())), axes=1) / counts.sum()  # (B, M)
    harmonic = np.stack(
        [harmonic_means(np.stack([drawn[:, i] for drawn in separate.values()], axis=1)) for i in range(len(metrics))],
        axis=1,
    )
    return Intervals(
        LEVEL,
        resamples,
        seed,
        separate={name: _intervals(metrics, drawn) for name, drawn in separate.items()},
        harmonic=_intervals(metrics, harmonic),
        unified=_intervals(metrics, overall),
        unified_gap={name: percentile_interval(drawn[:, 0]) for name, drawn in gaps.items()},
    )


def _intervals(metrics: Sequence[str], drawn: Floats) -> dict[str, Interval]:
    """Return the interval of each metric from resampled values [B, M]."""
    return {metric: percentile_interval(drawn[:, i]) for i, metric in enumerate(metrics)}


PAIRS = 100_000
"""Maximum number of pairs; of more, a random sample of this size is used. On the sphere, the standard error of
alignment is then at most 0.007, that of a uniformity u at most sqrt(exp(-u) / 100,000): 0.03 at -4."""


@dataclass(frozen=True)
class Spread:
    """Alignment and uniformity, and the number of pairs behind them."""

    alignment: float | None
    """None without a pair of the same class, and for images with several labels."""
    uniformity: float | None
    """None without any pair."""
    positive_pairs: int
    """Number of pairs behind the alignment."""
    pairs: int
    """Number of pairs behind the uniformity."""
    sampled: bool
    """True if either was computed from a sample of the pairs."""


def measure_spread(retrieval: Retrieval, limit: int = PAIRS, seed: int = 0) -> Spread:
    """Compute alignment and uniformity of queries and gallery.

    Of more pairs of a kind than ``limit``, as many are drawn with replacement, and pairs of a query with itself are
    dropped. The same seed draws the same pairs.
    """
    everyone = torch.zeros(len(retrieval.queries), dtype=torch.int64)
    everything = torch.zeros(len(retrieval.gallery), dtype=torch.int64)
    positive, positive_sampled = torch.empty(0, 2, dtype=torch.int64), False
    if retrieval.label_sets is None:
        positive, positive_sampled = _pairs_of_one_class(
            retrieval.query_classes, retrieval.gallery_classes, retrieval.self_indices, limit, seed
        )
    any_class, sampled = _pairs_of_one_class(everyone, everything, retrieval.self_indices, limit, seed)
    near, all_squares = _squared_distances(retrieval, positive), _squared_distances(retrieval, any_class)
    return Spread(
        alignment=float(near.mean()) if len(near) else None,
        # exp(-2 d²) is zero for all distances above 19.3, its logarithm is not.
        uniformity=float(np.logaddexp.reduce(-2 * all_squares)) - math.log(len(all_squares))
        if len(all_squares)
        else None,
        positive_pairs=len(near),
        pairs=len(all_squares),
        sampled=positive_sampled or sampled,
    )


def _pairs_of_one_class(
    query_classes: Tensor, gallery_classes: Tensor, self_indices: Tensor, limit: int, seed: int
) -> tuple[Tensor, bool]:
    """Return query and gallery rows [P, 2] of one class, excluding a query with itself; true if they are a sample."""
    classes = 1 + int(max(query_classes.max(), gallery_classes.max()))
    order = gallery_classes.argsort(stable=True)
    sizes = gallery_classes.bincount(minlength=classes)
    starts = sizes.cumsum(0) - sizes
    # All pairs are numbered, query by query.
    ends = sizes[query_classes].cumsum(0)
    total = int(ends[-1])
    numbers = torch.arange(min(total, limit))
    if total > limit:
        numbers = torch.from_numpy(np.random.default_rng(seed).integers(total, size=limit))
    queries = torch.searchsorted(ends, numbers, right=True)
    query_class = query_classes[queries]
    place = numbers - (ends[queries] - sizes[query_class])
    gallery = order[starts[query_class] + place]
    others = self_indices[queries] != gallery
    return torch.stack([queries[others], gallery[others]], dim=1), total > limit


def _squared_distances(retrieval: Retrieval, pairs: Tensor) -> npt.NDArray[np.float64]:
    """Return the squared distance of each pair, shape [P]."""
    similarities = retrieval.similarities(pairs)
    if retrieval.distance.name == "cosine":
        # The rounding of the rows can leave a cosine above 1.
        return (2 - 2 * similarities).clamp(0, 4).numpy()
    squared: npt.NDArray[np.float64] = similarities.square().numpy()
    return squared
