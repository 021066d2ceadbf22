"""The hyperbolic loss of Ermolov et al., CVPR 2022: softmax over the images of a batch, by distance in the ball."""

import math

import torch
from torch import Tensor, nn

from unimetric.geometry import PoincareBall
from unimetric.losses.checks import check_batch, check_constant, no_autocast


def supervised_contrast(distances: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Return the mean of ``-log( exp(-d_ip / T) / sum_{a != i} exp(-d_ia / T) )`` over ordered pairs (i, p) of a class.

    SupCon (Khosla et al., *Supervised Contrastive Learning*, NeurIPS 2020) with distances instead of
    similarities. Every pair has the same weight; with equally many images of each class, so does every anchor.

    Args:
        distances: shape ``[B, B]``, at least 0; the diagonal is ignored.
        labels: int64, shape ``[B]``.
        temperature: ``T``, positive.

    Returns:
        Scalar, at least 0 up to rounding; 0 if no two labels are equal.
    """
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels) & ~itself
    # A finite minimum instead of -inf, so that a batch of one has a gradient of zero instead of NaN.
    logits = (-distances / temperature).masked_fill(itself, torch.finfo(distances.dtype).min)  # (B, B)
    surprise = logits.logsumexp(dim=1, keepdim=True) - logits
    return torch.where(positive, surprise, 0.0).sum() / positive.sum().clamp_min(1)


class Hyperbolic(nn.Module):
    """Supervised contrast over the pairs of a batch, on distances in the Poincaré ball.

    Source: Ermolov et al., *Hyperbolic Vision Transformers: Combining Improvements in Metric Learning*, CVPR 2022,
    with all the other images of the batch in the denominator, as in SupCon. (Their public code
    draws one positive at a time and leaves the class's other images out of that pair's denominator.)

    Args:
        num_classes: not used, because there are no proxies.
        embedding_size: ``E``, at least 1.
        temperature: positive.
        curvature: ``c`` of the ball, see `PoincareBall`.
        clip: ``r``, the length to which the embedder clips features before it maps them into the ball. Points beyond
            that are moved back, so that none lies on the border.

    Raises:
        ValueError: for a constant outside its range.
    """

    def __init__(
        self, num_classes: int, embedding_size: int, temperature: float = 0.2, curvature: float = 0.1, clip: float = 2.3
    ) -> None:
        super().__init__()
        check_constant(embedding_size >= 1, "embedding_size must be at least 1", embedding_size)
        check_constant(0 < temperature < math.inf, "temperature must be positive", temperature)
        self.embedding_size = embedding_size
        self.temperature = temperature
        self.ball = PoincareBall(curvature, clip)

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, in float32 even under autocast; 0, with a graph, if no two labels are equal.

        Args:
            embeddings: points of the ball, shape ``[B, E]``, any floating type.
            labels: int64, shape ``[B]``.

        Returns:
            Float32 scalar.

        Raises:
            ValueError: for a wrong shape or type.
        """
        check_batch(embeddings, labels, self.embedding_size, None)
        with no_autocast(embeddings):
            points = self.ball.project(embeddings.float())
            return supervised_contrast(self.ball.distances(points, points), labels, self.temperature)
