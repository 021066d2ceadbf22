"""An order of vectors in which near ones lie close together, so that a walk reads few pages of memory."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from unimetric.search.memory.blocks import unit_vectors

_LEAF = 32
"""Vectors that are not divided any further."""
_NUMBERS = 16
"""Numbers of a vector by which it is placed: its components along the directions in which all spread most."""
_SAMPLES = 4096, 256
"""Vectors from which the directions of all, and of a part, are computed."""
_STEPS = 3
_TILE = 1 << 16
_SEED = 0


def near_together(
    vectors: NDArray[np.float32],
    inverse: NDArray[np.float32],
    places: NDArray[np.intp],
) -> NDArray[np.intp]:
    """Return the places [n] of some of the vectors [N, E] in an order of locality.

    The vectors are halved again and again, at the median along the direction in which they spread most.

    Args:
        vectors: All vectors.
        inverse: Their inverse lengths, [N].
        places: Those to order.
    """
    random = np.random.default_rng(_SEED)
    parts = _components(vectors, inverse, places, random)
    order = np.arange(len(places))
    pending = [(0, len(order))]
    while pending:
        start, end = pending.pop()
        if end - start <= _LEAF:
            continue
        some = order[start:end]
        along = parts[some] @ _widest(parts[random.choice(some, _SAMPLES[1])])
        middle = len(some) // 2
        order[start:end] = some[np.argpartition(along, middle)]
        pending += [(start, start + middle), (start + middle, end)]
    return places[order]


def _components(
    vectors: NDArray[np.float32], inverse: NDArray[np.float32], places: NDArray[np.intp], random: np.random.Generator
) -> NDArray[np.float32]:
    """Return the components of vectors along their first principal directions, [n, `_NUMBERS`] or fewer numbers."""
    if not len(places):
        return np.empty((0, 1), np.float32)
    some = unit_vectors(vectors, inverse, random.choice(places, min(len(places), _SAMPLES[0])))
    spread = some - some.mean(axis=0)
    axes = np.linalg.eigh(spread.T @ spread)[1][:, -_NUMBERS:]
    tiles = (places[first : first + _TILE] for first in range(0, len(places), _TILE))
    return np.concatenate([unit_vectors(vectors, inverse, tile) @ axes for tile in tiles])


def _widest(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return about the direction [D] in which points [n, D] spread most, by a few steps of the power method."""
    spread = points - points.mean(axis=0)
    direction = spread[np.argmax(np.einsum("ij,ij->i", spread, spread))]
    for _ in range(_STEPS):
        direction = spread.T @ (spread @ direction)
        direction /= max(float(np.linalg.norm(direction)), float(np.finfo(np.float32).tiny))
    return np.asarray(direction)
