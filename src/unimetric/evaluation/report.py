"""The report that `evaluate` returns, and its computation from the results of each query."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from unimetric.conformal import calibrate_sets
from unimetric.evaluation.distances import Distance
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.opis import Inconsistency, class_pairs, inconsistency
from unimetric.evaluation.per_query import PerQuery, QueryResults
from unimetric.evaluation.statistics import Intervals, Spread, bootstrap_intervals, harmonic_mean, measure_spread
from unimetric.evaluation.thresholds import Calibration, calibrate
from unimetric.files import as_json

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Rows = npt.NDArray[np.bool_] | slice
_ALL = slice(None)


@dataclass(frozen=True)
class DatasetCounts:
    """Numbers of queries and gallery items behind one dataset's scores."""

    queries: int
    """Number of queries."""
    gallery: int
    """Number of gallery items; without a separate gallery, the number of queries."""
    queries_without_positive: int
    """Queries that have no other image of their class in the gallery; every mean excludes them."""


@dataclass(frozen=True)
class Counts:
    """Numbers of queries and gallery items behind all scores.

    A positive is always of the query's own dataset, so the separate and the unified scores exclude the same queries:
    those without a positive.
    """

    queries: int
    """All queries. The unified scores are means over these less ``queries_without_positive``."""
    gallery: int
    """All gallery items; for the unified scores, a query is compared with all of them but itself."""
    queries_without_positive: int
    """Queries that have no other image of their class in the gallery; every mean excludes them."""
    datasets: Mapping[str, DatasetCounts]
    """The same for each dataset that occurs among the queries or in the gallery."""
    datasets_left_out: tuple[str, ...]
    """Datasets without a separate value, because none of their queries has a positive or they have no queries. The
    harmonic mean is over the others. Their gallery items still take part in the unified scores."""


@dataclass(frozen=True)
class WorstClass:
    """A class with a low score under the separate protocol."""

    label: Hashable
    """Its label in its dataset."""
    queries: int
    """Number of its queries with a positive."""
    recall_at_1: float
    """The share of them whose nearest neighbour is of this class, from 0 to 1."""
    map_at_r: float
    """The mean of their average precision at R, from 0 to 1."""
    mistaken_for: Hashable | None
    """The most frequent label of their wrong nearest neighbours; of equally frequent ones, that of the lowest class
    number. None if there are none."""

    def to_dict(self) -> dict[str, Any]:
        """Return labels as text, and numbers, ready for `json.dumps`."""
        return {
            "label": str(self.label),
            "queries": self.queries,
            "recall@1": self.recall_at_1,
            "map@r": self.map_at_r,
            "mistaken_for": None if self.mistaken_for is None else str(self.mistaken_for),
        }


@dataclass(frozen=True)
class Report:
    """Scores of an embedding, from 0 to 1: "recall@k" for each k, "map@r", "r-precision", and "map" if requested."""

    separate: Mapping[str, Mapping[str, float]]
    """Each dataset's metrics, its queries against its own gallery: means over its queries with a positive.
    A dataset without such a query is not in it."""
    harmonic: Mapping[str, float]
    """For each metric, the harmonic mean of its separate values: 0 if one of them is 0."""
    unified: Mapping[str, float]
    """Metrics of all queries against all galleries at once: means over all queries with a positive."""
    counts: Counts
    """Numbers of queries and gallery items, and of those that were excluded."""
    distance: str
    """The distance: "cosine", "euclidean" or "poincare"."""
    intervals: Intervals
    """95 % bootstrap intervals of all of these, see `bootstrap_intervals`."""
    unified_gap: Mapping[str, float]
    """For each dataset with a separate value, its loss of Recall@1 from sharing the space, see `unified_gap`."""
    confusion: "DomainConfusion"
    """Datasets of the queries' nearest neighbours in the union of all galleries, see `domain_confusion`."""
    separate_spread: Mapping[str, Spread]
    """Alignment and uniformity of each dataset with a separate value, see `measure_spread`."""
    unified_spread: Spread
    """Those of all datasets at once."""
    separate_thresholds: Mapping[str, Calibration]
    """Match or no match in each dataset with a separate value, see `thresholds`."""
    unified_thresholds: Calibration
    """Match or no match in the union of all galleries."""
    worst_classes: Mapping[str, tuple[WorstClass, ...]]
    """The classes with the lowest scores of each dataset with a separate value, at most 10, worst first."""
    per_query: PerQuery = field(compare=False, repr=False)
    """Results of each query. Not in `to_dict`, because their size grows with the queries."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report without `per_query` as plain dicts, lists, floats and ints, ready for `json.dumps`."""
        plain: dict[str, Any] = as_json(
            {
                "separate": self.separate,
                "harmonic": self.harmonic,
                "unified": self.unified,
                "counts": self.counts,
                "distance": self.distance,
                "intervals": self.intervals,
                "unified_gap": self.unified_gap,
                "domain_confusion": self.confusion,
                "spread": {"separate": self.separate_spread, "unified": self.unified_spread},
                "thresholds": {"separate": self.separate_thresholds, "unified": self.unified_thresholds},
                "worst_classes": {name: [one.to_dict() for one in worst] for name, worst in self.worst_classes.items()},
            }
        )
        return plain


def summarise(
    per_query: PerQuery,
    counts: Counts,
    metrics: Sequence[str],
    distance: Distance,
    resamples: int,
    seed: int,
    parts: Mapping[str, Retrieval],
    whole: Retrieval,
) -> Report:
    """Compute all numbers of a report.

    The ``metrics`` are names of the scores to report; ``parts`` are the retrieval within each dataset that has a
    separate value, ``whole`` is that in the union of all. The seed is that of the resamples and of the pairs for
    alignment and uniformity.
    """
    rows = {name: per_query.query_datasets == per_query.datasets.index(name) for name in parts}
    separate = {name: _means(per_query.separate, metrics, rows[name]) for name in parts}
    # The union of one dataset is that dataset.
    alone = len(per_query.datasets) == 1
    thresholds = {
        name: replace(_calibrate(per_query.separate, part, rows[name]), consistency=_consistency(part, seed))
        for name, part in parts.items()
    }
    spreads = {name: measure_spread(part, seed=seed) for name, part in parts.items()}
    return Report(
        separate=separate,
        harmonic={metric: harmonic_mean([scores[metric] for scores in separate.values()]) for metric in metrics},
        unified=_means(per_query.unified, metrics),
        counts=counts,
        distance=distance.name,
        intervals=bootstrap_intervals(per_query, metrics, resamples, seed),
        unified_gap=unified_gap(per_query.by_dataset("separate"), per_query.by_dataset("unified")),
        confusion=_confusion(per_query),
        separate_spread=spreads,
        unified_spread=next(iter(spreads.values())) if alone else measure_spread(whole, seed=seed),
        separate_thresholds=thresholds,
        unified_thresholds=replace(
            _calibrate(per_query.unified, whole),
            consistency=next(iter(thresholds.values())).consistency if alone else _consistency(whole, seed),
        ),
        worst_classes={name: _worst(per_query, rows[name]) for name in parts},
        per_query=per_query,
    )


def _confusion(per_query: PerQuery) -> "DomainConfusion":
    nearest = per_query.unified.nearest
    neighbours = np.where(nearest >= 0, per_query.gallery_datasets[nearest], -1)
    matrix = domain_confusion(per_query.query_datasets, neighbours, len(per_query.datasets))
    rows = tuple(None if np.isnan(row).any() else tuple(row.tolist()) for row in matrix)
    return DomainConfusion(per_query.datasets, rows)


def _calibrate(results: QueryResults, retrieval: Retrieval, rows: Rows = _ALL) -> Calibration:
    genuine, impostors = results.best_positive[rows], results.best_negative[rows]
    perfect = 1.0 if retrieval.distance.name == "cosine" else 0.0
    sets = calibrate_sets(genuine, impostors, len(retrieval.gallery), perfect)
    return replace(calibrate(genuine, impostors, results.scores["recall@1"][rows]), sets=sets)


def _consistency(retrieval: Retrieval, seed: int) -> Inconsistency | None:
    # It compares classes, which images with several labels do not have.
    return inconsistency(class_pairs(retrieval, seed)) if retrieval.label_sets is None else None


def _worst(per_query: PerQuery, rows: npt.NDArray[np.bool_]) -> tuple[WorstClass, ...]:
    results = per_query.separate
    nearest = results.nearest[rows]
    return worst_classes(
        results.scores["recall@1"][rows],
        results.scores["map@r"][rows],
        per_query.query_classes[rows],
        np.where(nearest >= 0, per_query.gallery_classes[nearest], -1),
        [label for _, label in per_query.classes],
    )


def _means(results: QueryResults, metrics: Sequence[str], rows: Rows = _ALL) -> dict[str, float]:
    """Return the mean of each metric over the queries that have a value, exactly rounded."""
    means = {}
    for metric in metrics:
        values = results.scores[metric][rows]
        scored = values[~np.isnan(values)].tolist()
        means[metric] = math.fsum(scored) / len(scored)
    return means


@dataclass(frozen=True)
class DomainConfusion:
    """Datasets of the nearest neighbours of each dataset's queries, in the union of all galleries."""

    datasets: tuple[str, ...]
    """K names, of the rows and of the columns."""
    matrix: tuple[tuple[float, ...] | None, ...]
    """K rows of K shares, from 0 to 1: of the queries of the row's dataset, those whose nearest neighbour is of the
    column's. A row sums to 1; entries off the diagonal are the confusion. None for a dataset without such a query."""


def domain_confusion(query_domains: Integers, neighbour_domains: Integers, domains: int) -> Floats:
    """Return the share of each domain's queries whose nearest neighbour is of each domain.

    A neighbour of another dataset is never of the query's class, so 1 minus the diagonal is a lower bound of 1 minus
    Recall@1. All queries with a neighbour count, including those without a positive.

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
    """Return the separate minus the unified Recall@1 of each dataset, its loss from sharing the space.

    From 0 to 1, never negative: a right nearest neighbour in the union is also nearest in the dataset's own gallery.
    Both sides have, for each dataset, 1 where a query's nearest neighbour is right, else 0, [Q], and NaN for a query
    without a positive, which is skipped; a dataset without any other has no gap.
    """
    gaps = {}
    for name, hits in separate.items():
        lost = (hits - unified[name])[~np.isnan(hits)]
        if len(lost):
            gaps[name] = float(lost.mean())
    return gaps


COUNT = 10
"""Maximum number of worst classes that a report names for each dataset."""


def worst_classes(
    hits: Floats,
    average_precisions: Floats,
    classes: Integers,
    nearest_classes: Integers,
    labels: Sequence[Hashable],
    count: int = COUNT,
) -> tuple[WorstClass, ...]:
    """Return the classes with the lowest Recall@1; ties go to the lower MAP@R, more queries, the lower number.

    Args:
        hits: 1 where a query's nearest neighbour is right, else 0, shape [Q]; NaN for a query without a positive,
            which is skipped.
        average_precisions: Average precision at R of each query, shape [Q].
        classes: The class of each query, shape [Q], numbers from 0.
        nearest_classes: The class of each query's nearest neighbour, shape [Q]; -1 where there is none.
        labels: The label of every class number.
        count: Maximum number of classes.

    >>> hits, classes = np.array([1.0, 0.0, 1.0, 1.0]), np.array([1, 1, 0, 0])
    >>> worst_classes(hits, hits, classes, np.array([1, 0, 0, 0]), ["cat", "dog"], count=1)
    (WorstClass(label='dog', queries=2, recall_at_1=0.5, map_at_r=0.5, mistaken_for='cat'),)
    """
    scored = ~np.isnan(hits)
    numbers, places, queries = np.unique(classes[scored], return_inverse=True, return_counts=True)
    recalls = np.bincount(places, weights=hits[scored], minlength=len(numbers)) / queries
    precisions = np.bincount(places, weights=average_precisions[scored], minlength=len(numbers)) / queries
    worst = []
    for i in np.lexsort((numbers, -queries, precisions, recalls))[:count]:
        wrong = nearest_classes[scored & (classes == numbers[i]) & (hits == 0) & (nearest_classes >= 0)]
        mistaken_for = labels[int(np.bincount(wrong).argmax())] if len(wrong) else None
        scores = int(queries[i]), float(recalls[i]), float(precisions[i])
        worst.append(WorstClass(labels[numbers[i]], *scores, mistaken_for))
    return tuple(worst)
