"""What `evaluate` returns, and how it is computed from what each query found."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from unimetric.evaluation.bootstrap import harmonic_mean
from unimetric.evaluation.distances import Distance
from unimetric.evaluation.domains import DomainConfusion, domain_confusion, unified_gap
from unimetric.evaluation.intervals import Intervals, bootstrap_intervals
from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.per_query import PerQuery, QueryResults
from unimetric.evaluation.spread import Spread, measure_spread
from unimetric.evaluation.thresholds import Calibration, calibrate
from unimetric.evaluation.worst import ClassScore, worst_classes

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
class Chances:
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
    chances: Chances,
    parts: Mapping[str, Retrieval],
    whole: Retrieval,
) -> Report:
    """All numbers of a report.

    Args:
        per_query: What each query found.
        counts: What that covers.
        metrics: Names of the scores to report.
        distance: What was near.
        chances: Resamples and seed.
        parts: The retrieval within each dataset that has a separate value.
        whole: The retrieval in the union of all.
    """
    rows = {name: per_query.query_datasets == per_query.datasets.index(name) for name in parts}
    separate = {name: _means(per_query.separate, metrics, rows[name]) for name in parts}
    # With one dataset, the union is that dataset.
    alone = len(per_query.datasets) == 1
    spreads = {name: measure_spread(part, seed=chances.seed) for name, part in parts.items()}
    return Report(
        separate=separate,
        harmonic={metric: harmonic_mean([scores[metric] for scores in separate.values()]) for metric in metrics},
        unified=_means(per_query.unified, metrics),
        counts=counts,
        distance=distance.name,
        intervals=bootstrap_intervals(per_query, metrics, chances.resamples, chances.seed),
        unified_gap=unified_gap(per_query.by_dataset("separate"), per_query.by_dataset("unified")),
        confusion=_confusion(per_query),
        separate_spread=spreads,
        unified_spread=next(iter(spreads.values())) if alone else measure_spread(whole, seed=chances.seed),
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
