"""Training losses by name: ``make_loss("curricularface", num_classes, embedding_size)``.

To add one, write a function (or module) that takes ``num_classes``, ``embedding_size`` and constants with
defaults, raises ``ValueError`` for constants out of range, and add it to ``LOSSES``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields

from torch import Tensor, nn

from unimetric.config_values import complete_options
from unimetric.errors import UserError, nearest_names
from unimetric.geometry import Geometry, PoincareBall, Sphere
from unimetric.losses import pml
from unimetric.losses.curricularface import CurricularFace
from unimetric.losses.hyperbolic import Hyperbolic
from unimetric.losses.nested import NestedLoss
from unimetric.losses.slices import ProxySlice

__all__ = ["LOSSES", "CurricularFace", "Hyperbolic", "LossSpec", "NestedLoss", "loss_geometry", "make_loss"]


@dataclass(frozen=True)
class LossSpec:
    """Constructor of a loss, the batches it needs and the geometry it compares in.

    Args:
        make: called as ``make(num_classes, embedding_size, **options)``.
        images_per_class: the batch sampler draws this many images of each class it picks; None for random
            batches (losses with class proxies need no pairs within the batch).
        geometry: the space of the embeddings; its constants are also the loss's, with the same names.
    """

    make: Callable[..., nn.Module]
    images_per_class: int | None = None
    geometry: type[Sphere] | type[PoincareBall] = Sphere

    @property
    def options(self) -> dict[str, float | int | bool]:
        """The loss's constants by name, with their default values, from ``make``'s signature.

        >>> LOSSES["cosface"].options
        {'margin': 0.35, 'scale': 64.0}
        """
        parameters = inspect.signature(self.make).parameters.values()
        return {p.name: p.default for p in parameters if p.name not in ("num_classes", "embedding_size")}


LOSSES: dict[str, LossSpec] = {
    "arcface": LossSpec(pml.arcface),
    "cosface": LossSpec(pml.cosface),
    "curricularface": LossSpec(CurricularFace),
    "hyperbolic": LossSpec(Hyperbolic, images_per_class=4, geometry=PoincareBall),
    "margin": LossSpec(pml.margin_loss, images_per_class=4),
    "multi-similarity": LossSpec(pml.multi_similarity, images_per_class=4),
    "proxy-anchor": LossSpec(pml.proxy_anchor),
    "proxynca++": LossSpec(pml.proxynca_pp),
    "softtriple": LossSpec(pml.softtriple),
    "triplet": LossSpec(pml.triplet, images_per_class=4),
}


def make_loss(
    name: str,
    num_classes: int,
    embedding_size: int,
    options: Mapping[str, float | int | bool] | None = None,
    nested_sizes: Sequence[int] = (),
) -> nn.Module:
    """Make a loss module, called as ``loss(embeddings [B, E], labels [B]) -> float32 scalar``.

    Its parameters are its class proxies (none for a pair loss). Parameters and buffers are part of its state dict and
    belong in a checkpoint.

    Args:
        name: a key of ``LOSSES``.
        num_classes: number of training classes, at least 1; labels lie in ``[0, num_classes)``.
        embedding_size: ``E``, at least 1.
        options: constants that replace the defaults in ``LOSSES[name].options``.
        nested_sizes: lengths below ``E`` to train as embeddings as well, see `NestedLoss`.

    Raises:
        UserError: unknown loss or option, or a value of the wrong type or out of range.

    >>> loss = make_loss("proxy-anchor", num_classes=10, embedding_size=4, options={"alpha": 64})
    >>> [tuple(p.shape) for p in loss.parameters()]
    [(10, 4)]
    """
    if name not in LOSSES:
        raise UserError(f"unknown --loss.name {name!r}; {nearest_names(name, LOSSES)}")
    for size, value in (("num_classes", num_classes), ("embedding_size", embedding_size)):
        if value < 1:
            raise UserError(f"loss {name!r}: {size} must be at least 1, got {value}")
    checked = complete_options(f"loss {name!r}", options or {}, LOSSES[name].options)

    def make(size: int) -> nn.Module:
        return LOSSES[name].make(num_classes, size, **checked)

    shorter = sorted({size for size in nested_sizes if size != embedding_size})
    if shorter and (LOSSES[name].geometry is not Sphere or not 1 <= shorter[0] <= shorter[-1] < embedding_size):
        raise UserError(
            f"nested sizes {shorter} of a loss {name!r} of {embedding_size} numbers: use sizes from 1 to "
            f"{embedding_size}, and a loss on the sphere"
        )
    try:
        return NestedLoss(make, embedding_size, shorter) if shorter else make(embedding_size)
    except ValueError as error:
        raise UserError(f"loss {name!r}: {error}") from error


def loss_geometry(name: str, options: Mapping[str, float | int | bool] | None = None) -> Geometry:
    """Return the geometry of the embeddings that a loss compares, with the constants from its options.

    Raises:
        UserError: as `make_loss`.

    >>> loss_geometry("hyperbolic", {"clip": 1.0})
    PoincareBall(curvature=0.1, clip=1.0)
    """
    make_loss(name, 1, 1, options)
    spec = LOSSES[name]
    constants = spec.options | dict(options or {})
    return spec.geometry(**{entry.name: float(constants[entry.name]) for entry in fields(spec.geometry)})


def proxy_slice(loss: nn.Module) -> ProxySlice | None:
    """Return the classes whose proxies this process holds; None if the loss does not divide them among processes."""
    return loss.slice if isinstance(loss, CurricularFace) else None


def whole_loss(loss: nn.Module) -> nn.Module:
    """Return the loss of the whole embedding, which holds all proxies; a loss without nested sizes is itself."""
    return loss.whole if isinstance(loss, NestedLoss) else loss


def place_proxies(loss: nn.Module, directions: Tensor) -> None:
    """Set the class proxies of a loss to unit vectors [C, E]; a loss without proxies is unchanged."""
    loss = whole_loss(loss)
    if isinstance(loss, CurricularFace | pml.MinedLoss):
        loss.place_proxies(directions)
