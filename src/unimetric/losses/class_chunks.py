"""CurricularFace's negatives summed over chunks of classes: no matrix of batch by classes is ever held."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_ELEMENTS = 2**22
"""Cosines computed at a time, 16 MB of float32: less, and threads wait for each other; more, and every buffer is new
memory from the system."""

_EPS = 1e-12
"""Shortest length that a proxy is divided by, as in ``torch.nn.functional.normalize``."""


def modulate(cosines: Tensor, threshold: Tensor, own_t: Tensor) -> Tensor:
    """The negatives' logits before scaling: ``c`` up to the threshold, ``c (t + c)`` above it (hard).

    Args:
        cosines: shape ``[B, C]``.
        threshold: shape ``[B, 1]``.
        own_t: shape ``[B, 1]`` or ``[]``.
    """
    return torch.where(cosines > threshold, cosines * (own_t + cosines), cosines)


def target_and_negatives(
    directions: Tensor, proxies: Tensor, labels: Tensor, threshold: Tensor, own_t: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """Each sample's cosine with its own proxy, and the log of the sum of the exponentials of its negatives' logits.

    Backward computes the cosines again, chunk by chunk, rather than keep them: one product more, ``2 B C E``
    operations, against three or more passes over ``[B, C]`` in memory and the room for them. Gradients of gradients
    are not available.

    Args:
        directions: unit vectors, shape ``[B, E]``.
        proxies: of any length, shape ``[C, E]``, the type of ``directions``.
        labels: int64, shape ``[B]``, values in ``[0, C)``.
        threshold: negatives with a larger cosine are hard, shape ``[B]``; gets no gradient.
        own_t: ``t`` of each sample, shape ``[B]``; gets no gradient.
        scale: multiplies the logits.

    Returns:
        Cosines ``[B]``, and ``log sum_{j != y} exp(scale * logit_j)``, ``[B]``; minus infinity for a single class.
    """
    out: tuple[Tensor, Tensor] = _TargetAndNegatives.apply(directions, proxies, labels, threshold, own_t, scale)
    return out


class _TargetAndNegatives(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        directions: Tensor,
        proxies: Tensor,
        labels: Tensor,
        threshold: Tensor,
        own_t: Tensor,
        scale: float,
    ) -> tuple[Tensor, Tensor]:
        highest = directions.new_full((len(directions),), -torch.inf)
        total = directions.new_zeros(len(directions))
        target = torch.empty_like(total)
        for chunk in _chunks(len(proxies), len(directions)):
            cosines = directions @ _unit(proxies[chunk])[0].T  # [B, c]
            rows, columns = _targets_in(labels, chunk)
            target[rows] = cosines[rows, columns]
            logits = modulate(cosines, threshold[:, None], own_t[:, None]).mul_(scale)
            logits[rows, columns] = -torch.inf
            higher = torch.maximum(highest, logits.amax(1))
            # A chunk of the target alone leaves minus infinity, which is not to be taken from itself.
            shift = higher.clamp_min(torch.finfo(higher.dtype).min)
            total = total * (highest - shift).exp() + logits.sub_(shift[:, None]).exp_().sum(1)
            highest = higher
        negatives = highest + total.log()
        ctx.save_for_backward(directions, proxies, labels, threshold, own_t, negatives)
        ctx.scale = scale
        return target, negatives

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, target_gradient: Tensor, negatives_gradient: Tensor) -> tuple[Tensor | None, ...]:
        directions, proxies, labels, threshold, own_t, negatives = ctx.saved_tensors
        threshold, own_t = threshold[:, None], own_t[:, None]
        factors = (ctx.scale * negatives_gradient)[:, None]  # [B, 1]
        of_directions = torch.zeros_like(directions)
        of_proxies = torch.empty_like(proxies)
        for chunk in _chunks(len(proxies), len(directions)):
            unit, lengths = _unit(proxies[chunk])  # [c, E], [c, 1]
            cosines = directions @ unit.T  # [B, c]
            logits = modulate(cosines, threshold, own_t)
            # The softmax over the negatives, times the slope of the logit over the cosine: t + 2 c where it is hard.
            shares = logits.mul_(ctx.scale).sub_(negatives[:, None]).exp_().mul_(factors)
            slopes = torch.where(cosines > threshold, own_t + 2 * cosines, 1.0)
            of_cosines = shares.mul_(slopes)
            rows, columns = _targets_in(labels, chunk)
            of_cosines[rows, columns] = target_gradient[rows]
            of_directions.addmm_(of_cosines, unit)
            of_unit = torch.mm(of_cosines.T, directions, out=of_proxies[chunk])  # [c, E]
            # Through the normalisation: what lies along the proxy has no effect.
            along = (of_unit * unit).sum(1, keepdim=True) * (lengths > _EPS)
            of_unit.sub_(unit.mul_(along)).div_(lengths)
        return of_directions, of_proxies, None, None, None, None


def _chunks(classes: int, batch: int) -> Iterator[slice]:
    step = max(256, _CHUNK_ELEMENTS // batch)
    return (slice(start, min(start + step, classes)) for start in range(0, classes, step))


def _unit(proxies: Tensor) -> tuple[Tensor, Tensor]:
    """Proxies at unit length, and the lengths [c, 1] that they were divided by."""
    lengths = proxies.norm(dim=1, keepdim=True).clamp_min(_EPS)
    return proxies / lengths, lengths


def _targets_in(labels: Tensor, chunk: slice) -> tuple[Tensor, Tensor]:
    """The samples whose own class is in the chunk, and its column there."""
    rows = ((labels >= chunk.start) & (labels < chunk.stop)).nonzero().squeeze(1)
    return rows, labels[rows] - chunk.start
