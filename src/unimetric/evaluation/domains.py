"""What datasets lose by sharing one space: domain confusion and unified gap."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


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
