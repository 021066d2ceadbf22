"""Several pictures as one query: items that are similar to all of them on average."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.errors import ArgumentError

_OPPOSITE = 1e-3
"""Length of a mean of unit vectors below which it has no direction."""


def joined(vectors: NDArray[np.float32], geometry: Mapping[str, Any]) -> tuple[NDArray[np.float32], float]:
    """Return one query [1, E] for several vectors [M, E], and a factor for its scores.

    On the sphere it is the mean direction, and its cosine times the factor, the length of the mean of the unit vectors,
    is the mean of the cosines to the vectors. In the Poincaré ball it is the Poincaré mean, and the factor is 1. A
    single vector is its own query.

    Raises:
        ArgumentError: the vectors cancel out.
    """
    if len(vectors) == 1:
        return vectors, 1.0
    if geometry["name"] == "poincare":
        import torch

        from unimetric.geometry import PoincareBall

        ball = PoincareBall(**{name: value for name, value in geometry.items() if name != "name"})
        return ball.mean(torch.from_numpy(vectors).double()[:, None]).float().numpy(), 1.0
    wide = vectors.astype(np.float64)
    mean = (wide / np.linalg.norm(wide, axis=1, keepdims=True)).mean(axis=0, keepdims=True)
    length = float(np.linalg.norm(mean))
    if length < _OPPOSITE:
        raise ArgumentError("the pictures are as different as can be: nothing is similar to all of them; leave one out")
    return (mean / length).astype(np.float32), length
