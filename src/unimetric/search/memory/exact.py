"""Exact nearest vectors in memory: float32 products select candidates, float64 ranks them.

A product in float32 is off by at most `rounding`. Whatever is within twice that of the k-th best product is a
candidate, so that no vector is missed.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimetric.search.scoring import Vectors, rounding

_TILE = 1 << 16
"""Rows that are multiplied at once."""
_QUERIES = 16
_GROUP = 64
_SPARSE = 0.25
"""Below this share of chosen rows, they are gathered instead of multiplying all."""


@dataclass(frozen=True, eq=False)
class Span:
    """Vectors to compare with queries.

    Attributes:
        vectors: Float32 [N, E].
        inverse: One over their lengths, float32 [N]; infinite for those that are always candidates.
        offset: Added to the places of candidates.
        chosen: The places of the rows to compare, ascending; None for all.
    """

    vectors: Vectors
    inverse: NDArray[np.float32]
    offset: int = 0
    chosen: NDArray[np.intp] | None = None


def candidates(queries: Vectors, spans: list[Span], k: int) -> list[NDArray[np.intp]]:
    """Return for every query [Q, E] places among which are those of the k highest cosines."""
    wide = queries.astype(np.float64)
    unit = (wide / np.sqrt((wide * wide).sum(axis=1, keepdims=True))).astype(np.float32)
    margin = 2 * rounding(queries.shape[1])
    found: list[NDArray[np.intp]] = []
    for start in range(0, len(unit), _QUERIES):
        screened = [_screen(unit[start : start + _QUERIES], span) for span in spans]
        products = np.concatenate([part for part, _ in screened], axis=1)
        places = np.concatenate([part for _, part in screened])
        found += [places[_highest(row, k, margin)] for row in products]
    return found


def _screen(unit: Vectors, span: Span) -> tuple[Vectors, NDArray[np.intp]]:
    """Return the products of unit queries with the chosen vectors, [Q, n], and the places of these, [n]."""
    size = len(span.vectors)
    places = np.arange(size) if span.chosen is None else span.chosen
    sparse = len(places) < _SPARSE * size
    products = np.empty((len(unit), len(places)), np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        done = 0
        for start in range(0, len(places) if sparse else size, _TILE):
            rows: NDArray[np.intp] | slice = places[start : start + _TILE] if sparse else slice(start, start + _TILE)
            inverse = span.inverse[rows]
            part = (unit @ span.vectors[rows].T) * inverse
            part[:, np.isinf(inverse)] = np.inf
            if not sparse and span.chosen is not None:
                first, last = np.searchsorted(places, [start, start + _TILE])
                part = part[:, places[first:last] - start]
            products[:, done : done + part.shape[1]] = part
            done += part.shape[1]
    return products, places + span.offset


def _highest(products: NDArray[np.float32], k: int, margin: float) -> NDArray[np.intp]:
    """Return the places of all products within a margin of the k-th highest finite one, and of the infinite ones."""
    if len(products) <= k:
        return np.arange(len(products))
    floor = -np.inf
    groups = len(products) // _GROUP
    if groups > 4 * k:
        # The k-th highest maximum of groups is no higher than the k-th highest product, and quicker to find.
        maxima = products[: groups * _GROUP].reshape(groups, _GROUP).max(axis=1)
        floor = _kth(maxima, k) - margin
    kept = np.flatnonzero(products >= floor)
    return kept[products[kept] >= _kth(products[kept], k) - margin]


def _kth(values: NDArray[np.float32], k: int) -> float:
    finite = values[values < np.inf]
    if len(finite) <= k:
        return -np.inf
    return float(np.partition(finite, len(finite) - k)[len(finite) - k])
