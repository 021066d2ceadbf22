"""VPT-deep: separate prompt tokens for every block (Jia et al., *Visual Prompt Tuning*, ECCV 2022)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimetric.config_values import require_option
from unimetric.models.backbone import Backbone
from unimetric.models.petl.base import Method


@dataclass(frozen=True)
class VptOptions:
    """Options of VPT-deep.

    Args:
        prompt_length: l, the number of prompt tokens of every block.
    """

    prompt_length: int = 8

    def __post_init__(self) -> None:
        fitting = 1 <= self.prompt_length <= 2**12
        require_option("vpt-deep", self, "prompt_length", fitting, f"use a value from 1 to {2**12}")


class VptDeep(Method):
    """Learned prompt tokens, l in every block, which replace the prompt tokens of the block before.

    They start uniform in ± √(6 / (3 · patch² + D)), as in the authors' code. Trainable parameters: ``L · l · D``.
    """

    def __init__(self, backbone: Backbone, options: VptOptions) -> None:
        super().__init__()
        self.prompt_count = options.prompt_length
        self.first = backbone.prefix_tokens
        limit = math.sqrt(6 / (3 * backbone.patch_size**2 + backbone.width))
        self.tokens = nn.Parameter(torch.empty(backbone.depth, options.prompt_length, backbone.width))
        nn.init.uniform_(self.tokens, -limit, limit)

    def prompts(self, patches: Tensor, backbone: Backbone) -> Tensor | None:
        """Return the first block's tokens [B, l, D]."""
        return self.tokens[0].expand(patches.shape[0], -1, -1)

    def enter_block(self, index: int, tokens: Tensor) -> Tensor:
        """Return the tokens [B, T, D] with this block's prompts in place of the previous block's."""
        if not index:
            return tokens
        own = self.tokens[index].to(tokens.dtype).expand(tokens.shape[0], -1, -1)
        after = self.first + self.prompt_count
        return torch.cat([tokens[:, : self.first], own, tokens[:, after:]], dim=1)
