"""The base class of all methods."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unimetric.models.backbone import Backbone, FrozenBlock


class Method(nn.Module):
    """A parameter-efficient method; the base class learns nothing and changes nothing.

    A method overrides the hooks that it needs: `prompts` adds tokens before the first block, `enter_block` changes a
    block's input, `run_block` replaces its computation, `penalty` adds to the loss, `fuse` prepares for inference. The
    optimiser gets its parameters and the backbone's parameters named in `trained_in_backbone`.

    Attributes:
        prompt_count: Number l of prompt tokens that `prompts` returns.
        trained_in_backbone: Names of the backbone's own parameters that are trained, and saved with the model.
    """

    prompt_count = 0
    trained_in_backbone: tuple[str, ...] = ()

    def prompts(self, patches: Tensor, backbone: Backbone) -> Tensor | None:
        """Return tokens [B, l, D] to add to the patch tokens [B, N, D], or None."""
        return None

    def prompt_weights(self, patches: Tensor) -> Tensor | None:
        """Return the weight of each of the M prompts, [B, M] in [-1, 1], or None for a method without a pool."""
        return None

    def enter_block(self, index: int, tokens: Tensor) -> Tensor:
        """Return the input of block ``index``, given the output [B, T, D] of the block before."""
        return tokens

    def run_block(self, index: int, block: FrozenBlock, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Run block ``index`` of the backbone: tokens [B, T, D] to tokens [B, T, D].

        Only ``block.attention`` may mix tokens, because the inference form may compute just some of them.
        """
        return block(tokens, rope)

    def fuse(self, backbone: Backbone) -> None:
        """Fold factors and updates into the weights of the method and the backbone, for inference.

        Called once, on copies that are only used for inference. Their values may be shared with the originals: assign
        new ones to ``parameter.data`` instead of changing them in place.
        """

    def penalty(self) -> Tensor | None:
        """Return a scalar to add to the training loss, or None."""
        return None


def in_autocast_dtype(tokens: Tensor) -> Tensor:
    """Cast the input of several matrix products once; autocast would cast it for each of them."""
    device = tokens.device.type
    return tokens.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tokens


def mean_of_weights(options: Any, states: Sequence[Mapping[str, Tensor]]) -> tuple[Any, dict[str, Tensor]]:
    """Return the options and the mean weights of models that differ in weights of the same meaning."""
    return options, {name: torch.stack([state[name] for state in states]).mean(dim=0) for name in states[0]}
