"""What every method has in common."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unimetric.models.backbone import Backbone, FrozenBlock


class Method(nn.Module):
    """What is learned beside a frozen backbone; as it stands, nothing.

    A method overrides what it changes: `prompts` puts tokens before the first block, `enter_block` changes what a
    block reads, `run_block` replaces its computation, `penalty` adds to the loss, `fuse` prepares for inference. Its
    parameters are what the optimiser gets, and those of the backbone's that it names in `trained_in_backbone`.

    Attributes:
        prompt_count: Number l of prompt tokens that `prompts` returns.
        trained_in_backbone: Names of the backbone's own parameters that are trained, and saved with the model.
    """

    prompt_count = 0
    trained_in_backbone: tuple[str, ...] = ()

    def prompts(self, patches: Tensor, backbone: Backbone) -> Tensor | None:
        """Tokens [B, l, D] to put beside the patch tokens [B, N, D], or None."""
        return None

    def prompt_weights(self, patches: Tensor) -> Tensor | None:
        """How much each of the M prompts takes part, [B, M] in [-1, 1], or None for a method without a pool."""
        return None

    def enter_block(self, index: int, tokens: Tensor) -> Tensor:
        """What block ``index`` reads instead of the tokens [B, T, D] that the one before gave."""
        return tokens

    def run_block(self, index: int, block: FrozenBlock, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Block ``index`` of the backbone: tokens [B, T, D] to tokens [B, T, D].

        Tokens meet each other in ``block.attention`` alone, so that the inference form may ask for some of them.
        """
        return block(tokens, rope)

    def fuse(self, backbone: Backbone) -> None:
        """Become the inference form: fold what can be folded into the method's own weights and the backbone's.

        Called once, on copies that only embed from then on. Values may still be shared with the originals: put new
        ones into ``parameter.data``, and change none in place.
        """

    def penalty(self) -> Tensor | None:
        """A scalar to add to the training loss, or None."""
        return None


def in_autocast_dtype(tokens: Tensor) -> Tensor:
    """Cast once what several matrix products are going to read; autocast would cast it for each of them."""
    device = tokens.device.type
    return tokens.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else tokens
