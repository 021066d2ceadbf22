"""The right class and all wrong ones of a softmax over class proxies, in memory that does not grow with B · C."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_CHUNK_CLASSES = 8192
"""Classes at a time: B times so many cosines stay in a processor's cache, and fill a GPU."""


def targets_and_negatives(
    units: Tensor, proxies: Tensor, labels: Tensor, targets: Tensor, t: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    """The cosine to each row's own class, and ``log(sum over j != y of exp(s N(c_j)))`` over all others.

    ``c_j`` is the cosine to the proxy of class j; ``N(c) = c`` where ``c`` is at most the target's logit (easy), else
    ``c (t + c)`` (hard): CurricularFace's negatives (Huang et al., CVPR 2020, section 3). Classes are taken in chunks,
    forward and backward, and their cosines computed again for the gradient: of [B, C] nothing is ever held, where
    cosines, logits, softmax and their gradients would each be B · C numbers.

    Args:
        units: unit vectors, float32 or float64 [B, E].
        proxies: class proxies of any norm, of the same type, [C, E].
        labels: int64 [B], values in [0, C).
        targets: the target's logit before scaling, [B]; decides what is hard, and gets no gradient.
        t: the modulation of the hard negatives of each row, [B] or []; gets no gradient.
        scale: s.

    Returns:
        Both [B]; the second is minus infinity where there is no other class.
    """
    result: tuple[Tensor, Tensor] = _TargetsAndNegatives.apply(
        units, proxies, labels, targets.detach(), t.detach(), scale
    )
    return result


class _TargetsAndNegatives(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, units: Tensor, proxies: Tensor, labels: Tensor, targets: Tensor, t: Tensor, scale: float
    ) -> tuple[Tensor, Tensor]:
        own = (units * F.normalize(proxies[labels])).sum(dim=1)
        total = units.new_full((len(units),), -torch.inf)
        for chunk, start in _chunks(proxies):
            cosines = units @ F.normalize(chunk).T
            logits = _logits(cosines, targets, t, scale)
            _leave_out(logits, labels - start, -torch.inf)
            total = torch.logaddexp(total, logits.logsumexp(dim=1))
        ctx.save_for_backward(units, proxies, labels, targets, t, own, total)
        ctx.scale = scale
        return own, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_own: Tensor, of_total: Tensor) -> tuple[Tensor | None, ...]:
        units, proxies, labels, targets, t, own, total = ctx.saved_tensors
        # Where there is no other class, minus infinity less itself would be no number.
        total = total.clamp_min(torch.finfo(total.dtype).min)
        of_units, of_proxies = torch.zeros_like(units), torch.empty_like(proxies)
        for chunk, start in _chunks(proxies):
            norms = _norms(chunk)
            directions = chunk / norms
            cosines = units @ directions.T
            weights = _logits(cosines, targets, t, ctx.scale).sub_(total.unsqueeze(1)).exp_()
            _leave_out(weights, labels - start, 0.0)
            # The slope of N: 1, or t + 2 c.
            hard = cosines > targets.unsqueeze(1)
            weights *= torch.where(hard, cosines.mul_(2).add_(_column(t)), 1.0)
            weights *= ctx.scale * of_total.unsqueeze(1)
            of_units.addmm_(weights, directions)
            part = of_proxies[start : start + len(chunk)]
            torch.mm(weights.T, units, out=part)
            # Of the direction's gradient, only what turns the proxy counts.
            part.sub_(directions * (directions * part).sum(dim=1, keepdim=True)).div_(norms)
        norms = _norms(proxies[labels])
        directions = proxies[labels] / norms
        of_units += of_own.unsqueeze(1) * directions
        turning = (units - directions * own.unsqueeze(1)) / norms
        of_proxies.index_add_(0, labels, of_own.unsqueeze(1) * turning)
        return of_units, of_proxies, None, None, None, None


def _norms(proxies: Tensor) -> Tensor:
    # As torch.nn.functional.normalize has it.
    norms: Tensor = torch.linalg.vector_norm(proxies, dim=1, keepdim=True)
    return norms.clamp_min(1e-12)


def _chunks(proxies: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Parts of the proxies and the number of each part's first class."""
    for start in range(0, len(proxies), _CHUNK_CLASSES):
        yield proxies[start : start + _CHUNK_CLASSES], start


def _column(t: Tensor) -> Tensor:
    return t.unsqueeze(1) if t.ndim else t


def _logits(cosines: Tensor, targets: Tensor, t: Tensor, scale: float) -> Tensor:
    """Cosines [B, c] to scaled logits, all taken for negatives."""
    hard = cosines > targets.unsqueeze(1)
    return torch.where(hard, cosines * (_column(t) + cosines), cosines).mul_(scale)


def _leave_out(values: Tensor, columns: Tensor, filler: float) -> None:
    """Fill each row's own column [B], where the chunk [B, c] has it."""
    here = ((columns >= 0) & (columns < values.shape[1])).unsqueeze(1)
    column = columns.clamp(0, values.shape[1] - 1).unsqueeze(1)
    # Rows whose class is elsewhere keep what they have: no wait for an accelerator to count them.
    values.scatter_(1, column, torch.where(here, filler, values.gather(1, column)))
