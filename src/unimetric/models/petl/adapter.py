"""The stochastic adapter of PUMA (Kim, Kim, Kwak, WACV 2025, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class StochasticAdapter(nn.Module):
    """A bottleneck beside a frozen sub-layer, dropped per sample during training.

    ``scale · b · relu(h W_down) W_up`` with ``b = Bernoulli(1 - drop) / (1 - drop)`` for each sample during
    training, which keeps the expectation, and ``b = 1`` at evaluation. ``W_up`` starts at zero, so a fresh adapter
    changes nothing.

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

    def forward(self, tokens: Tensor) -> Tensor:
        """What to add to the sub-layer's output, [B, T, D], for its layer-normed input [B, T, D]."""
        # Scaling the weight instead of the output saves a pass over [B, T, D].
        hidden = F.relu(self.down(tokens))  # (B, T, r)
        if self.training and self.drop > 0:
            keep = torch.rand(len(tokens), 1, 1, device=tokens.device) >= self.drop
            hidden = hidden * (keep / (1 - self.drop)).to(hidden.dtype)
        return F.linear(hidden, self.up.weight * self.scale)  # (B, T, D)
