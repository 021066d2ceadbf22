"""AdaptFormer: one adapter in every block, beside the MLP (Chen et al., NeurIPS 2022)."""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.config_values import require_option
from unimetric.models.backbone import Backbone, FrozenBlock
from unimetric.models.petl.base import Method, in_autocast_dtype


@dataclass(frozen=True)
class AdaptFormerOptions:
    """Options of AdaptFormer; the defaults are its paper's.

    Args:
        bottleneck: r, the adapter's hidden size.
        scale: s, the adapter's fixed factor.
    """

    bottleneck: int = 64
    scale: float = 0.1

    def __post_init__(self) -> None:
        fitting = 1 <= self.bottleneck <= 2**16
        require_option("adaptformer", self, "bottleneck", fitting, f"use a value from 1 to {2**16}")
        require_option("adaptformer", self, "scale", 0 < self.scale <= 1e3, "use a value above 0, at most 1000")


class AdaptFormer(Method):
    """``y + mlp(u) + s · (relu(u W_down + b_down) W_up + b_up)`` with ``u = norm2(y)`` (equations 3 and 4).

    ``W_up`` and the biases start at zero, so it starts as the backbone. Trainable parameters: ``L · (2 D r + r + D)``.
    """

    def __init__(self, backbone: Backbone, options: AdaptFormerOptions) -> None:
        super().__init__()
        self.scale = options.scale
        width, rank = backbone.width, options.bottleneck
        self.down = nn.ModuleList(nn.Linear(width, rank) for _ in range(backbone.depth))
        self.up = nn.ModuleList(nn.Linear(rank, width) for _ in range(backbone.depth))
        for down, up in zip(self.down, self.up, strict=True):
            nn.init.kaiming_uniform_(down.weight, a=math.sqrt(5))  # type: ignore[arg-type]
            nn.init.zeros_(down.bias)  # type: ignore[arg-type]
            nn.init.zeros_(up.weight)  # type: ignore[arg-type]
            nn.init.zeros_(up.bias)  # type: ignore[arg-type]

    def run_block(self, index: int, block: FrozenBlock, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Run the block with the adapter's output added to the MLP's."""
        tokens = tokens + block.attention(block.attention_input(tokens), rope)
        normed = in_autocast_dtype(block.mlp_input(tokens))
        adapted = self.up[index](F.relu(self.down[index](normed)))
        out: Tensor = tokens + block.mlp(normed) + (adapted if self.scale == 1 else self.scale * adapted)
        return out

    def fuse(self, backbone: Backbone) -> None:
        """Multiply the factor s into ``W_up`` and ``b_up``."""
        for parameter in self.up.parameters():
            parameter.data = parameter.data * self.scale
        self.scale = 1.0
