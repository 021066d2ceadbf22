"""95 % intervals of all headline numbers, from what each query found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from unimetric.evaluation.bootstrap import LEVEL, Floats, harmonic_means, percentile_interval, resampled_means
from unimetric.evaluation.per_query import PerQuery

Interval = tuple[float, float]


@dataclass(frozen=True)
class Intervals:
    """Lower and upper ends of bootstrap intervals, see `bootstrap`; the keys are those of the `Report`."""

    level: float
    """The share of resamples within an interval."""
    resamples: int
    """How many there were."""
    seed: int
    """What they were drawn with."""
    separate: Mapping[str, Mapping[str, Interval]]
    """For each dataset and metric."""
    harmonic: Mapping[str, Interval]
    """For each metric, of the harmonic mean."""
    unified: Mapping[str, Interval]
    """For each metric."""
    unified_gap: Mapping[str, Interval]
    """For each dataset, of its separate minus its unified Recall@1, each resample holding both."""

    def to_dict(self) -> dict[str, Any]:
        """As plain dicts, lists, floats and ints, ready for `json.dumps`."""
        return {
            "level": self.level,
            "resamples": self.resamples,
            "seed": self.seed,
            "separate": {name: _lists(intervals) for name, intervals in self.separate.items()},
            "harmonic": _lists(self.harmonic),
            "unified": _lists(self.unified),
            "unified_gap": _lists(self.unified_gap),
        }


def bootstrap_intervals(per_query: PerQuery, metrics: Sequence[str], resamples: int, seed: int) -> Intervals:
    """Resample the queries with a positive within each dataset, the same ones for all metrics and protocols.

    Args:
        per_query: What each query found.
        metrics: M names of scores.
        resamples: How many resamples, at least 1.
        seed: The same seed draws the same queries.
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
    """For resampled values [B, M]."""
    return {metric: percentile_interval(drawn[:, i]) for i, metric in enumerate(metrics)}


def _lists(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in intervals.items()}
