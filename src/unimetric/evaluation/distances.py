"""What "near" means, by name: ``cosine`` and ``euclidean`` for any vectors, ``poincare`` for points of the ball."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from unimetric.errors import UserError, nearest_names
from unimetric.evaluation import euclidean, poincare
from unimetric.evaluation.cosine import (
    Preparation,
    Vectors,
    cosine_similarities,
    paired_cosines,
    prepare_rows,
    unit_rows,
)
from unimetric.geometry import PoincareBall

NAMES = ("cosine", "euclidean", "poincare")


@dataclass(frozen=True)
class Screen:
    """Two float32 matrices whose product is nearly that of the similarities, for `screen`."""

    queries: Callable[[Tensor], Tensor]
    """From Q prepared rows to [Q, W]."""
    gallery: Callable[[Tensor], Tensor]
    """From G prepared rows to [G, W], without a copy."""
    left_out: Callable[[int], float]
    """From W to how far the exact product of the two matrices may be from a similarity, in multiples of 2^-24 times the
    length of both rows."""


@dataclass(frozen=True)
class Distance:
    """How embeddings are compared."""

    name: str
    """"cosine", "euclidean" or "poincare"."""
    preparation: Preparation
    """Turns embeddings into the rows to compare, and refuses what it cannot."""
    similarities: Callable[[Tensor, Tensor], Tensor]
    """Similarities [Q, G], float64, of Q prepared rows, as float64, and G prepared rows on the same device. They do
    not depend on what else is compared at the same time."""
    paired: Callable[[Tensor, Tensor], Tensor]
    """The same numbers [P] for P pairs of prepared rows, both as float64."""
    screen: Screen
    """What nearly gives them in float32."""
    reported: Callable[[Tensor], Tensor]
    """From those similarities to the ones that people read, in the same order."""

    def prepare(self, vectors: Vectors, name: str) -> Tensor:
        """Check embeddings [N, E] and turn them into the N rows to compare; the name is for errors.

        Raises:
            UserError: not a floating-point matrix, empty, or a row that is infinite, NaN or cannot be compared.
        """
        return prepare_rows(vectors, self.preparation, name)


def make_distance(name: str = "cosine", curvature: float = 0.1, sides: Mapping[str, Vectors] | None = None) -> Distance:
    """A way to compare embeddings.

    Args:
        name: "cosine", "euclidean" or "poincare".
        curvature: For "poincare", ``c`` of the ball of radius ``1 / sqrt(c)``.
        sides: For "euclidean", all that will be compared, by what errors call it: it is scaled alike. Without it, no
            vector may be longer than 1.

    Raises:
        UserError: unknown name, a curvature out of range, or infinity or NaN in what is to be scaled.

    >>> make_distance("poincaré")
    Traceback (most recent call last):
    unimetric.errors.UserError: distance: 'poincaré'; did you mean 'poincare'? valid: cosine, euclidean, poincare
    """
    if name == "cosine":
        whole = Screen(_same, _same, lambda width: 0.0)
        return Distance(name, unit_rows, cosine_similarities, paired_cosines, whole, _same)
    if name == "euclidean":
        exponent = euclidean.common_exponent(sides or {})
        return Distance(
            name,
            partial(euclidean.euclidean_rows, exponent),
            euclidean.minus_squared_distances,
            euclidean.paired_minus_squared_distances,
            Screen(euclidean.screened_queries, euclidean.screened_gallery, euclidean.cut_error),
            partial(_minus_root, exponent),
        )
    if name != "poincare":
        raise UserError(f"distance: {name!r}; {nearest_names(str(name), NAMES)}")
    try:
        ball = PoincareBall(curvature)
    except (TypeError, ValueError):
        raise UserError(f"curvature: {curvature!r}; give a number from 1e-6 to 1e6") from None
    return Distance(
        name,
        partial(poincare.lifted_rows, ball),
        poincare.lorentz_similarities,
        poincare.paired_lorentz,
        Screen(poincare.coarse_queries, poincare.coarse_gallery, poincare.fine_error),
        partial(_minus_distance, ball),
    )


def _same(values: Tensor) -> Tensor:
    return values


def _minus_root(exponent: int, similarities: Tensor) -> Tensor:
    # From minus zero to zero.
    return 0.0 - euclidean.scaled((-similarities).clamp_min(0).sqrt(), exponent)


def _minus_distance(ball: PoincareBall, similarities: Tensor) -> Tensor:
    return (-similarities).clamp_min(1).acosh() / -math.sqrt(ball.curvature)
