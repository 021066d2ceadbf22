"""LoRA: low-rank updates of a frozen backbone's products (Hu et al., ICLR 2022)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unimetric.config_values import require_option
from unimetric.errors import UserError
from unimetric.models.backbone import Backbone, FrozenBlock
from unimetric.models.petl.base import Method, in_autocast_dtype, mean_of_weights

_MLP = ("mlp.fc1", "mlp.fc2", "mlp.fc1_g", "mlp.fc1_x")
_TARGETS = {
    "qkv": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attention": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"),
    "all": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", *_MLP),
}


@dataclass(frozen=True)
class LoraOptions:
    """Options of LoRA.

    Args:
        rank: r, the inner size of the update ``B A``.
        alpha: The update's factor is ``alpha / rank``.
        targets: ``qkv`` for queries, keys and values; ``attention`` for these and the output projection;
            ``all`` for the MLP's products too.
    """

    rank: int = 16
    alpha: float = 16.0
    targets: str = "qkv"

    def __post_init__(self) -> None:
        require_option("lora", self, "rank", 1 <= self.rank <= 2**12, f"use a value from 1 to {2**12}")
        require_option("lora", self, "alpha", 0 < self.alpha <= 1e4, "use a value above 0, at most 10000")
        require_option("lora", self, "targets", self.targets in _TARGETS, f"use {', '.join(_TARGETS)}")


class LowRankUpdate(nn.Module):
    """``W x + s · B A x + b`` in place of a frozen layer's ``W x + b``.

    A starts uniform like a new linear layer (Kaiming with a = √5) and B zero, so the module starts as the frozen layer.

    Args:
        frozen: W [O, D] and b [O].
        rank: r, for A [r, D] and B [O, r].
        factor: s.
    """

    def __init__(self, frozen: nn.Linear, rank: int, factor: float) -> None:
        super().__init__()
        self.frozen, self.factor = frozen, factor
        self.down = nn.Linear(frozen.in_features, rank, bias=False)
        self.up = nn.Linear(rank, frozen.out_features, bias=False)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [..., D] to [..., O]."""
        out: Tensor = self.frozen(tokens)
        # Scaling the r inner numbers and adding in place saves two passes over [..., O].
        return out.add_(self.up(self.down(tokens) * self.factor))

    def merged(self) -> nn.Linear:
        """Return the frozen layer with ``W + s · B A``, without changing values that it shares with other layers."""
        update = self.up.weight.data @ self.down.weight.data
        self.frozen.weight.data = self.frozen.weight.data + self.factor * update
        return self.frozen


class Lora(Method):
    """``W x + (alpha / r) · B A x`` in place of ``W x`` in the target layers; see `LowRankUpdate`.

    Trainable parameters: ``L · r · (D + 3 D)`` with one product for queries, keys and values, and ``L · r · 2 D``
    more with the output projection, and ``L · r · 2 (D + 4 D)`` more with an MLP of the usual size.

    Raises:
        UserError: the backbone has none of the target layers.
    """

    def __init__(self, backbone: Backbone, options: LoraOptions) -> None:
        super().__init__()
        layers = {
            name: LowRankUpdate(module, options.rank, options.alpha / options.rank)
            for name, module in backbone.vit.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(_TARGETS[options.targets])
        }
        if not layers:
            raise UserError(
                f"--model.method lora: {backbone.name} has no {' or '.join(_TARGETS[options.targets])} to attach to; "
                "use another backbone or method"
            )
        for module in backbone.vit.modules():
            # EVA's attention reads the weight directly unless its bias is added separately; then it calls the layer.
            if getattr(module, "q_bias", None) is not None:
                module.qkv_bias_separate = True
        for name, layer in layers.items():
            backbone.vit.set_submodule(name, layer)
        # Registered here as well, so that learned parameters belong to the method, as with every other method.
        self.down = nn.ModuleList(layer.down for layer in layers.values())
        self.up = nn.ModuleList(layer.up for layer in layers.values())

    def fuse(self, backbone: Backbone) -> None:
        """Replace every updated layer by a plain one with the weight ``W + (alpha / r) · B A``."""
        for name, layer in [(n, m) for n, m in backbone.vit.named_modules() if isinstance(m, LowRankUpdate)]:
            backbone.vit.set_submodule(name, layer.merged())
        for module in backbone.vit.modules():
            if getattr(module, "q_bias", None) is not None:
                module.qkv_bias_separate = False
        self.down, self.up = nn.ModuleList(), nn.ModuleList()

    def run_block(self, index: int, block: FrozenBlock, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Run the block, casting its layer-normed inputs once for both the frozen and the low-rank product."""
        tokens = tokens + block.attention(in_autocast_dtype(block.attention_input(tokens)), rope)
        return tokens + block.mlp(in_autocast_dtype(block.mlp_input(tokens)))


def mean_of_updates(
    options: LoraOptions, states: Sequence[Mapping[str, Tensor]]
) -> tuple[LoraOptions, dict[str, Tensor]]:
    """Return LoRA whose updates are the mean of those of k models, exactly, with k times the rank.

    The mean ``Σ (alpha / r) · B_i A_i / k`` is an update with ``[A_1; …; A_k]``, ``[B_1 … B_k]`` and the factor
    ``alpha / (k · r)``. The mean of the A_i and that of the B_i would be another one.
    """
    _, merged = mean_of_weights(options, states)
    for part, axis in (("method.down.", 0), ("method.up.", 1)):
        for name in [name for name in merged if name.startswith(part)]:
            merged[name] = torch.cat([state[name] for state in states], dim=axis)
    return replace(options, rank=options.rank * len(states)), merged
