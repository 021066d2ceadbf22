"""PUMA: stochastic adapters and a conditional prompt pool (Kim, Kim, Kwak, WACV 2025)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.config_values import require_option
from unimetric.models.backbone import Backbone, FrozenBlock
from unimetric.models.petl.base import Method, in_autocast_dtype
from unimetric.models.petl.noise import uniform


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


class PromptPool(nn.Module):
    """A pool of M prompts, mixed for each image by the similarity of its patches to each prompt's key.

    With the query ``q`` of an image, ``α_m = cos(q ⊙ softmax_D(A_m), K_m)`` and the conditional prompt is
    ``Σ_m α_m P_m``. Keys and attentions start orthogonal; all prompts start as the same orthogonal l×D matrix,
    so that keys and attentions alone break the symmetry, as in the authors' code.

    Args:
        width: D, the size of a token.
        size: M, the number of prompts.
        length: l, the tokens of a prompt.
    """

    def __init__(self, width: int, size: int = 20, length: int = 8) -> None:
        super().__init__()
        self.keys = nn.Parameter(nn.init.orthogonal_(torch.empty(size, width)))
        self.attentions = nn.Parameter(nn.init.orthogonal_(torch.empty(size, width)))
        self.prompts = nn.Parameter(nn.init.orthogonal_(torch.empty(length, width)).expand(size, -1, -1).clone())

    def weights(self, patches: Tensor) -> Tensor:
        """Return the weights α [B, M], in [-1, 1], for patch tokens [B, N, D], which get no gradient.

        The query is the mean of the mean and the maximum over patches. Computed in float32 under autocast.
        """
        with torch.autocast(patches.device.type, enabled=False):
            patches = patches.detach().float()
            query = (patches.mean(1) + patches.amax(1)) / 2  # (B, D)
            attention = self.attentions.softmax(dim=1)  # (M, D)
            # cos(q ⊙ a_m, K_m) without the [B, M, D] products: <q ⊙ a, K> = <q, a ⊙ K>, |q ⊙ a|² = <q², a²>.
            dot = query @ (attention * self.keys).T  # (B, M)
            norms = (query.square() @ attention.square().T).clamp_min(1e-24).sqrt()  # (B, M)
            weights: Tensor = dot / (norms * self.keys.norm(dim=1).clamp_min(1e-12))
            return weights

    def forward(self, patches: Tensor) -> Tensor:
        """Return the conditional prompt [B, l, D] for patch tokens [B, N, D]."""
        weights = self.weights(patches)
        with torch.autocast(patches.device.type, enabled=False):
            return torch.einsum("bm,mld->bld", weights, self.prompts)

    def penalty(self) -> Tensor:
        """Return the mean squared distance from orthogonality of keys, attentions and flattened prompts, a scalar."""
        with torch.autocast(self.keys.device.type, enabled=False):
            return sum(
                (F.linear(rows, rows) - torch.eye(len(rows), device=rows.device)).square().mean()
                for rows in (self.keys, self.attentions, self.prompts.flatten(1))
            )  # type: ignore[return-value]


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
