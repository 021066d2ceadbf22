"""Maps from one model's embeddings to another's, fitted on images that both have embedded.

A map moves a stored vector into the new model's space, where a query of the new model meets it. Moving the rows and not
the query keeps each row's length under control, which a query's map cannot (cf. Drift-Adapter, arXiv 2509.23471, whose
maps move the query).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from unimetric.search.scoring import Vectors, unit

Map = Callable[[Vectors], Vectors]
"""Moves old vectors [N, D] to unit vectors [N, E] of the new model's space."""

FOLDS = 5
LARGEST = 4096
"""Maximum number of pairs that a map is fitted on: a kernel's cost grows with their cube."""

_BLOCK = 8192


def orthogonal(old: Vectors, new: Vectors) -> Map:
    """Fit the rotation that brings old vectors [N, D] nearest to new ones [N, E] (Procrustes).

    Where D and E differ it is the matrix with orthonormal rows or columns that does.
    """
    left, _, right = np.linalg.svd(old.T.astype(np.float64) @ new, full_matrices=False)
    matrix = (left @ right).astype(np.float32)
    return lambda vectors: unit(unit(vectors) @ matrix)


def ridge(old: Vectors, new: Vectors, penalty: float = 1.0) -> Map:
    """Fit the linear map with the least squared error and a penalty on its squared entries."""
    inputs = unit(old).astype(np.float64)
    gram = inputs.T @ inputs + penalty * np.eye(inputs.shape[1])
    matrix = np.linalg.solve(gram, inputs.T @ new).astype(np.float32)
    return lambda vectors: unit(unit(vectors) @ matrix)


def kernel(old: Vectors, new: Vectors, width: float = 1.0, penalty: float = 0.1) -> Map:
    """Fit kernel ridge regression with the kernel ``exp(-width |x - y|²)`` of unit vectors."""
    inputs = unit(old)
    gram = np.exp(-width * np.maximum(0, 2 - 2 * inputs @ inputs.T)).astype(np.float64)
    weights = np.linalg.solve(gram + penalty * np.eye(len(inputs)), new.astype(np.float64)).astype(np.float32)

    def move(vectors: Vectors) -> Vectors:
        rows = unit(vectors)
        parts = [
            np.exp(-width * np.maximum(0, 2 - 2 * rows[start : start + _BLOCK] @ inputs.T)) @ weights
            for start in range(0, len(rows), _BLOCK)
        ]
        return unit(np.concatenate(parts)) if parts else np.empty((0, new.shape[1]), np.float32)

    return move


Fit = Callable[[Vectors, Vectors], Map]

KINDS: Mapping[str, Fit] = {"orthogonal": orthogonal, "ridge": ridge, "kernel": kernel}
"""The kinds of maps by name. A network for what `ridge` leaves over was worse (``benchmarks/upgrade.py``)."""


@dataclass(frozen=True)
class FittedMap:
    """A map of one of `KINDS`, with the `likeness` of held-out images for every kind that was compared."""

    kind: str
    move: Map
    likeness: Mapping[str, float]


def fit_map(old: Vectors, new: Vectors) -> FittedMap:
    """Fit every kind of map on pairs [N, D] and [N, E], and keep the one that moves held-out images nearest.

    At most `LARGEST` pairs are used, drawn at random.
    """
    chosen = np.random.default_rng(0).permutation(len(old))[:LARGEST]
    old, new = unit(old[chosen]), unit(new[chosen])
    if len(old) < 2 * FOLDS:
        # Too few to hold any out: a rotation has the least to fit.
        kind = next(iter(KINDS))
        return FittedMap(kind, KINDS[kind](old, new), {})
    alike = {name: likeness(held_out(old, new, fit), new) for name, fit in KINDS.items()}
    best = max(alike, key=lambda name: alike[name])
    return FittedMap(best, KINDS[best](old, new), alike)


def held_out(old: Vectors, new: Vectors, fit: Fit) -> Vectors:
    """Return each old vector moved by a map that was fitted without its fold, [N, E]."""
    folds = np.arange(len(old)) % FOLDS
    moved = np.empty(new.shape, np.float32)
    for fold in range(FOLDS):
        out = folds == fold
        moved[out] = fit(old[~out], new[~out])(old[out])
    return moved


def likeness(moved: Vectors, new: Vectors) -> float:
    """Return the mean cosine of moved unit vectors [N, E] with the true ones of the same images.

    Among maps of different kinds it goes with the Recall@1 of class retrieval. Finding the same image among the moved
    ones does not: a rotation is best at that and worst at class retrieval (``benchmarks/upgrade.py``).
    """
    return float(np.mean(np.sum(moved * new, axis=1)))
