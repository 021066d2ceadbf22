"""Hyperbolic distance without rounding errors that depend on tiles, threads or devices, as `distances` has for cosines.

The hyperbolic distance d of two points of the ball increases with a product: with both points lifted to the
hyperboloid, ``X_0 Y_0 - X_1.. Y_1.. = cosh(sqrt(c) d)``. So searching for the nearest points means finding the largest
``X_1.. Y_1.. - X_0 Y_0``, by the same tiled matrix products as for cosines.

The entries are rounded so that float64 adds up their products exactly, whatever the order. The products of long
vectors leave room for fewer digits than those of unit vectors, and cosh is flat at 0, where the nearest neighbours are.
Therefore every row is kept as the sum of two: a coarse one, whose entries are multiples of g, 24 bits below the next
power of two above the row's largest entry ``X_0``; and what is left, in multiples of ``2^-20 g``. With ``q`` and ``h``
the two grids of a pair of rows, partial sums of coarse by coarse stay below ``2^49 q h``, and those of coarse by fine,
in up to 131,071 dimensions, below ``2^53 2^-20 q h``: all of them are exact. The sum of the two is rounded once. (Fine
by fine is smaller than the rounding of the rows and is omitted.)

That leaves an error in ``cosh(sqrt(c) d)`` of about ``2^-44 X_0 Y_0``. For points that a model with the paper's
constants can give (c = 0.1, clipped at 2.3), it is 1e-5 in d for points nearer than that, and far less for any others.
"""

import math

import torch
from torch import Tensor

from unimetric.errors import UserError
from unimetric.geometry import PoincareBall

_COARSE = 2.0**-24
_FINE = 2.0**-20


def lifted_rows(ball: PoincareBall, block: Tensor, first_row: int, name: str) -> Tensor:
    """Lift finite float64 points [N, E] within the ball to the hyperboloid; its clipping is not used.

    The result is float32 [N, 2 (E + 1)]: the coarse part of ``X_0, X_1, ...``, then the fine part. ``first_row`` and
    ``name`` are for errors.
    """
    _check_inside(ball, block, first_row, name)
    lifted = ball.to_hyperboloid(block)  # (n, E + 1)
    largest = lifted[:, :1]
    # Dividing by the mantissa, in [0.5, 1), gives exactly the next power of two above the largest entry.
    grid = largest / torch.frexp(largest).mantissa * _COARSE
    coarse = (lifted / grid).round_() * grid
    fine = ((lifted - coarse) / (grid * _FINE)).round_() * (grid * _FINE)
    return torch.cat([coarse, fine], dim=1).float()


def lorentz_similarities(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return ``X_1.. Y_1.. - X_0 Y_0``, which is ``-cosh(sqrt(c) d)``, [Q, G]: the higher, the nearer.

    Queries [Q, 2 (E + 1)] as float64 and gallery [G, 2 (E + 1)] are from `lifted_rows`, on one device, which the
    float64 result is on too. It is at most -1 up to the rounding of the rows.
    """
    width = queries.shape[1] // 2
    signed = queries.clone()
    signed[:, [0, width]] *= -1
    gallery = gallery.to(torch.float64)
    swapped = torch.cat([gallery[:, width:], gallery[:, :width]], dim=1)
    # Two products: a single one that mixes coarse by coarse with coarse by fine would not be exact.
    similarities = signed[:, :width] @ gallery[:, :width].T  # (Q, G)
    similarities += signed @ swapped.T
    return similarities


def paired_lorentz(queries: Tensor, gallery: Tensor) -> Tensor:
    """Return `lorentz_similarities` of query i and gallery item i only: [P] from [P, 2 (E + 1)] twice, as float64."""
    width = queries.shape[1] // 2
    signed = queries.clone()
    signed[:, [0, width]] *= -1
    coarse = (signed[:, :width] * gallery[:, :width]).sum(dim=1)
    mixed = (signed[:, :width] * gallery[:, width:]).sum(dim=1) + (signed[:, width:] * gallery[:, :width]).sum(dim=1)
    return coarse + mixed


def coarse_queries(rows: Tensor) -> Tensor:
    """Return the left factor: times `coarse_gallery`, it is the similarity without the fine parts."""
    coarse = coarse_gallery(rows).clone()
    coarse[:, 0] *= -1
    return coarse


def coarse_gallery(rows: Tensor) -> Tensor:
    """Return the coarse parts."""
    return rows[:, : rows.shape[1] // 2]


def fine_error(width: int) -> float:
    """Return the error from omitting the fine parts, in multiples of 2^-24 times both rows' lengths.

    No fine entry exceeds half of its row's grid, which is at most ``2^-23 X_0``: so the fine part is no longer than
    ``sqrt(width) 2^-24`` times the coarse one, and there are two products of coarse by fine.
    """
    return 2 * math.sqrt(width) + 1


def _check_inside(ball: PoincareBall, block: Tensor, first_row: int, name: str) -> None:
    outside = (ball.curvature * block.square().sum(dim=1) >= 1).nonzero()
    if len(outside):
        row = int(outside[0])
        raise UserError(
            f"{name}: row {first_row + row} has length {math.hypot(*block[row].tolist()):.6g}, outside the Poincaré "
            f"ball of radius {1 / math.sqrt(ball.curvature):.6g} (curvature {ball.curvature:g}); give points of the "
            "ball, or the curvature that they were made with"
        )
