"""Euclidean distances without rounding error that depends on tiles, threads or devices, as `cosine` has it for cosines.

Both sides are multiplied by one power of two, so that no vector is longer than 1, and rounded to multiples of 2^-24.
Products of two entries are multiples of 2^-48, and so is ``2 x.y - |x|^2 - |y|^2 = -|x - y|^2``, of which every partial
sum is below 8: float64 holds all of them exactly. The nearest points are those for which that is highest.

The rounding moves a coordinate by at most 2^-24 (6e-8) times the length of the longest vector, and a distance by at
most ``sqrt(E) 2^-23`` times that length. Points that are nearer to each other than that can tie. So one vector that is
a thousand times longer than all others costs these three of their seven digits.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from unimetric.evaluation.cosine import GRID, Vectors, blocks


def common_exponent(sides: Mapping[str, Vectors]) -> int:
    """The least n with every norm below 2^n; 0 where all vectors are zero.

    Args:
        sides: Matrices of vectors, by what errors call them.

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
    """The values times 2^exponent, in two steps, lest the factor overflow."""
    half = exponent // 2
    return values * 2.0**half * 2.0 ** (exponent - half)


def euclidean_rows(exponent: int, block: Tensor, first_row: int, name: str) -> Tensor:
    """Scale points, round them to the grid and append their squared norms.

    Args:
        exponent: From `common_exponent`.
        block: Shape [N, E], float64, finite.
        first_row: Plays no part: every finite row has a distance.
        name: Likewise.

    Returns:
        Shape [N, E + 3], float32: the point, its squared norm, 1, and what float32 cuts off the squared norm.
    """
    points = scaled(block, -exponent).div_(GRID).round_().mul_(GRID)
    squares = points.square().sum(dim=1, keepdim=True)
    cut = squares.float().double()
    return torch.cat([points, cut, torch.ones_like(cut), squares - cut], dim=1).float()


def minus_squared_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """``-|x - y|^2`` of scaled points, exactly: the higher, the nearer.

    Args:
        queries: From `euclidean_rows`, shape [Q, E + 3], as float64 on any device.
        gallery: From `euclidean_rows`, shape [G, E + 3], on the same device.

    Returns:
        Shape [Q, G], float64 on that device, from -4 to 0 up to 1e-5.
    """
    gallery = gallery.to(torch.float64)
    similarities = (2 * queries[:, :-3]) @ gallery[:, :-3].T  # (Q, G)
    similarities -= _squares(queries)[:, None]
    similarities -= _squares(gallery)
    # CUDA selects by bit pattern, and so takes 0.0 and -0.0 for different numbers.
    return similarities.add_(0.0)


def paired_minus_squared_distances(queries: Tensor, gallery: Tensor) -> Tensor:
    """The same of query i and gallery item i only: from [P, E + 3] and [P, E + 3], as float64, to [P]."""
    products = 2 * (queries[:, :-3] * gallery[:, :-3]).sum(dim=1)
    return products - _squares(queries) - _squares(gallery) + 0.0


def screened_queries(rows: Tensor) -> Tensor:
    """What to multiply `screened_gallery` with for ``-|x - y|^2`` up to what float32 cut off: shape [Q, E + 2]."""
    return torch.cat([2 * rows[:, :-3], -rows[:, -2:-1], -rows[:, -3:-2]], dim=1)


def screened_gallery(rows: Tensor) -> Tensor:
    """Points, squared norms and ones: shape [G, E + 2]."""
    return rows[:, :-1]


def cut_error(width: int) -> float:
    """How far leaving out what was cut moves a similarity, in multiples of 2^-24 times both rows' lengths.

    Half a unit in the last place of both squared norms, each of which is at most the product of the lengths.
    """
    return 2.0


def _squares(rows: Tensor) -> Tensor:
    return rows[:, -3] + rows[:, -1]
