"""What "near" means, by name: ``cosine`` for unit vectors, ``poincare`` for points of the Poincaré ball."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from unimetric.errors import UserError, nearest_names
from unimetric.evaluation.cosine import Vectors, cosine_similarities, unit_vectors
from unimetric.evaluation.poincare import hyperboloid_rows, lorentz_similarities
from unimetric.geometry import PoincareBall


@dataclass(frozen=True)
class Distance:
    """How embeddings are compared."""

    name: str
    """"cosine" or "poincare"."""
    prepare: Callable[[Vectors, str], Tensor]
    """Checks embeddings [N, E] and turns them into the N rows to compare; the string names them in errors."""
    similarities: Callable[[Tensor, Tensor], Tensor]
    """Similarities [Q, G], float64, of Q prepared rows, as float64, and G prepared rows on the same device. They do
    not depend on what else is compared at the same time."""
    reported: Callable[[Tensor], Tensor]
    """From those similarities to the ones that people read, in the same order."""


def make_distance(name: str = "cosine", curvature: float = 0.1) -> Distance:
    """A way to compare embeddings.

    Args:
        name: "cosine" or "poincare".
        curvature: For "poincare", ``c`` of the ball of radius ``1 / sqrt(c)``.

    Raises:
        UserError: unknown name, or a curvature out of range.

    >>> make_distance("poincaré")
    Traceback (most recent call last):
    unimetric.errors.UserError: distance: 'poincaré'; did you mean 'poincare'? valid: cosine, poincare
    """
    if name == "cosine":
        return Distance(name, unit_vectors, cosine_similarities, lambda cosines: cosines)
    if name != "poincare":
        raise UserError(f"distance: {name!r}; {nearest_names(str(name), ['cosine', 'poincare'])}")
    try:
        ball = PoincareBall(curvature)
    except (TypeError, ValueError):
        raise UserError(f"curvature: {curvature!r}; give a number from 1e-6 to 1e6") from None
    return Distance(name, partial(hyperboloid_rows, ball), lorentz_similarities, partial(_minus_distance, ball))


def _minus_distance(ball: PoincareBall, similarities: Tensor) -> Tensor:
    return (-similarities).clamp_min(1).acosh() / -math.sqrt(ball.curvature)
