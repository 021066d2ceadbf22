"""Geometries of embeddings, the unit sphere and the Poincaré ball, shared by losses, models and evaluation.

The hyperbolic formulas are those of Ermolov et al., *Hyperbolic Vision Transformers: Combining Improvements in Metric
Learning*, CVPR 2022, rearranged so that values and gradients stay in the range of float32.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from unimetric.errors import UserError, nearest_names, shown

_BORDER = 1e-5
"""Minimum distance of a point from the border of the ball, as a share of its radius; float32 keeps 2 digits of it."""


@dataclass(frozen=True)
class Sphere:
    """Unit vectors, compared by cosine.

    >>> Sphere().embed(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """

    name: ClassVar[Literal["sphere"]] = "sphere"
    distance: ClassVar[Literal["cosine"]] = "cosine"

    def embed(self, features: Tensor) -> Tensor:
        """Map features [..., E] of any length to unit vectors; zero stays zero."""
        return F.normalize(features, dim=-1)

    def mean(self, points: Tensor) -> Tensor:
        """Return the average direction [N, E] of M unit vectors each, [M, N, E]; zero where they cancel out."""
        return F.normalize(points.mean(dim=0), dim=-1)

    def to_dict(self) -> dict[str, Any]:
        """Name and constants, as model folders keep them."""
        return {"name": self.name}


@dataclass(frozen=True)
class PoincareBall:
    """The open ball of radius ``1 / sqrt(c)``, a model of the space of constant curvature ``-c``.

    Args:
        curvature: ``c``, from 1e-6 to 1e6.
        clip: ``r``, from 1e-6 to 1e6: features longer than this are shortened to it before they are mapped into the
            ball (Guo et al., *Clipped Hyperbolic Classifiers*, CVPR 2022), which keeps points off the border.

    Raises:
        ValueError: a constant out of range.

    >>> ball = PoincareBall(curvature=1.0, clip=100.0)
    >>> round(ball.distances(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.0]])).item(), 4)  # ln 3
    1.0986
    """

    curvature: float = 0.1
    clip: float = 2.3

    name: ClassVar[Literal["poincare"]] = "poincare"
    distance: ClassVar[Literal["poincare"]] = "poincare"

    def __post_init__(self) -> None:
        for constant in ("curvature", "clip"):
            value = getattr(self, constant)
            if not 1e-6 <= value <= 1e6:
                raise ValueError(f"{constant} must be from 1e-06 to 1e+06, got {shown(value)}")

    @property
    def largest_norm(self) -> float:
        """The norm of the image of a feature of length ``r``, which no embedding exceeds."""
        root = math.sqrt(self.curvature)
        return min(math.tanh(root * self.clip), 1 - _BORDER) / root

    def embed(self, features: Tensor) -> Tensor:
        """Apply the exponential map at 0, ``tanh(sqrt(c) |v|) v / (sqrt(c) |v|)``, to features [..., E] clipped to r.

        Zero maps to zero, where the gradient is the identity.
        """
        norms = torch.linalg.vector_norm(features, dim=-1, keepdim=True)
        features = features * (self.clip / norms.clamp_min(self.clip))
        # Below the clamp, tanh(s) / s differs from its limit 1 by s^2 / 3, less than a rounding error.
        smallest = torch.finfo(features.dtype).eps ** 0.5
        scaled = (math.sqrt(self.curvature) * norms.clamp_max(self.clip)).clamp_min(smallest)
        return self.project(features * (scaled.tanh() / scaled))

    def project(self, points: Tensor) -> Tensor:
        """Move points [..., E] whose norm exceeds `largest_norm` back to that norm."""
        norms = torch.linalg.vector_norm(points, dim=-1, keepdim=True)
        projected: Tensor = points * (self.largest_norm / norms.clamp_min(self.largest_norm))
        return projected

    def distances(self, points: Tensor, others: Tensor) -> Tensor:
        """Return the hyperbolic distances [N, M] between points [N, E] and [M, E] inside the ball.

        ``(2 / sqrt(c)) asinh( sqrt(c) |x - y| / sqrt((1 - c |x|^2) (1 - c |y|^2)) )``, which equals the
        ``(2 / sqrt(c)) artanh( sqrt(c) |-x (+) y| )`` of the paper. The gradient between identical
        points, where the distance is not differentiable, is zero.
        """
        # Computed from differences, because a matrix product would lose the distances of near neighbours.
        gaps = torch.cdist(points, others, compute_mode="donot_use_mm_for_euclid_dist")  # (N, M)
        shrinkage = (self._to_border(points)[:, None] * self._to_border(others)).sqrt()
        root = math.sqrt(self.curvature)
        return 2 / root * torch.asinh(root * gaps / shrinkage)

    def to_hyperboloid(self, points: Tensor) -> Tensor:
        """Map points [..., E] inside the ball to [..., E + 1] on the hyperboloid ``X_0^2 - |X_1..|^2 = 1``.

        ``X = (1 + c |x|^2, 2 sqrt(c) x) / (1 - c |x|^2)``. For two of them,
        ``X_0 Y_0 - X_1.. Y_1.. = cosh(sqrt(c) d(x, y))``.
        """
        to_border = self._to_border(points)[..., None]
        return torch.cat([2 - to_border, 2 * math.sqrt(self.curvature) * points], dim=-1) / to_border

    def mean(self, points: Tensor) -> Tensor:
        """Return the Poincaré mean [N, E] of M points each, [M, N, E].

        This is the Einstein midpoint, which Khrulkov et al. (*Hyperbolic Image Embeddings*, CVPR 2020) compute in
        Klein's model. On the hyperboloid it is the sum, scaled back to the surface.
        """
        total = self.to_hyperboloid(points).sum(dim=0)  # (N, E + 1)
        time, space = total[..., :1], total[..., 1:]
        length = torch.linalg.vector_norm(space, dim=-1, keepdim=True)
        norm = ((time - length) * (time + length)).sqrt()
        mean: Tensor = space / (math.sqrt(self.curvature) * (time + norm))
        return mean

    def to_dict(self) -> dict[str, Any]:
        """Name and constants, as model folders keep them."""
        return {"name": self.name, **asdict(self)}

    def _to_border(self, points: Tensor) -> Tensor:
        return 1 - self.curvature * points.square().sum(dim=-1)


Geometry: TypeAlias = Sphere | PoincareBall

GEOMETRIES: dict[str, type[Sphere] | type[PoincareBall]] = {"poincare": PoincareBall, "sphere": Sphere}


def make_geometry(name: str, **constants: float) -> Geometry:
    """Return the geometry with this name.

    Raises:
        UserError: unknown name or constant, or a value out of range.

    >>> make_geometry("poincare", clip=1.0)
    PoincareBall(curvature=0.1, clip=1.0)
    """
    if name not in GEOMETRIES:
        raise UserError(f"geometry is {shown(name)}; {nearest_names(name, GEOMETRIES)}")
    try:
        return GEOMETRIES[name](**constants)
    except (TypeError, ValueError) as error:
        raise UserError(f"geometry {name}: {error}") from error
