"""Losses of the baselines, from pytorch-metric-learning, with the paper's constants and miners.

Each function takes ``num_classes`` and ``embedding_size`` (``C``, ``E``; the pair losses ignore ``C``) and
the loss's constants by name, and returns a module called as ``loss(embeddings, labels) -> scalar``. Each
raises ``ValueError`` for a constant outside its range.
"""

import math

import torch
from pytorch_metric_learning import distances, losses, miners
from torch import Tensor, nn

from unimetric.losses.angular import add_angular_margin
from unimetric.losses.checks import check_batch, check_constant, no_autocast


class MinedLoss(nn.Module):
    """A pytorch-metric-learning loss with its miner, computed in float32 even under autocast.

    The library computes in the type of the embeddings and permanently converts the proxies to it, so one bfloat16
    batch would leave bfloat16 proxies. This class casts the embeddings to float32 instead.

    Args:
        loss: the library's loss.
        embedding_size: ``E``.
        num_classes: ``C`` for losses with class proxies, None for pair losses.
        miner: chooses the pairs or triplets; None for all.
    """

    def __init__(
        self, loss: nn.Module, embedding_size: int, num_classes: int | None = None, miner: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.loss = loss
        self.miner = miner
        self.embedding_size = embedding_size
        self.num_classes = num_classes

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch; 0, with a graph for the backward pass, if no pair has a loss.

        Args:
            embeddings: shape ``[B, E]``, any floating type, any norm (the losses normalise).
            labels: int64, shape ``[B]``; in ``[0, C)`` for losses with class proxies.

        Returns:
            Float32 scalar.

        Raises:
            ValueError: for a wrong shape or type, or a label out of range.
        """
        check_batch(embeddings, labels, self.embedding_size, self.num_classes)
        with no_autocast(embeddings):
            embeddings = embeddings.float()
            mined = None if self.miner is None else self.miner(embeddings, labels)
            value: Tensor = self.loss(embeddings, labels, mined)
            return value

    @torch.no_grad()
    def place_proxies(self, directions: Tensor) -> None:
        """Set the proxies to unit vectors [C, E], scaled so that entries have magnitude about 1; no-op for pair losses.

        Several centres of a class are placed side by side, apart by a tenth of their length.
        """
        scaled = directions * math.sqrt(self.embedding_size)
        for name, parameter in self.loss.named_parameters():
            if name == "proxies":  # [C, E]
                parameter.copy_(scaled)
            elif name == "W":  # [E, C]
                parameter.copy_(scaled.T)
            elif name == "fc":  # [E, C * centers]
                centers = parameter.shape[1] // len(scaled)
                # Drawn on the CPU, the same on every device.
                apart = 0.1 * torch.randn(parameter.shape).to(scaled.device)
                parameter.copy_(scaled.repeat_interleave(centers, 0).T + apart)


def triplet(num_classes: int, embedding_size: int, margin: float = 0.05) -> nn.Module:
    """Triplet loss on cosines over each anchor's hardest positive and negative of the batch.

    Mean over the triplets that violate ``c_ap >= c_an + margin`` (Hermans et al., 2017, equation 5, with
    cosines instead of distances). The miner ranks by cosine as well. Its default, the Euclidean distance of normalised
    vectors, has the same order, but rounding noise between near duplicates.
    """
    check_constant(0 <= margin < math.inf, "margin must be at least 0", margin)
    loss = losses.TripletMarginLoss(margin=margin, distance=distances.CosineSimilarity())
    return MinedLoss(loss, embedding_size, miner=miners.BatchHardMiner(distance=distances.CosineSimilarity()))


def margin_loss(
    num_classes: int,
    embedding_size: int,
    margin: float = 0.2,
    beta: float = 1.2,
    cutoff: float = 0.5,
    nonzero_cutoff: float = 1.4,
) -> nn.Module:
    """Margin loss with distance-weighted sampling (Wu et al., *Sampling Matters*, ICCV 2017).

    ``relu(d_ap - beta + margin) + relu(beta - d_an + margin)`` on Euclidean distances of normalised vectors.
    The boundary ``beta`` is fixed (their ``nu``, a penalty on learnt boundaries, is 0). Negatives are drawn
    with a probability inverse to the density of their distance, which is clamped from below at ``cutoff``;
    none are drawn beyond ``nonzero_cutoff``. Draws come from torch's global generator.
    """
    check_constant(0 <= margin < math.inf, "margin must be at least 0", margin)
    check_constant(0 <= beta <= 2, "beta must be in [0, 2], the distances of unit vectors", beta)
    check_constant(0 < nonzero_cutoff <= 2, "nonzero_cutoff must be in (0, 2]", nonzero_cutoff)
    check_constant(0 < cutoff < nonzero_cutoff, "cutoff must be between 0 and nonzero_cutoff", cutoff)
    loss = losses.MarginLoss(margin=margin, beta=beta, nu=0)
    miner = miners.DistanceWeightedMiner(cutoff=cutoff, nonzero_loss_cutoff=nonzero_cutoff)
    return MinedLoss(loss, embedding_size, miner=miner)


def multi_similarity(
    num_classes: int,
    embedding_size: int,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float = 0.1,
) -> nn.Module:
    """Multi-Similarity loss and mining (Wang et al., CVPR 2019).

    ``alpha`` and ``beta`` sharpen positives and negatives, ``base`` is their ``lambda``, ``epsilon`` the
    slack with which the miner keeps a pair.
    """
    check_constant(0 < alpha < math.inf, "alpha must be positive", alpha)
    check_constant(0 < beta < math.inf, "beta must be positive", beta)
    check_constant(-1 <= base <= 1, "base must be in [-1, 1]", base)
    check_constant(0 <= epsilon < math.inf, "epsilon must be at least 0", epsilon)
    loss = losses.MultiSimilarityLoss(alpha=alpha, beta=beta, base=base)
    return MinedLoss(loss, embedding_size, miner=miners.MultiSimilarityMiner(epsilon=epsilon))


def proxy_anchor(num_classes: int, embedding_size: int, margin: float = 0.1, alpha: float = 32.0) -> nn.Module:
    """Proxy-Anchor loss (Kim et al., CVPR 2020, equation 4); ``margin`` is their ``delta``."""
    check_constant(0 <= margin < math.inf, "margin must be at least 0", margin)
    check_constant(0 < alpha < math.inf, "alpha must be positive", alpha)
    loss = losses.ProxyAnchorLoss(num_classes, embedding_size, margin=margin, alpha=alpha)
    return MinedLoss(loss, embedding_size, num_classes)


def proxynca_pp(num_classes: int, embedding_size: int, temperature: float = 1 / 9) -> nn.Module:
    """ProxyNCA++ (Teh et al., ECCV 2020): softmax over ``-squared distance / temperature``.

    For unit vectors the squared distance is ``2 - 2 cosine``, and softmax ignores the constant: the loss is a
    normalised softmax over ``cosine / (temperature / 2)``. This form is used because the library's
    ``ProxyNCALoss(softmax_scale=1/temperature)``, mathematically equal, takes the logarithm after the softmax and
    drops the samples whose probability underflows, which are the hardest.
    """
    check_constant(0 < temperature < math.inf, "temperature must be positive", temperature)
    loss = losses.NormalizedSoftmaxLoss(num_classes, embedding_size, temperature=temperature / 2)
    return MinedLoss(loss, embedding_size, num_classes)


def softtriple(
    num_classes: int,
    embedding_size: int,
    centers: int = 10,
    scale: float = 20.0,
    gamma: float = 0.1,
    margin: float = 0.01,
) -> nn.Module:
    """SoftTriple loss with several centres per class (Qian et al., ICCV 2019).

    ``scale`` is their ``lambda``, ``gamma`` the temperature among a class's centres (the library keeps its
    inverse), ``margin`` their ``delta``. Without their regulariser that merges centres.
    """
    check_constant(centers >= 1, "centers must be at least 1", centers)
    check_constant(0 < scale < math.inf, "scale must be positive", scale)
    check_constant(0 < gamma < math.inf, "gamma must be positive", gamma)
    check_constant(0 <= margin < math.inf, "margin must be at least 0", margin)
    loss = losses.SoftTripleLoss(
        num_classes, embedding_size, centers_per_class=centers, la=scale, gamma=gamma, margin=margin
    )
    return MinedLoss(loss, embedding_size, num_classes)


def cosface(num_classes: int, embedding_size: int, margin: float = 0.35, scale: float = 64.0) -> nn.Module:
    """CosFace (Wang et al., CVPR 2018, equation 4): ``margin`` is subtracted from the target cosine."""
    check_constant(0 <= margin < math.inf, "margin must be at least 0", margin)
    check_constant(0 < scale < math.inf, "scale must be positive", scale)
    loss = losses.CosFaceLoss(num_classes, embedding_size, margin=margin, scale=scale)
    return MinedLoss(loss, embedding_size, num_classes)


class _FiniteArcFaceLoss(losses.ArcFaceLoss):  # type: ignore[misc]  # the library is untyped
    """ArcFace without the arc cosine, whose gradient is infinite at cosine 1.

    The library clamps the cosine first, but older releases of torch pass the gradient at the clamp's bounds.
    """

    def modify_cosine_of_target_classes(self, cosine_of_target_classes: Tensor) -> Tensor:
        return add_angular_margin(cosine_of_target_classes, self.margin)


def arcface(num_classes: int, embedding_size: int, margin: float = 0.5, scale: float = 64.0) -> nn.Module:
    """ArcFace (Deng et al., CVPR 2019, equation 3); ``margin`` in radians (the library takes degrees)."""
    check_constant(0 <= margin < math.pi, "margin must be in [0, pi) radians", margin)
    check_constant(0 < scale < math.inf, "scale must be positive", scale)
    loss = _FiniteArcFaceLoss(num_classes, embedding_size, margin=math.degrees(margin), scale=scale)
    return MinedLoss(loss, embedding_size, num_classes)
