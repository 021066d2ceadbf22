"""Cosine, Euclidean and hyperbolic distance, by name, without rounding errors that depend on tiles, threads or devices.

The last bits of a floating-point matrix product depend on the shapes of its operands, the number of
threads and the device: twins in a gallery then differ in similarity when they fall into different tiles,
and the order of a tie is chance. The remedy is fixed-point arithmetic. Every vector is divided by its norm
and rounded to multiples of 2^-24. A product of two such entries is a multiple of 2^-48, and every partial
sum of a dot product is below 2, so float64, with its 53 bits, holds all of them exactly: in whatever order
they are added, the result is the same. A float64 matrix product takes twice as long as a float32 one, so only what a
float32 product cannot decide is computed in float64: see `screen`.

The rounding moves a cosine by about 2e-8, less than the rounding error of a float32 product.

For Euclidean distances, both sides are multiplied by one power of two, so that no vector is longer than 1, and rounded
to multiples of 2^-24. Products of two entries are multiples of 2^-48, and so is ``2 x.y - |x|^2 - |y|^2 = -|x - y|^2``,
of which every partial sum is below 8: float64 holds all of them exactly. The nearest points have the highest values.
The rounding moves a coordinate by at most 2^-24 (6e-8) times the length of the longest vector, and a distance by at
most ``sqrt(E) 2^-23`` times that length. Points that are nearer to each other than that can tie: one vector that is a
thousand times longer than all others costs these three of their seven digits.

For hyperbolic distances see `poincare`.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unimetric.errors import UserError, nearest_names
from unimetric.evaluation import poincare
from unimetric.evaluation.vectors import GRID, Preparation, Vectors, blocks
from unimetric.geometry import PoincareBall

NAMES = ("cosine", "euclidean", "poincare")


@dataclass(frozen=True)
class Screen:
    """Two float32 matrices whose product is nearly that of the similarities, for `screen`."""

    queries: Callable[[Tensor], Tensor]
    """Map Q prepared rows to [Q, W]."""
    gallery: Callable[[Tensor], Tensor]
    """Map G prepared rows to [G, W], without a copy."""
    left_out: Callable[[int], float]
    """Map W to a bound on the difference between the exact product of the two matrices and the similarity, in multiples
    of 2^-24 times the length of both rows."""


@dataclass(frozen=True)
class Distance:
    """A distance: how it prepares rows, compares them and reports the result."""

    name: str
    """"cosine", "euclidean" or "poincare"."""
    preparation: Preparation
    """Turns embeddings into the rows to compare; raises for rows that cannot be compared."""
    similarities: Callable[[Tensor, Tensor], Tensor]
    """Similarities [Q, G], float64, of Q prepared rows, as float64, and G prepared rows on the same device. They do
    not depend on what else is compared at the same time."""
    paired: Callable[[Tensor, Tensor], Tensor]
    """The same numbers [P] for P pairs of prepared rows, both as float64."""
    screen: Screen
    """Approximates the similarities in float32."""
    reported: Callable[[Tensor], Tensor]
    """Maps those similarities to the reported ones, in the same order."""

    def prepare(self, vectors: Vectors, name: str = "vectors") -> Tensor:
        """Check embeddings [N, E] and turn them into the N rows to compare, float32 on the CPU.

        The arithmetic is done on the CPU, whatever the input's device, so that all devices start from the same bits.
        Equal embeddings give equal rows. The name is for errors.

        Raises:
            UserError: not a floating-point matrix, empty, or a row that is infinite, NaN or cannot be compared.
        """
        prepared = torch.empty(0)
        for rows, block in blocks(vectors, name):
            part = self.preparation(block, rows.start, name)
            if not rows.start:
                prepared = torch.empty(len(vectors), part.shape[1])
            prepared[rows] = part
        return prepared


def make_distance(name: str = "cosine", curvature: float = 0.1, sides: Mapping[str, Vectors] | None = None) -> Distance:
    """Return the distance with this name.

    Args:
        name: "cosine", "euclidean" or "poincare".
        curvature: For "poincare", ``c`` of the ball of radius ``1 / sqrt(c)``.
        sides: For "euclidean", every matrix that will be compared, by its name in errors: all get the same scale.
            Without it, no vector may be longer than 1.

    Raises:
        UserError: unknown name, a curvature out of range, or infinity or NaN in ``sides``.

    >>> make_distance("poincaré")
    Traceback (most recent call last):
    unimetric.errors.UserError: distance: 'poincaré'; did you mean 'poincare'? valid: cosine, euclidean, poincare
    """
    if name == "cosine":
        whole = Screen(_same, _same, lambda width: 0.0)
        return Distance(name, unit_rows, cosine_similarities, paired_cosines, whole, _same)
    if name == "euclidean":
        exponent = common_exponent(sides or {})
        return Distance(
            name,
            partial(euclidean_rows, exponent),
            minus_squared_distances,
            paired_minus_squared_distances,
            Screen(screened_queries, screened_gallery, cut_error),
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
    # `0.0 -` turns minus zero into zero.
    return 0.0 - scaled((-similarities).clamp_min(0).sqrt(), exponent)


def _minus_distance(ball: PoincareBall, similarities: Tensor) -> Tensor:
    return (-similarities).clamp_min(1).acosh() / -math.sqrt(ball.curvature)


def unit_rows(block: Tensor, first_row: int, name: str) -> Tensor:
    """Divide finite float64 rows [N, E] by their norms and round them to the grid: multiples of 2^-24 in [-1, 1].

    Rows that differ by a factor that is a power of two give equal unit vectors. ``first_row`` and ``name`` are for
    errors.

    Raises:
        UserError: a row is zero.

    >>> unit_rows(torch.tensor([[3.0, 0.0], [0.5, 0.5]]).double(), 0, "vectors")
    tensor([[1.0000, 0.0000],
            [0.7071, 0.7071]])
    """
    largest = block.abs().amax(dim=1, keepdim=True)
    if not bool(largest.all()):
        row = first_row + int((largest[:, 0] == 0).nonzero()[0])
        raise UserError(f"{name}: row {row} is all zeros, which has no cosine; drop it or fix the model")
    # Largest entry 1 first: no square can overflow or vanish in the norm.
    block = block / largest
    block /= torch.linalg.vector_norm(block, dim=1, keepdim=True)
    return block.div_(GRID).round_().mul_(GRID).float()


def cosine_similarities(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the exact dot products [Q, G] of rows on the grid: cosines, up to the rounding of the rows.

    Queries [Q, E] as float64 and gallery [G, E] are from `unit_rows`, on one device, which the float64 result is on
    too. It lies in [-1, 1] up to 1e-6.
    """
    similarities = queries @ gallery.to(torch.float64).T  # (Q, G)
    if similarities.is_cuda:
        # CUDA's topk compares bit patterns and would order 0.0 and -0.0; adding 0.0 makes them equal.
        similarities += 0.0
    return similarities


def paired_cosines(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return `cosine_similarities` of query i and gallery item i only: [P] from [P, E] and [P, E], as float64."""
    return (queries * gallery).sum(dim=1) + 0.0


def common_exponent(sides: Mapping[str, Vectors]) -> int:
    """Return the least n with every norm below 2^n; 0 where all vectors are zero.

    Raises:
        UserError: not floating-point matrices, or a number is infinite or NaN.

    >>> common_exponent({"vectors": torch.tensor([[3.0, 4.0]])})
    3
    """
    found = [_exponent(block) for name, vectors in sides.items() for _, block in blocks(vectors, name)]
    return max((exponent for exponent in found if exponent is not None), default=0)


def _exponent(block: Tensor) -> int | None:
    largest = block.abs().amax()
    if largest == 0:
        return None
    # Largest entry below 1 first: no square can overflow or vanish in the norm.
    first = int(torch.frexp(largest).exponent)
    norms = torch.linalg.vector_norm(scaled(block, -first), dim=1)
    return first + int(torch.frexp(norms.amax()).exponent)


def scaled(values: Tensor, exponent: int) -> Tensor:
    """Return the values times 2^exponent, in two steps so that the factor cannot overflow."""
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)


def euclidean_rows(exponent: int, block: Tensor, first_row: int, name: str) -> Tensor:
    """Scale finite float64 points [N, E], round them to the grid and append their squared norms.

    The exponent is from `common_exponent`; ``first_row`` and ``name`` are unused, since every finite row has a
    distance. Returns float32 [N, E + 3]: the point, its squared norm, 1, and the rounding error of that squared norm.
    """
    points = scaled(block, -exponent).div_(GRID).round_().mul_(GRID)
    squares = points.square().sum(dim=1, keepdim=True)
    cut = squares.float().double()
    return torch.cat([points, cut, torch.ones_like(cut), squares - cut], dim=1).float()


def minus_squared_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return ``-|x - y|^2`` of scaled points, exactly, [Q, G]: the higher, the nearer.

    Queries [Q, E + 3] as float64 and gallery [G, E + 3] are from `euclidean_rows`, on one device, which the float64
    result is on too. It lies between -4 and 0 up to 1e-5.
    """
    gallery = gallery.to(torch.float64)
    similarities = (2 * queries[:, :-3]) @ gallery[:, :-3].T  # (Q, G)
    similarities -= _squares(queries)[:, None]
    similarities -= _squares(gallery)
    # CUDA's topk compares bit patterns and would order 0.0 and -0.0; adding 0.0 makes them equal.
    return similarities.add_(0.0)


def paired_minus_squared_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return the same for query i and gallery item i only: [P] from [P, E + 3] and [P, E + 3], as float64."""
    products = 2 * (queries[:, :-3] * gallery[:, :-3]).sum(dim=1)
    return products - _squares(queries) - _squares(gallery) + 0.0


def screened_queries(rows: Tensor) -> Tensor:
    """Return the left factor, [Q, E + 2]: times `screened_gallery`, it is ``-|x - y|^2`` up to float32 rounding."""
    return torch.cat([2 * rows[:, :-3], -rows[:, -2:-1], -rows[:, -3:-2]], dim=1)


def screened_gallery(rows: Tensor) -> Tensor:
    """Return points, squared norms and ones: shape [G, E + 2]."""
    return rows[:, :-1]


def cut_error(width: int) -> float:
    """Return the error from dropping the last column, in multiples of 2^-24 times both rows' lengths.

    Half a unit in the last place of both squared norms, each of which is at most the product of the lengths.
    """
    return 2.0


def _squares(rows: Tensor) -> Tensor:
    return rows[:, -3] + rows[:, -1]
