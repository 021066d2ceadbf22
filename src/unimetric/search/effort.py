"""Search effort of an approximate index, chosen by measuring its recall on the database's own rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np

from unimetric.search.scoring import Vectors, unit, vectors_of
from unimetric.search.stores.base import Effort, Store

EXACT_BELOW = 50_000
"""With fewer rows, every query is compared with all of them."""

RECALL = 0.98
"""Minimum share of the exact nearest rows that a search finds."""

_AIM = 0.985
"""The recall to reach in the measurement: rows of the database are easier queries than new vectors."""

_DEPTHS = {10: 256, 100: 64, 1000: 16}
"""The numbers of neighbours at which recall is measured, each with its number of queries."""

_REFINE = (2, 4, 8, 16, 32, 64)
_MOST_CANDIDATES = 8_000
"""Maximum number of rows per query that are compared by their full vectors."""

_RecallOf: TypeAlias = "Callable[[Effort], tuple[float, float]]"

_SEED = 0
_SAME = 1e-5
"""Cosines that differ by less are a tie, and either row counts as found."""


@dataclass(frozen=True)
class MeasuredEffort:
    """The smallest effort that reaches `RECALL` for the k nearest rows, with a safety margin, and its mean recall.

    The effort is None if none reached the recall, so that the search is exact, and the recall 1.
    """

    k: int
    effort: Effort | None
    recall: float

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> MeasuredEffort:
        """Read one from a database's record, where it is as `asdict` returns it."""
        effort = None if values["effort"] is None else Effort(**values["effort"])
        return cls(int(values["k"]), effort, float(values["recall"]))


def partitions(kind: str, rows: int) -> int:
    """Return the number of parts that the vectors are divided into."""
    if kind == "hnsw":
        return max(1, round(rows / 250_000))
    return max(1, min(math.isqrt(rows), rows // 64))


def chosen_effort(measured: Sequence[MeasuredEffort], k: int) -> Effort | None:
    """Return the effort for the k nearest rows, from efforts sorted by k; None for an exact search."""
    own = next((entry for entry in measured if entry.k >= k), None)
    if own is None or own.effort is None:
        return None
    # Compare as many rows by their full vectors as for the k that was measured.
    return replace(own.effort, refine=math.ceil(own.effort.refine * own.k / k))


def effort_under_condition(effort: Effort, k: int, parts: int) -> Effort:
    """Return the effort for a search under a condition that selects a share of the rows.

    The selected rows may be far from the query, so every partition is searched. Compressed vectors are less exact for
    far rows, so more rows are compared by their full vectors: 640 found 0.998 of the 10 nearest where the usual effort
    found 0.87 (``benchmarks/search.py``, half of 100,000 rows, on one side of the space).
    """
    refine = max(math.ceil(640 / k), 4 * effort.refine)
    return Effort(parts, min(refine, max(effort.refine, _MOST_CANDIDATES // k)), 4 * effort.candidates)


def measure_efforts(store: Store, kind: str, parts: int) -> list[MeasuredEffort]:
    """Search the new index of a kind and of so many partitions for a seeded sample of its own rows.

    There is more effort until enough is found.
    """
    queries = _sample(store, max(_DEPTHS.values()))
    best = _nearest_cosines(store, queries, max(_DEPTHS) + 1)
    return [
        _least_effort(partial(_recall, store, queries[:count], best[:count], k), kind, parts, k)
        for k, count in _DEPTHS.items()
    ]


def _recall(store: Store, queries: Vectors, best: Vectors, k: int, effort: Effort) -> tuple[float, float]:
    """Return the mean recall of an effort, without a query's own row, and the same less two standard errors."""
    k = min(k, best.shape[1] - 1)
    answers = store.nearest(queries, k + 1, ["id"], None, effort)
    enough = best[:, k] - _SAME
    found = [
        int((1 - answer["_distance"].to_numpy() >= least).sum()) for answer, least in zip(answers, enough, strict=True)
    ]
    shares = np.clip(np.array(found) - 1, 0, k) / k
    mean = float(np.mean(shares))
    return mean, mean - 2 * float(np.std(shares)) / math.sqrt(len(shares))


def _least_effort(recall: _RecallOf, kind: str, parts: int, k: int) -> MeasuredEffort:
    """Find the smallest reach (partitions, or nodes of a graph), then the smallest refinement that finds enough."""
    finest = [refine for refine in _REFINE if refine * k <= _MOST_CANDIDATES]
    if kind == "hnsw":
        wide = [Effort(parts, finest[-1], nodes) for nodes in (32, 64, 96, 128, 192, 256, 512, 1024, 2048)]
    else:
        wide = [Effort(probes, finest[-1]) for probes in _probes(parts)]
    # Slightly more than needed, because a smaller refinement reduces the recall again.
    reach = _first(recall, wide, _AIM + 0.25 * (1 - _AIM)) or _first(recall, wide[-1:], _AIM)
    if reach is None:
        return MeasuredEffort(k, None, 1.0)
    effort, mean = _first(recall, [replace(reach[0], refine=refine) for refine in finest[:-1]], _AIM) or reach
    return MeasuredEffort(k, effort, round(mean, 4))


def _first(recall: _RecallOf, efforts: Sequence[Effort], wanted: float) -> tuple[Effort, float] | None:
    """Bisect efforts with increasing recall for the first that finds enough; return it with its recall."""
    low, high = 0, len(efforts)
    found = None
    while low < high:
        middle = (low + high) // 2
        mean, certain = recall(efforts[middle])
        if certain >= wanted:
            high, found = middle, (efforts[middle], mean)
        else:
            low = middle + 1
    return found


def _probes(parts: int) -> list[int]:
    """Return numbers of partitions to search, each larger by half, up to all."""
    probes = [min(4, parts)]
    while probes[-1] < parts:
        probes.append(min(parts, math.ceil(probes[-1] * 1.5)))
    return probes


def _sample(store: Store, count: int) -> Vectors:
    """Return unit vectors [Q, E] of distinct rows: the same ones for the same rows."""
    ids = sorted(store.rows(["id"])["id"].to_pylist())
    places = np.random.default_rng(_SEED).choice(len(ids), min(count, len(ids)), replace=False)
    return unit(vectors_of(store.rows_of([ids[place] for place in places], ["vector"])["vector"]))


def _nearest_cosines(store: Store, queries: Vectors, count: int) -> Vectors:
    """Return the largest cosines of each query with all rows, [Q, count] or fewer, descending."""
    best = np.empty((len(queries), 0), np.float32)
    for block in store.blocks(["vector"]):
        cosines = queries @ unit(vectors_of(block["vector"])).T
        best = np.concatenate([best, cosines], axis=1)
        if best.shape[1] > count:
            best = -np.partition(-best, count - 1, axis=1)[:, :count]
    return -np.sort(-best, axis=1)
