"""Retrieval by the definitions, in plain Python: integers for similarities, fractions for scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Image:
    vector: tuple[float, ...]
    label: Hashable
    dataset: Hashable
    identity: Hashable = None


def on_grid(vector: Sequence[float]) -> list[int]:
    length = math.hypot(*vector)
    return [round(x / length * 2**24) for x in vector]


def similarity(one: Sequence[float], other: Sequence[float]) -> Fraction:
    return Fraction(sum(a * b for a, b in zip(on_grid(one), on_grid(other), strict=True)), 2**48)


def ranking(query: Image, gallery: Sequence[Image]) -> list[int]:
    """Gallery rows from the most to the least similar, without the query's own image."""
    rows = [g for g, item in enumerate(gallery) if item.identity is None or item.identity != query.identity]
    return sorted(rows, key=lambda g: (-similarity(query.vector, gallery[g].vector), g))


def scores_of(
    query: Image, gallery: Sequence[Image], ks: Sequence[int], whole_ranking: bool = False
) -> dict[str, Fraction] | None:
    """None for a query that no gallery item could answer."""
    right = [(gallery[g].dataset, gallery[g].label) == (query.dataset, query.label) for g in ranking(query, gallery)]
    r = right.count(True)
    if r == 0:
        return None
    scores = {f"recall@{k}": Fraction(True in right[:k]) for k in ks}
    scores["map@r"] = sum((Fraction(right[:i].count(True), i) for i in range(1, r + 1) if right[i - 1]), Fraction()) / r
    scores["r-precision"] = Fraction(right[:r].count(True), r)
    if whole_ranking:
        ranks = [i for i, hit in enumerate(right, start=1) if hit]
        scores["map"] = sum((Fraction(right[:i].count(True), i) for i in ranks), Fraction()) / r
    return scores


def mean_scores(
    queries: Sequence[Image], gallery: Sequence[Image], ks: Sequence[int], whole_ranking: bool = False
) -> dict[str, Fraction] | None:
    """None if no query can be scored."""
    scored = [scores for query in queries if (scores := scores_of(query, gallery, ks, whole_ranking))]
    if not scored:
        return None
    return {metric: sum((scores[metric] for scores in scored), Fraction()) / len(scored) for metric in scored[0]}


def harmonic_mean(values: Sequence[Fraction]) -> Fraction:
    return Fraction(0) if 0 in values else len(values) / sum((1 / value for value in values), Fraction())
