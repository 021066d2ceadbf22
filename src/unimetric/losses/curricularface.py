"""CurricularFace, the loss PUMA trains with: hard negatives weigh more as training advances."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimetric.losses.angular import add_angular_margin
from unimetric.losses.checks import check_batch, check_constant, no_autocast
from unimetric.losses.negatives import targets_and_negatives


class CurricularFace(nn.Module):
    """Softmax over class proxies with an angular margin and an adaptive curriculum.

    Source: Huang et al., *CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition*,
    CVPR 2020. With ``c`` the cosines of a sample of class ``y``: the target's logit is ``phi = add_angular_margin(c_y,
    margin)``; a negative ``c_j`` stays if ``phi >= c_j`` (easy), else becomes ``c_j * (t + c_j)`` (hard). (Their public
    code compares ``c_j`` with ``cos(theta_y + m)`` even where the target itself takes the fallback below
    ``cos(pi - m)``. Here both are the one ``phi``; the two differ only when target and negative both lie nearly
    opposite to the sample.) ``t`` is an exponential moving average of the target cosine. It starts at 0 and damps the
    hard negatives (``c_j * t + c_j^2``) until the model is good enough to learn from them. The original keeps
    one scalar over everything; PUMA keeps one per class, updated for the classes in the batch, so that a
    data set on which the model is still poor is not pushed by the progress on an easy one. A sample's
    negatives are modulated by the ``t`` of the sample's **own** class: ``t`` says how well that class is
    learnt already, which is what decides whether its samples are ready for hard negatives.

    As in the original, a training step updates ``t`` before using it. ``t`` carries no gradient and stands
    still in evaluation mode.

    Args:
        num_classes: ``C``, at least 1.
        embedding_size: ``E``, at least 1.
        margin: radians, in [0, pi).
        scale: multiplies the logits, positive.
        momentum: of the moving average, in [0, 1).
        per_class: one ``t`` per class (PUMA) or one for all (Huang et al.).

    Attributes:
        proxies: learnable, float32, shape ``[C, E]``, drawn with standard deviation 0.01 as the original
            does. Only directions matter to the loss; the norm sets how fast an optimiser turns them.
        t: buffer, float32, shape ``[C]`` or ``[]``; part of the state dict.

    Raises:
        ValueError: for a constant outside its range.
    """

    proxies: nn.Parameter
    t: Tensor

    def __init__(
        self,
        num_classes: int,
        embedding_size: int,
        margin: float = 0.3,
        scale: float = 32.0,
        momentum: float = 0.99,
        per_class: bool = True,
    ) -> None:
        super().__init__()
        check_constant(num_classes >= 1, "num_classes must be at least 1", num_classes)
        check_constant(embedding_size >= 1, "embedding_size must be at least 1", embedding_size)
        check_constant(0 <= margin < math.pi, "margin must be in [0, pi) radians", margin)
        check_constant(0 < scale < math.inf, "scale must be positive", scale)
        check_constant(0 <= momentum < 1, "momentum must be in [0, 1)", momentum)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.margin = margin
        self.scale = scale
        self.momentum = momentum
        self.per_class = per_class
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.normal_(self.proxies, std=0.01)
        self.register_buffer("t", torch.zeros(num_classes) if per_class else torch.zeros(()))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Mean loss of a batch, computed in float32 even under autocast.

        Args:
            embeddings: shape ``[B, E]``, any floating type, any norm (normalised here).
            labels: int64, shape ``[B]``, values in ``[0, C)``.

        Returns:
            Float32 scalar, at least 0.

        Raises:
            ValueError: for a wrong shape or type, or a label out of range.
        """
        check_batch(embeddings, labels, self.embedding_size, self.num_classes)
        with no_autocast(embeddings):
            units, proxies = F.normalize(embeddings.float()), self.proxies.float()
            with torch.no_grad():
                targets = (units * F.normalize(proxies[labels])).sum(dim=1)  # [B]
                if self.training:
                    self._update_t(targets, labels)
                phi = add_angular_margin(targets, self.margin)
            # A copy either way: the next step moves t before an earlier one may have had its backward.
            t = self.t[labels] if self.per_class else self.t.clone()
            cosines, negatives = targets_and_negatives(units, proxies, labels, phi, t, self.scale)
            # Cross-entropy: log(exp(s phi) + exp(negatives)) - s phi.
            return F.softplus(negatives - self.scale * add_angular_margin(cosines, self.margin), threshold=80).mean()

    @torch.no_grad()
    def _update_t(self, targets: Tensor, labels: Tensor) -> None:
        if self.per_class:
            # A class absent from the batch gets its own t as its "mean", so it does not move.
            means = self.t.scatter_reduce(0, labels, targets, "mean", include_self=False)  # [C]
        else:
            means = targets.mean()
        self.t.lerp_(means, 1 - self.momentum)

    @torch.no_grad()
    def place_proxies(self, directions: Tensor) -> None:
        """Put the proxies at unit vectors [C, E], with entries about as large as 1.

        The fresh proxies' entries are 0.01: an optimiser that moves each entry by its rate would turn those about in
        one step, whatever they mean.
        """
        self.proxies.copy_(directions * math.sqrt(self.embedding_size))

    def extra_repr(self) -> str:
        """Constants for ``print(loss)``."""
        return (
            f"num_classes={self.num_classes}, embedding_size={self.embedding_size}, margin={self.margin}, "
            f"scale={self.scale}, momentum={self.momentum}, per_class={self.per_class}"
        )
