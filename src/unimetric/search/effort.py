"""How hard an approximate index is searched: by its kind and size, as the table itself says."""

from __future__ import annotations

import math
from typing import Any


class Effort:
    """How hard an approximate index is searched: what trades recall for time.

    Args:
        probes: Partitions to look into.
        refine: Candidates per wanted row that are compared by their full vectors.
        candidates: Of a graph, how many nodes to keep while walking it, per wanted row and at least.
    """

    def __init__(self, probes: int, refine: int, candidates: int | None = None) -> None:
        self.probes = probes
        self.refine = refine
        self.candidates = candidates

    def apply(self, query: Any, k: int) -> Any:
        """A query that is answered with this effort."""
        query = query.nprobes(self.probes).refine_factor(self.refine)
        return query if self.candidates is None else query.ef(max(self.candidates, 2 * k * self.refine))


def partitions(kind: str, rows: int) -> int:
    """How many parts the vectors are divided into."""
    if kind == "hnsw":
        return max(1, round(rows / 250_000))
    return max(1, min(math.isqrt(rows), rows // 64))


def effort_for(index_type: str, rows: int) -> Effort:
    """How hard to search an index of a type, in LanceDB's words, with so many rows in it.

    An index that has grown since it was made has fewer partitions than this supposes; it is searched the harder.
    """
    if "hnsw" in index_type.lower():
        return Effort(partitions("hnsw", rows), 2, 64)
    return Effort(max(8, partitions("ivf-pq", rows) // 40), 8)
