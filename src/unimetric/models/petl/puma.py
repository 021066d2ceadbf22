"""PUMA: stochastic adapters and a conditional prompt pool (Kim, Kim, Kwak, WACV 2025)."""

from dataclasses import dataclass

from torch import Tensor, nn

from unimetric.config_values import require_option
from unimetric.models.backbone import Backbone, FrozenBlock
from unimetric.models.petl.adapter import StochasticAdapter
from unimetric.models.petl.base import Method, in_autocast_dtype
from unimetric.models.petl.prompt_pool import PromptPool


@dataclass(frozen=True)
class PumaOptions:
    """Options of PUMA; the defaults are the paper's.

    Args:
        adapter_bottleneck: r, the adapters' hidden size; 0 for no adapters.
        adapter_scale: s, the adapters' fixed factor.
        adapter_drop: p, the probability in [0, 1) that an adapter is switched off for a sample during training.
        prompts: M, the number of prompts in the pool; 0 for no pool.
        prompt_length: l, the tokens of a prompt.
        orthogonality: Weight of the pool's orthogonality penalty.
    """

    adapter_bottleneck: int = 128
    adapter_scale: float = 0.1
    adapter_drop: float = 0.5
    prompts: int = 20
    prompt_length: int = 8
    orthogonality: float = 1e-6

    def __post_init__(self) -> None:
        for name, low, high in (
            ("adapter_bottleneck", 0, 2**16),
            ("prompts", 0, 2**16),
            ("prompt_length", 1, 2**12),
            ("orthogonality", 0, 1e6),
        ):
            fitting = low <= getattr(self, name) <= high
            require_option("puma", self, name, fitting, f"use a value from {low} to {high}")
        require_option("puma", self, "adapter_drop", 0 <= self.adapter_drop < 1, "use 0 or more, below 1")
        fitting = 0 < self.adapter_scale <= 1e3
        require_option("puma", self, "adapter_scale", fitting, "use a value above 0, at most 1000")


class Puma(Method):
    """Two stochastic adapters in every block, one beside attention and one beside the MLP, and a prompt pool.

    Trainable parameters: ``L · 2 · 2 · D · r`` for the adapters, ``M · l · D + 2 · M · D`` for the pool.

    Args:
        backbone: The frozen backbone to attach to.
        options: See `PumaOptions`.
    """

    def __init__(self, backbone: Backbone, options: PumaOptions) -> None:
        super().__init__()
        self.options = options
        width, rank = backbone.width, options.adapter_bottleneck

        def adapters() -> nn.ModuleList:
            count = backbone.depth if rank else 0
            return nn.ModuleList(
                StochasticAdapter(width, rank, options.adapter_scale, options.adapter_drop) for _ in range(count)
            )

        self.attention_adapters, self.mlp_adapters = adapters(), adapters()
        self.pool = PromptPool(width, options.prompts, options.prompt_length) if options.prompts else None
        self.prompt_count = options.prompt_length if options.prompts else 0

    def prompts(self, patches: Tensor, backbone: Backbone) -> Tensor | None:
        """Return the conditional prompt [B, l, D], with the class token's position embedding added."""
        return None if self.pool is None else self.pool(patches) + backbone.class_position

    def prompt_weights(self, patches: Tensor) -> Tensor | None:
        """Return the weights α [B, M] of the prompts, in [-1, 1], for patch tokens [B, N, D]."""
        return None if self.pool is None else self.pool.weights(patches)

    def run_block(self, index: int, block: FrozenBlock, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Compute ``y = x + attn(h) + adapter(h)`` and ``y + mlp(u) + adapter(u)``, with h and u layer-normed."""
        if not self.attention_adapters:
            return block(tokens, rope)
        normed = in_autocast_dtype(block.attention_input(tokens))
        tokens = self.attention_adapters[index](normed, tokens + block.attention(normed, rope))
        normed = in_autocast_dtype(block.mlp_input(tokens))
        adapted: Tensor = self.mlp_adapters[index](normed, tokens + block.mlp(normed))
        return adapted

    def fuse(self, backbone: Backbone) -> None:
        """Multiply the factor s into every ``W_up``."""
        for adapter in (*self.attention_adapters, *self.mlp_adapters):
            adapter.fold_scale()

    def penalty(self) -> Tensor | None:
        """Return the weighted orthogonality penalty of the pool, or None without a pool."""
        return None if self.pool is None else self.options.orthogonality * self.pool.penalty()
