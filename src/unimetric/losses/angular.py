"""The additive angular margin that ArcFace and CurricularFace share."""

import math

import torch
from torch import Tensor


def add_angular_margin(cosines: Tensor, margin: float) -> Tensor:
    """Return the cosine of the angle plus a margin, extended to angles beyond pi.

    With ``c = cos(theta)``: ``cos(theta + m)`` if ``c > cos(pi - m)``, else ``c - sin(pi - m) * m``, which
    keeps the result decreasing in theta (Deng et al., *ArcFace*, CVPR 2019, and their public code).

    Computed as ``c cos(m) - sin(theta) sin(m)``, without an arc cosine. At ``c = 1`` and ``c = -1`` the
    derivative of ``sin(theta)`` with respect to ``c`` is infinite; it is set to zero, because an embedding on
    its proxy has no preferred direction.

    Args:
        cosines: any shape, any floating type, values in [-1, 1] up to a rounding error.
        margin: ``m`` in radians, in [0, pi).

    Returns:
        Tensor of the shape and type of ``cosines``, values in ``[-1 - m sin(m), 1]``.

    >>> round(add_angular_margin(torch.tensor(1.0), math.pi / 3).item(), 6)
    0.5
    """
    # (1-c)(1+c) avoids the cancellation of 1-c^2 near 1. Clamping to the smallest normal number avoids 0 * inf in the
    # backward pass without changing the result.
    sines = ((1 - cosines) * (1 + cosines)).clamp_min(torch.finfo(cosines.dtype).tiny).sqrt()
    shifted = cosines * math.cos(margin) - sines * math.sin(margin)
    return torch.where(cosines > math.cos(math.pi - margin), shifted, cosines - math.sin(margin) * margin)
