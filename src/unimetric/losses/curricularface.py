"""CurricularFace, PUMA's training loss: hard negatives get more weight as training advances."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unimetric.losses.angular import add_angular_margin
from unimetric.losses.checks import check_batch, check_constant, no_autocast
from unimetric.losses.negatives import own_cosines, targets_and_negatives
from unimetric.losses.slices import ProxySlice


class CurricularFace(nn.Module):
    """Softmax over class proxies with an angular margin and an adaptive curriculum.

    Source: Huang et al., *CurricularFace: Adaptive Curriculum Learning Loss for Deep Face Recognition*,
    CVPR 2020. With ``c`` the cosines of a sample of class ``y``: the target's logit is ``phi = add_angular_margin(c_y,
    margin)``; a negative ``c_j`` stays if ``phi >= c_j`` (easy), else becomes ``c_j * (t + c_j)`` (hard). (Their public
    code compares ``c_j`` with ``cos(theta_y + m)`` even where the target itself takes the fallback below
    ``cos(pi - m)``. Here both are the one ``phi``; the two differ only when target and negative both lie nearly
    opposite to the sample.) ``t`` is an exponential moving average of the target cosine. It starts at 0 and damps the
    hard negatives (``c_j * t + c_j^2``) until the model is good enough to learn from them. The original keeps
    one scalar for all classes; PUMA keeps one per class, updated for the classes in the batch, so that progress on an
    easy dataset does not affect one on which the model is still poor. A sample's negatives are modulated by the ``t``
    of the sample's **own** class, which measures how well that class has been learnt and therefore whether its samples
    are ready for hard negatives.

    PUMA's public code uses ``t`` first and updates it after (the default); Huang et al. update it first
    (``update_first``). ``t`` carries no gradient and does not change in evaluation mode.

    With ``sampled_classes``, a training step's softmax runs over the batch's own P classes and n of the C - P others,
    drawn without replacement from torch's generator of the CPU (as in An et al., *Killing Two Birds with One Stone:
    Efficient and Robust Training of Face Recognition CNNs by Partial FC*, CVPR 2022). Unlike theirs, each drawn class
    counts (C - P) / n times: the sum ``Z`` of exponentials under the logarithm is then right on average. Its logarithm
    is not: ``E[log Z'] = log Z - Var(Z') / (2 Z^2) + ...`` is too low (Jensen), and less so the larger n is.

    Args:
        num_classes: ``C``, at least 1.
        embedding_size: ``E``, at least 1.
        margin: radians, in [0, pi).
        scale: multiplies the logits, positive.
        momentum: of the moving average, in [0, 1).
        per_class: one ``t`` per class (PUMA) or one for all (Huang et al.).
        update_first: update ``t`` from a training batch before its loss is computed (Huang et al.), not after (PUMA).
        sampled_classes: number of classes outside the batch that take part in a training step; below 1, a share of
            them; 0 for all.

    Attributes:
        proxies: learnable, float32, shape ``[C, E]`` (this process's part where they are divided), drawn with standard
            deviation 0.01 as the original does. Only directions matter to the loss; the norm sets how fast an optimiser
            turns them.
        t: buffer, float32, shape ``[C]`` or ``[]``; part of the state dict.
        slice: the classes of these proxies, or None for all.
        drawn: rows of ``proxies`` that took part in the latest training step, ascending, int64; None for all.

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
        update_first: bool = False,
        sampled_classes: float = 0.0,
    ) -> None:
        super().__init__()
        check_constant(num_classes >= 1, "num_classes must be at least 1", num_classes)
        check_constant(embedding_size >= 1, "embedding_size must be at least 1", embedding_size)
        check_constant(0 <= margin < math.pi, "margin must be in [0, pi) radians", margin)
        check_constant(0 < scale < math.inf, "scale must be positive", scale)
        check_constant(0 <= momentum < 1, "momentum must be in [0, 1)", momentum)
        whole = sampled_classes < 1 or float(sampled_classes).is_integer()
        requirement = "sampled_classes must be a whole number, a share below 1, or 0 for all"
        check_constant(sampled_classes >= 0 and whole, requirement, sampled_classes)
        self.num_classes = num_classes
        self.embedding_size = embedding_size
        self.margin = margin
        self.scale = scale
        self.momentum = momentum
        self.per_class = per_class
        self.update_first = update_first
        self.sampled_classes = sampled_classes
        self.slice: ProxySlice | None = None
        self.drawn: Tensor | None = None
        self.proxies = nn.Parameter(torch.empty(num_classes, embedding_size))
        nn.init.normal_(self.proxies, std=0.01)
        self.register_buffer("t", torch.zeros(num_classes) if per_class else torch.zeros(()))

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch, computed in float32 even under autocast.

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
            units = F.normalize(embeddings.float())
            proxies, places, log_weights = self._of_step(labels)
            with torch.no_grad():
                targets = own_cosines(units, proxies, places)  # [B]
                if self.slice:
                    targets = self.slice.parts(targets).sum(dim=0)
                # Copy t, because it is updated in place below, before the backward pass of this batch.
                t = self.t[labels] if self.per_class else self.t.clone()
                if self.training:
                    self._update_t(targets, labels)
                    if self.update_first:
                        t = self.t[labels] if self.per_class else self.t.clone()
                phi = add_angular_margin(targets, self.margin)
            if self.slice:
                units = self.slice.entrust(units)
            cosines, negatives = targets_and_negatives(units, proxies, places, phi, t, self.scale, log_weights)
            if self.slice:
                parts = self.slice.parts(torch.stack([cosines, negatives]))  # [W, 2, B]
                cosines, negatives = parts[:, 0].sum(dim=0), parts[:, 1].logsumexp(dim=0)
            # Cross-entropy: log(exp(s phi) + exp(negatives)) - s phi.
            return F.softplus(negatives - self.scale * add_angular_margin(cosines, self.margin), threshold=80).mean()

    def _of_step(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return this process's proxies for a step, each label's row among them (or -1), and logarithmic weights."""
        if self.slice:
            places = labels - self.slice.classes.start
            places = torch.where((places >= 0) & (places < len(self.proxies)), places, -1)
        else:
            places = labels
        if not self.training or self.sampled_classes == 0:
            return self.proxies.float(), places, None
        classes, log_weights = self._draw(labels.cpu())
        if self.slice:
            here = (classes >= self.slice.classes.start) & (classes < self.slice.classes.stop)
            classes, log_weights = classes[here] - self.slice.classes.start, log_weights[here]
        self.drawn = classes.to(labels.device)
        places = torch.where(places >= 0, torch.searchsorted(self.drawn, places), -1)
        return self.proxies[self.drawn].float(), places, log_weights.to(labels.device)

    def _draw(self, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classes of a step, ascending, and their logarithmic weights, the same in every process."""
        weights = torch.full((self.num_classes,), -torch.inf)
        weights[labels] = 0.0
        others = weights.isneginf().nonzero().flatten()
        share = self.sampled_classes * len(others) if self.sampled_classes < 1 else self.sampled_classes
        count = min(math.ceil(share), len(others))
        weights[others[torch.randperm(len(others))[:count]]] = math.log(len(others) / count) if count else 0.0
        classes = weights.isfinite().nonzero().flatten()
        return classes, weights[classes]

    @torch.no_grad()
    def _update_t(self, targets: Tensor, labels: Tensor) -> None:
        if self.per_class:
            # A class absent from the batch gets its own t as its "mean", so it does not change.
            means = self.t.scatter_reduce(0, labels, targets, "mean", include_self=False)  # [C]
        else:
            means = targets.mean()
        self.t.lerp_(means, 1 - self.momentum)

    @torch.no_grad()
    def keep_slice(self, rank: int, count: int) -> None:
        """Keep only the proxies of this process's classes; call it before an optimiser is made."""
        self.slice = ProxySlice(rank, count, self.num_classes)
        self.proxies = nn.Parameter(self.proxies[self.slice.classes].clone())

    @torch.no_grad()
    def place_proxies(self, directions: Tensor) -> None:
        """Set the proxies to unit vectors [C, E], scaled so that entries have magnitude about 1.

        With entries of 0.01, as random proxies have, an optimiser that moves each entry by its learning rate would
        replace the given directions within one step.
        """
        self.proxies.copy_(directions * math.sqrt(self.embedding_size))
