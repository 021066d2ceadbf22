"""What `evaluate` returns, and how it is computed from what each query found."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unimetric.evaluation.distances import Distance
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.per_query import PerQuery, QueryResults
from unimetric.evaluation.statistics import Intervals, Spread, bootstrap_intervals, harmonic_mean, measure_spread
from unimetric.evaluation.thresholds import Calibration, calibrate

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.bool_] | slice
_ALL = slice(None)


@dataclass(frozen=True)
class DatasetCounts:
    """What one dataset's scores cover."""

    queries: int
    """Its queries."""
    gallery: int
    """Its gallery items; without a separate gallery, its queries over again."""
    queries_without_positive: int
    """Those of its queries that have no other image of their class in the gallery: left out of every mean."""


@dataclass(frozen=True)
class Counts:
    """What all scores cover.

    A positive is of the query's own dataset, so the separate and the unified scores leave out the same
    queries: those without a positive.
    """

    queries: int
    """All queries. The unified scores are means over these less ``queries_without_positive``."""
    gallery: int
    """All gallery items, which is what a query of the unified scores is compared with, itself apart."""
    queries_without_positive: int
    """Queries that have no other image of their class in the gallery: left out of every mean."""
    datasets: Mapping[str, DatasetCounts]
    """The same for each dataset that occurs among the queries or in the gallery."""
    datasets_left_out: tuple[str, ...]
    """Datasets that have no separate value, since no query of theirs has a positive (or they have none):
    the harmonic mean is over the others. Their gallery items still take part in the unified scores."""


@dataclass(frozen=True)
class WorstClass:
    """A class that is found badly, by the separate protocol."""

    label: Hashable
    """Its label in its dataset."""
    score: ClassScore
    """How it is found; class numbers are those of `PerQuery.classes`."""
    mistaken_for: Hashable | None
    """The label that its wrong nearest neighbours have most often; None if there are none."""

    def to_dict(self) -> dict[str, Any]:
        """Labels as text, and numbers, ready for `json.dumps`."""
        return {
            "label": str(self.label),
            "queries": self.score.queries,
            "recall@1": self.score.recall_at_1,
            "map@r": self.score.map_at_r,
            "mistaken_for": None if self.score.mistaken_for is None else str(self.mistaken_for),
        }


@dataclass(frozen=True)
class Report:
    """The scores of an embedding: "recall@k" for each k, "map@r", "r-precision", and "map" if asked for: 0 to 1."""

    separate: Mapping[str, Mapping[str, float]]
    """Each dataset's metrics, its queries against its own gallery: means over its queries with a positive.
    A dataset without such a query is not in it."""
    harmonic: Mapping[str, float]
    """For each metric, the harmonic mean of its separate values: 0 if one of them is 0."""
    unified: Mapping[str, float]
    """Metrics of all queries against all galleries at once: means over all queries with a positive."""
    counts: Counts
    """How many queries and gallery items that covers, and what was left out."""
    distance: str
    """What was near: "cosine", "euclidean" or "poincare"."""
    intervals: Intervals
    """95 % bootstrap intervals of all of these, see `bootstrap`."""
    unified_gap: Mapping[str, float]
    """For each dataset with a separate value, what it loses by sharing the space, see `unified_gap`."""
    confusion: DomainConfusion
    """Where the queries' nearest neighbours lie in the union of all galleries, see `domain_confusion`."""
    separate_spread: Mapping[str, Spread]
    """Alignment and uniformity of each dataset with a separate value, see `spread`."""
    unified_spread: Spread
    """Those of all datasets at once."""
    separate_thresholds: Mapping[str, Calibration]
    """Match or no match in each dataset with a separate value, see `thresholds`."""
    unified_thresholds: Calibration
    """Match or no match in the union of all galleries."""
    worst_classes: Mapping[str, tuple[WorstClass, ...]]
    """The classes of each dataset with a separate value that are found worst there, at most 10, worst first."""
    per_query: PerQuery = field(compare=False, repr=False)
    """What each query found. Not in `to_dict`: it grows with the queries."""

    def to_dict(self) -> dict[str, Any]:
        """The report as plain dicts, lists, floats and ints, ready for `json.dumps`, without what each query found."""
        counts = asdict(self.counts)
        counts["datasets_left_out"] = list(self.counts.datasets_left_out)
        return {
            "separate": {name: dict(metrics) for name, metrics in self.separate.items()},
            "harmonic": dict(self.harmonic),
            "unified": dict(self.unified),
            "counts": counts,
            "distance": self.distance,
            "intervals": self.intervals.to_dict(),
            "unified_gap": dict(self.unified_gap),
            "domain_confusion": self.confusion.to_dict(),
            "spread": {
                "separate": {name: asdict(spread) for name, spread in self.separate_spread.items()},
                "unified": asdict(self.unified_spread),
            },
            "thresholds": {
                "separate": {name: calibration.to_dict() for name, calibration in self.separate_thresholds.items()},
                "unified": self.unified_thresholds.to_dict(),
            },
            "worst_classes": {name: [one.to_dict() for one in worst] for name, worst in self.worst_classes.items()},
        }


@dataclass(frozen=True)
class BootstrapOptions:
    """What the random parts are drawn with."""

    resamples: int
    """Bootstrap resamples behind each interval."""
    seed: int
    """The seed of those, and of the pairs behind alignment and uniformity."""


def summarise(
    per_query: PerQuery,
    counts: Counts,
    metrics: Sequence[str],
    distance: Distance,
    options: BootstrapOptions,
    parts: Mapping[str, Retrieval],
    whole: Retrieval,
) -> Report:
    """All numbers of a report.

    Args:
        per_query: What each query found.
        counts: What that covers.
        metrics: Names of the scores to report.
        distance: What was near.
        options: Resamples and seed.
        parts: The retrieval within each dataset that has a separate value.
        whole: The retrieval in the union of all.
    """
    rows = {name: per_query.query_datasets == per_query.datasets.index(name) for name in parts}
    separate = {name: _means(per_query.separate, metrics, rows[name]) for name in parts}
    # With one dataset, the union is that dataset.
    alone = len(per_query.datasets) == 1
    spreads = {name: measure_spread(part, seed=options.seed) for name, part in parts.items()}
    return Report(
        separate=separate,
        harmonic={metric: harmonic_mean([scores[metric] for scores in separate.values()]) for metric in metrics},
        unified=_means(per_query.unified, metrics),
        counts=counts,
        distance=distance.name,
        intervals=bootstrap_intervals(per_query, metrics, options.resamples, options.seed),
        unified_gap=unified_gap(per_query.by_dataset("separate"), per_query.by_dataset("unified")),
        confusion=_confusion(per_query),
        separate_spread=spreads,
        unified_spread=next(iter(spreads.values())) if alone else measure_spread(whole, seed=options.seed),
        separate_thresholds={name: _calibrate(per_query.separate, rows[name]) for name in parts},
        unified_thresholds=_calibrate(per_query.unified),
        worst_classes={name: _worst(per_query, rows[name]) for name in parts},
        per_query=per_query,
    )


def _confusion(per_query: PerQuery) -> DomainConfusion:
    nearest = per_query.unified.nearest
    neighbours = np.where(nearest >= 0, per_query.gallery_datasets[nearest], -1)
    matrix = domain_confusion(per_query.query_datasets, neighbours, len(per_query.datasets))
    rows = tuple(None if np.isnan(row).any() else tuple(row.tolist()) for row in matrix)
    return DomainConfusion(per_query.datasets, rows)


def _calibrate(results: QueryResults, rows: Rows = _ALL) -> Calibration:
    return calibrate(results.best_positive[rows], results.best_negative[rows], results.scores["recall@1"][rows])


def _worst(per_query: PerQuery, rows: npt.NDArray[np.bool_]) -> tuple[WorstClass, ...]:
    results = per_query.separate
    nearest = results.nearest[rows]
    scores = worst_classes(
        results.scores["recall@1"][rows],
        results.scores["map@r"][rows],
        per_query.query_classes[rows],
        np.where(nearest >= 0, per_query.gallery_classes[nearest], -1),
    )
    labels = [label for _, label in per_query.classes]
    return tuple(
        WorstClass(
            labels[score.class_number], score, None if score.mistaken_for is None else labels[score.mistaken_for]
        )
        for score in scores
    )


def _means(results: QueryResults, metrics: Sequence[str], rows: Rows = _ALL) -> dict[str, float]:
    """The mean of each metric over the queries that have a value, exactly rounded."""
    means = {}
    for metric in metrics:
        values = results.scores[metric][rows]
        scored = values[~np.isnan(values)].tolist()
        means[metric] = math.fsum(scored) / len(scored)
    return means


@dataclass(frozen=True)
class DomainConfusion:
    """Where the nearest neighbours of each dataset's queries lie, in the union of all galleries."""

    datasets: tuple[str, ...]
    """K names: of the rows, and of the columns."""
    matrix: tuple[tuple[float, ...] | None, ...]
    """K rows of K shares, from 0 to 1: of the queries of the row's dataset, those whose nearest neighbour lies in the
    column's. A row sums to 1; what is off the diagonal is the confusion. None for a dataset without such a query."""

    def to_dict(self) -> dict[str, Any]:
        """Names and rows, ready for `json.dumps`."""
        return {"datasets": list(self.datasets), "matrix": [row if row is None else list(row) for row in self.matrix]}


def domain_confusion(query_domains: Integers, neighbour_domains: Integers, domains: int) -> Floats:
    """The share of each domain's queries whose nearest neighbour lies in each domain.

    A neighbour of another dataset can never be of the query's class, so 1 minus the diagonal is a lower bound of what
    Recall@1 misses. All queries count, also those without a positive, but for those with no neighbour at all.

    Args:
        query_domains: The domain of each query, shape [Q], from 0 to K - 1.
        neighbour_domains: The domain of each query's nearest neighbour, shape [Q]; -1 where there is none.
        domains: K.

    Returns:
        Shape [K, K], rows for queries and columns for neighbours, from 0 to 1; a row sums to 1, or is NaN where the
        domain has no query with a neighbour.

    >>> domain_confusion(np.array([0, 0, 1, 1]), np.array([0, 1, 1, -1]), domains=2)
    array([[0.5, 0.5],
           [0. , 1. ]])
    """
    found = neighbour_domains >= 0
    cells = query_domains[found] * domains + neighbour_domains[found]
    counts = np.bincount(cells, minlength=domains * domains).reshape(domains, domains).astype(np.float64)
    totals = counts.sum(axis=1, keepdims=True)
    shares: Floats = np.divide(counts, totals, out=np.full_like(counts, np.nan), where=totals > 0)
    return shares


def unified_gap(separate: Mapping[str, Floats], unified: Mapping[str, Floats]) -> dict[str, float]:
    """What each dataset loses by sharing the space: its separate minus its unified Recall@1.

    Between 0 and 1. Never negative: if the nearest of all galleries is right, it is also the nearest of its own.

    Args:
        separate: For each dataset, whether each query's nearest neighbour in its own gallery is right, shape [Q],
            1 or 0; NaN for a query without a positive, which is left out.
        unified: The same in the union of the galleries.

    Returns:
        For each dataset with a query that has a positive, the gap.
    """
    gaps = {}
    for name, hits in separate.items():
        lost = (hits - unified[name])[~np.isnan(hits)]
        if len(lost):
            gaps[name] = float(lost.mean())
    return gaps


COUNT = 10
"""How many classes a report names for each dataset."""


@dataclass(frozen=True)
class ClassScore:
    """How one class is found."""

    class_number: int
    """Which class."""
    queries: int
    """Its queries with a positive."""
    recall_at_1: float
    """The share of them whose nearest neighbour is of this class, from 0 to 1."""
    map_at_r: float
    """The mean of their average precision at R, from 0 to 1."""
    mistaken_for: int | None
    """The class that their nearest neighbour is of most often where it is not of this one; None if it always is. Of
    equally frequent ones, the lowest number."""


def worst_classes(
    hits: Floats, average_precisions: Floats, classes: Integers, nearest_classes: Integers, count: int = COUNT
) -> list[ClassScore]:
    """The classes with the lowest Recall@1; of equals, those with the lower MAP@R, more queries, the lower number.

    Args:
        hits: Whether each query's nearest neighbour is right, shape [Q], 1 or 0; NaN for a query without a positive,
            which is left out.
        average_precisions: Average precision at R of each query, shape [Q].
        classes: The class of each query, shape [Q], numbers from 0.
        nearest_classes: The class of each query's nearest neighbour, shape [Q]; -1 where there is none.
        count: How many classes to name at most.

    >>> hits, classes = np.array([1.0, 0.0, 1.0, 1.0]), np.array([7, 7, 5, 5])
    >>> worst_classes(hits, hits, classes, np.array([7, 5, 5, 5]), count=1)
    [ClassScore(class_number=7, queries=2, recall_at_1=0.5, map_at_r=0.5, mistaken_for=5)]
    """
    scored = ~np.isnan(hits)
    numbers, places, queries = np.unique(classes[scored], return_inverse=True, return_counts=True)
    recalls = np.bincount(places, weights=hits[scored], minlength=len(numbers)) / queries
    precisions = np.bincount(places, weights=average_precisions[scored], minlength=len(numbers)) / queries
    worst = np.lexsort((numbers, -queries, precisions, recalls))[:count]
    return [
        ClassScore(
            int(numbers[i]),
            int(queries[i]),
            float(recalls[i]),
            float(precisions[i]),
            _most_frequent(nearest_classes[scored & (classes == numbers[i]) & (hits == 0) & (nearest_classes >= 0)]),
        )
        for i in worst
    ]


def _most_frequent(numbers: Integers) -> int | None:
    if not len(numbers):
        return None
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[counts.argmax()])
