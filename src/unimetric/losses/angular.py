"""The additive angular margin that ArcFace and CurricularFace share."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def add_angular_margin(cosines: Tensor, margin: float) -> Tensor:
    """Cosine of the angle enlarged by a margin, continued below where the angle would pass pi.

    With ``c = cos(theta)``: ``cos(theta + m)`` if ``c > cos(pi - m)``, else ``c - sin(pi - m) * m``, which
    keeps the result falling as theta grows (Deng et al., *ArcFace*, CVPR 2019, and their public code).

    Written as ``c cos(m) - sin(theta) sin(m)``, without an arc cosine. At ``c = 1`` and ``c = -1`` the slope
    of ``sin(theta)`` over ``c`` is infinite; its gradient is taken as zero there: an embedding that lies on
    its proxy is pulled equally in all directions.

    Args:
        cosines: any shape, any floating type, values in [-1, 1] (a rounding error beyond is harmless).
        margin: ``m`` in radians, in [0, pi).

    Returns:
        Tensor of the shape and type of ``cosines``, values in ``[-1 - m sin(m), 1]``.

    >>> round(add_angular_margin(torch.tensor(1.0), math.pi / 3).item(), 6)
    0.5
    """
    # (1-c)(1+c) rather than 1-c^2: no cancellation next to 1. The smallest normal number instead of 0 under
    # the root: the value stays right to the last bit, and backward meets no 0 * inf.
    sines = ((1 - cosines) * (1 + cosines)).clamp_min(torch.finfo(cosines.dtype).tiny).sqrt()
    shifted = cosines * math.cos(margin) - sines * math.sin(margin)
    return torch.where(cosines > math.cos(math.pi - margin), shifted, cosines - math.sin(margin) * margin)
