"""The stochastic adapter of PUMA (Kim, Kim, Kwak, WACV 2025, section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.models.petl.noise import uniform


class StochasticAdapter(nn.Module):
    """A bottleneck beside a frozen sub-layer, dropped per sample during training.

    ``scale · b · relu(h W_down) W_up``, where ``b = Bernoulli(1 - drop) / (1 - drop)`` for each sample during
    training, which keeps the expectation, and ``b = 1`` at evaluation. ``W_up`` starts at zero, so a new adapter
    changes nothing.

    Weights, gradients and optimiser state are float32, while under autocast the matrix products run in the autocast
    type. The head, the prompt pool and the loss are float32 throughout.

    Args:
        width: D, the size of a token.
        bottleneck: r, the size of the hidden layer.
        scale: The fixed factor s.
        drop: Probability p in [0, 1) that a sample's adapter is switched off.
    """

    def __init__(self, width: int, bottleneck: int = 128, scale: float = 0.1, drop: float = 0.5) -> None:
        super().__init__()
        self.down = nn.Linear(width, bottleneck, bias=False)
        self.up = nn.Linear(bottleneck, width, bias=False)
        self.scale, self.drop = scale, drop
        nn.init.kaiming_uniform_(self.down.weight, nonlinearity="relu")
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor, total: Tensor | None = None) -> Tensor:
        """Return the addition to the sub-layer's output, [B, T, D], for its layer-normed input [B, T, D].

        With ``total`` [B, T, D], return the sum of both. ``total`` may be changed in place, so it must be a temporary
        tensor.
        """
        if total is None:
            total = torch.zeros_like(tokens)
        if not self.training or self.drop == 0:
            return total + self._bottleneck(tokens, self.scale)
        # Drawn on the CPU, for the same samples on every device and no synchronisation to count them.
        kept = (uniform(len(tokens)) >= self.drop).nonzero().squeeze(1).to(tokens.device, non_blocking=True)  # (K,)
        # Samples whose adapter is off cost nothing. If all are off, the products have no rows, and their zero gradients
        # still take part in the reduction among processes.
        out = self._bottleneck(tokens.index_select(0, kept), self.scale / (1 - self.drop))  # (K, T, D)
        return total.index_add_(0, kept, out.to(total.dtype))

    def _bottleneck(self, tokens: Tensor, factor: float) -> Tensor:
        hidden = F.relu(self.down(tokens))
        # Scale the small weight instead of the tokens, which saves one pass over [B, T, D].
        out: Tensor = self.up(hidden) if factor == 1 else F.linear(hidden, self.up.weight * factor)
        return out

    def fold_scale(self) -> None:
        """Multiply the factor into ``W_up``, for inference."""
        self.up.weight.data = self.up.weight.data * self.scale
        self.scale = 1.0
