"""Target cosine and sum over negatives of a softmax over class proxies, in memory that does not grow with B · C."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_CHUNK_CLASSES = 16384
"""Classes per chunk; with fewer, threads wait for each other, and with more, each buffer is newly allocated memory."""


def targets_and_negatives(
    units: Tensor,
    proxies: Tensor,
    labels: Tensor,
    targets: Tensor,
    t: Tensor,
    scale: float,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the cosine to each row's own class, and ``log(sum over j != y of exp(s N(c_j)))`` over all others.

    ``c_j`` is the cosine to the proxy of class j; ``N(c) = c`` where ``c`` is at most the target's logit (easy), else
    ``c (t + c)`` (hard): CurricularFace's negatives (Huang et al., CVPR 2020, section 3). Classes are processed in
    chunks, forward and backward, and their cosines are computed again for the gradient. No [B, C] matrix is ever in
    memory; otherwise cosines, logits, softmax and their gradients would each take B · C numbers.

    The proxies may be a part or a sample of all. Results of several parts combine by adding the cosines and taking the
    logsumexp of the sums.

    Args:
        units: unit vectors, float32 or float64 [B, E].
        proxies: class proxies of any norm, of the same type, [C, E].
        labels: int64 [B], values in [0, C), or -1 where the class is not among the proxies.
        targets: the target's logit before scaling, [B], which separates easy from hard; it gets no gradient.
        t: the modulation of the hard negatives of each row, [B] or []; gets no gradient.
        scale: s.
        log_weights: the logarithm of each class's weight, [C]; None for weights of 1.

    Returns:
        Both [B]; the first is 0 for label -1, the second minus infinity where there is no other class.
    """
    result: tuple[Tensor, Tensor] = _TargetsAndNegatives.apply(
        units, proxies, labels, targets.detach(), t.detach(), scale, log_weights
    )
    return result


def own_cosines(units: Tensor, proxies: Tensor, labels: Tensor) -> Tensor:
    """Return the cosine of each unit vector [B, E] to the proxy of its label, [B]; 0 for label -1."""
    if len(proxies) == 0:
        return units.new_zeros(len(units))
    cosines = (units * F.normalize(proxies[labels.clamp_min(0)])).sum(dim=1)
    return torch.where(labels >= 0, cosines, 0.0)


class _TargetsAndNegatives(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        units: Tensor,
        proxies: Tensor,
        labels: Tensor,
        targets: Tensor,
        t: Tensor,
        scale: float,
        log_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        own = own_cosines(units, proxies, labels)
        total = units.new_full((len(units),), -torch.inf)
        for chunk, start in _chunks(proxies):
            cosines = units @ F.normalize(chunk).T
            logits = _logits(cosines, targets, t, scale, _part(log_weights, start))
            _leave_out(logits, labels - start, -torch.inf)
            total = torch.logaddexp(total, logits.logsumexp(dim=1))
        ctx.save_for_backward(units, proxies, labels, targets, t, own, total)
        ctx.scale, ctx.log_weights = scale, log_weights
        return own, total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_own: Tensor, of_total: Tensor) -> tuple[Tensor | None, ...]:
        units, proxies, labels, targets, t, own, total = ctx.saved_tensors
        # Without any other class, the total is -inf, and -inf minus -inf would be NaN.
        total = total.clamp_min(torch.finfo(total.dtype).min)
        of_units, of_proxies = torch.zeros_like(units), torch.empty_like(proxies)
        for chunk, start in _chunks(proxies):
            norms = _norms(chunk)
            directions = chunk / norms
            cosines = units @ directions.T
            logits = _logits(cosines, targets, t, ctx.scale, _part(ctx.log_weights, start))
            weights = logits.sub_(total.unsqueeze(1)).exp_()
            _leave_out(weights, labels - start, 0.0)
            # The slope of N: 1, or t + 2 c.
            hard = cosines > targets.unsqueeze(1)
            weights *= torch.where(hard, cosines.mul_(2).add_(_column(t)), 1.0)
            weights *= ctx.scale * of_total.unsqueeze(1)
            of_units.addmm_(weights, directions)
            part = of_proxies[start : start + len(chunk)]
            torch.mm(weights.T, units, out=part)
            # Project out the gradient's component along the proxy, because only the direction matters.
            part.sub_(directions * (directions * part).sum(dim=1, keepdim=True)).div_(norms)
        if len(proxies) == 0:
            return of_units, of_proxies, None, None, None, None, None
        of_own = torch.where(labels >= 0, of_own, 0.0)
        labels = labels.clamp_min(0)
        norms = _norms(proxies[labels])
        directions = proxies[labels] / norms
        of_units += of_own.unsqueeze(1) * directions
        turning = (units - directions * own.unsqueeze(1)) / norms
        of_proxies.index_add_(0, labels, of_own.unsqueeze(1) * turning)
        return of_units, of_proxies, None, None, None, None, None


def _norms(proxies: Tensor) -> Tensor:
    # Same clamp as torch.nn.functional.normalize.
    norms: Tensor = torch.linalg.vector_norm(proxies, dim=1, keepdim=True)
    return norms.clamp_min(1e-12)


def _chunks(proxies: Tensor) -> Iterator[tuple[Tensor, int]]:
    """Yield parts of the proxies and the number of each part's first class."""
    for start in range(0, len(proxies), _CHUNK_CLASSES):
        yield proxies[start : start + _CHUNK_CLASSES], start


def _column(t: Tensor) -> Tensor:
    return t.unsqueeze(1) if t.ndim else t


def _part(log_weights: Tensor | None, start: int) -> Tensor | None:
    return None if log_weights is None else log_weights[start : start + _CHUNK_CLASSES]


def _logits(cosines: Tensor, targets: Tensor, t: Tensor, scale: float, log_weights: Tensor | None) -> Tensor:
    """Return scaled logits for cosines [B, c], all as negatives, plus the classes' logarithmic weights [c]."""
    hard = cosines > targets.unsqueeze(1)
    logits = torch.where(hard, cosines * (_column(t) + cosines), cosines).mul_(scale)
    return logits if log_weights is None else logits.add_(log_weights)


def _leave_out(values: Tensor, columns: Tensor, filler: float) -> None:
    """Fill each row's own column [B], where it is in the chunk [B, c]."""
    here = ((columns >= 0) & (columns < values.shape[1])).unsqueeze(1)
    column = columns.clamp(0, values.shape[1] - 1).unsqueeze(1)
    # Rows whose class is in another chunk keep their value; selecting rows would synchronise an accelerator.
    values.scatter_(1, column, torch.where(here, filler, values.gather(1, column)))
