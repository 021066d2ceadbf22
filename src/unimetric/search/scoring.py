"""Scores and order of answers: the cosine in float64, equal scores by id.

Every way of searching ends here, so that an item has the same score, to the bit, whichever way found it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unimetric.errors import ArgumentError

if TYPE_CHECKING:
    from unimetric.geometry import PoincareBall

Vectors: TypeAlias = "NDArray[np.float32]"
"""Vectors [N, E], or one of them, [E]."""

SPARE = 8
"""Minimum number of candidates beyond k, so that ties and rounding at the border are seen."""

_OPPOSITE = 1e-3
"""Length of a mean of unit vectors below which it has no direction."""

_LEAST = float(np.finfo(np.float64).tiny)
"""Length that divides the product of a row of zeros; those of all other rows are longer."""


def cosines(query: Vectors, rows: Vectors) -> NDArray[np.float64]:
    """Return the cosine of a query [E] with each row [N, E], or of each of N queries with its row, from -1 to 1.

    The value depends on the two vectors alone, not on the other rows; it is exactly 1 for equal ones. A row of zeros
    has the cosine 0, one that is not finite -1.
    """
    wide = rows.astype(np.float64)
    asked = (query if query.ndim == 2 else query[None]).astype(np.float64)
    total = np.add.reduce
    with np.errstate(invalid="ignore"):
        # The square root of a rounded square is the number itself, hence the exact 1.
        lengths = np.sqrt(total(wide * wide, axis=1) * total(asked * asked, axis=1))
        found = total(wide * asked, axis=1) / np.maximum(lengths, _LEAST)
        # Of -1 and what is not a number, fmax is -1.
        return np.asarray(np.fmin(np.fmax(found, -1.0), 1.0))


def unit(vectors: NDArray[np.floating]) -> Vectors:
    """Return rows scaled to length 1; rows of zeros stay so."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(lengths, np.finfo(np.float32).tiny), np.float32)


def rounding(size: int) -> float:
    """Return a bound for the error of a cosine of two vectors [size] that is computed in float32."""
    return (size + 16) * 2.0**-23


def best_first(scores: NDArray[np.float64], ids: Sequence[str], k: int) -> NDArray[np.intp]:
    """Return the places of the k highest scores, the highest first; of equal ones the lowest id first."""
    kept = np.arange(len(scores))
    if len(scores) > 4 * k + 64:
        # What is left beside the k highest are ties at the border.
        kept = np.flatnonzero(scores >= np.partition(scores, len(scores) - k)[len(scores) - k])
    values = scores[kept].tolist()
    ranked = sorted(zip(values, kept.tolist(), strict=True), key=lambda entry: (-entry[0], ids[entry[1]]))
    return np.array([place for _, place in ranked[:k]], np.intp)


def vectors_of(column: Any) -> Vectors:
    """Return a column of stored vectors, an Arrow array of lists, as float32 [N, E]."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return np.asarray(flat, np.float32).reshape(len(column), column.type.list_size)


def vector_column(vectors: NDArray[Any]) -> pa.FixedSizeListArray:
    """Return vectors [N, E] as an Arrow array of lists; the inverse of `vectors_of` for float32."""
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(vectors).ravel()), vectors.shape[1])


def ball_of(geometry: Mapping[str, Any]) -> PoincareBall:
    """Return the ball of a hyperbolic model, whose ``to_dict`` a database records."""
    # torch takes seconds to load.
    from unimetric.geometry import PoincareBall

    return PoincareBall(**{name: value for name, value in geometry.items() if name != "name"})


def joined(vectors: Vectors, geometry: Mapping[str, Any]) -> tuple[Vectors, float]:
    """Return one query [1, E] for several vectors [M, E], and a factor for its scores.

    On the sphere it is the mean direction, and its cosine times the factor, the length of the mean of the unit vectors,
    is the mean of the cosines to the vectors. In the Poincaré ball it is the Poincaré mean, and the factor is 1. A
    single vector is its own query. Vectors that cancel out are an `ArgumentError`.
    """
    if len(vectors) == 1:
        return vectors, 1.0
    if geometry["name"] == "poincare":
        import torch

        return ball_of(geometry).mean(torch.from_numpy(vectors).double()[:, None]).float().numpy(), 1.0
    wide = vectors.astype(np.float64)
    mean = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).mean(axis=0, keepdims=True)
    length = float(np.linalg.norm(mean))
    if length < _OPPOSITE:
        raise ArgumentError("the pictures are as different as can be: nothing is similar to all of them; leave one out")
    return (mean / length).astype(np.float32), length
