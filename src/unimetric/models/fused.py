"""The inference form: a trained embedder turned once into the fastest equivalent that only embeds."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Attention, AttentionRope, DiffAttention, GluMlp, Mlp, SwiGLU
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor, nn

from unimetric.models.backbone import FrozenBlock
from unimetric.models.devices import compute_dtype

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder

_ENDS_IN_PROJ = (Attention, AttentionRope, DiffAttention, EvaAttention)
_ENDS_IN_FC2 = (Mlp, GluMlp, SwiGLU)


def fuse(embedder: Embedder, precision: str = "auto") -> FusedEmbedder:
    """The fastest equivalent of an embedder on the device that it is on.

    LayerScale goes into the products before it, LoRA's updates into the weights that they update, an adapter's factor
    into its second product. The weights of matrix products are held in the type that is computed in, while residual
    connections, norms, prompts and the head stay float32; no autocast is needed. What was measured and left out:
    ``docs/performance.md``.

    Args:
        embedder: It is copied, and stays as it is; what it learns later does not reach the copy.
        precision: ``bf16``, ``fp32``, or ``auto``: bf16 where the device has instructions for it.

    Raises:
        UserError: unknown precision.
    """
    dtype = compute_dtype(precision, embedder.device)
    # Whoever holds the weights in another type at the moment, in this thread or another: float32 is what is turned.
    with embedder.backbone.holding(torch.float32, trained_too=True), torch.no_grad():
        originals = [*embedder.parameters(), *embedder.buffers()]
        # A copy of the structure alone. Most weights are about to be replaced by smaller ones, and need not be copied.
        twin = copy.deepcopy(embedder, {id(tensor): _same_values(tensor) for tensor in originals})
        form = FusedEmbedder(twin.eval(), dtype)
        _own_what_is_shared(form, {tensor.data_ptr() for tensor in originals})
    return form


def _same_values(tensor: Tensor) -> Tensor:
    shared = tensor.detach()
    return nn.Parameter(shared, requires_grad=False) if isinstance(tensor, nn.Parameter) else shared


def _own_what_is_shared(form: nn.Module, shared: set[int]) -> None:
    for tensor in (*form.parameters(), *form.buffers()):
        if tensor.data_ptr() in shared:
            tensor.data = tensor.data.clone()


class FusedEmbedder(nn.Module):
    """Maps images to vectors as the embedder does that it was made of; it cannot be trained or saved.

    Made by `fuse`.

    Args:
        embedder: Belongs to the fused form from now on, and is changed.
        dtype: The type that matrix products are computed in.

    Attributes:
        dtype: As given.
        backbone: With weights in ``dtype``, and nothing left to scale.
        method: What the training method adds beside the backbone's own products.
    """

    def __init__(self, embedder: Embedder, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.geometry, self.embedding_size = embedder.geometry, embedder.embedding_size
        self.backbone, self.method, self.head = embedder.backbone, embedder.method, embedder.head
        self.method.fuse(self.backbone)
        self._blocks = [_FusedBlock(block, dtype) for block in self.backbone.vit.blocks]
        self.backbone.vit.patch_embed.to(dtype)
        for module in self.method.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)

    def __repr__(self) -> str:
        return f"FusedEmbedder({self.describe()})"

    def describe(self) -> str:
        """What it is, in a line."""
        name = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        device = next(self.backbone.parameters()).device.type
        return f"fused, {name} products, {device}"

    def forward(self, images: Tensor) -> Tensor:
        """Vectors [B, E] in float32, unit or points of the ball, for normalised images [B, 3, S, S]."""
        features = self.features(images)
        return self.geometry.embed(features if self.head is None else self.head(features))

    def features(self, images: Tensor) -> Tensor:
        """What the head reads: the pooled output of the last block, float32 [B, D] or [B, 2 D]."""
        backbone, method = self.backbone, self.method
        patches = backbone.patch_tokens(images.to(self.dtype))  # (B, N, D)
        tokens, ropes = backbone.embed_tokens(patches.float(), method.prompts(patches, backbone))  # (B, T, D)
        for index, (block, rope) in enumerate(zip(self._blocks, ropes, strict=True)):
            tokens = method.run_block(index, block, tokens, rope)
        return backbone.pool(tokens, method.prompt_count)

    @torch.inference_mode()
    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """The vectors [n, E] of n images, uint8 [3, S, S] each, as ``EvaluationTransform.crop`` gives them."""
        if not images:
            return np.empty((0, self.embedding_size), np.float32)
        backbone = self.backbone
        device = next(backbone.parameters()).device
        normalised = backbone.transform.normalise(torch.stack(images).to(device))
        # A caller's autocast would compute the head and the prompts in another type.
        with torch.autocast(device.type, enabled=False):
            return self(normalised).cpu().numpy()  # type: ignore[no-any-return]


class _FusedBlock(FrozenBlock):
    """A block with LayerScale folded in, whose sub-layers compute in one type between float32 tokens."""

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(block)
        self._dtype = dtype
        _fold_layer_scale(self._block)
        self._block.attn.to(dtype)
        self._block.mlp.to(dtype)

    def __call__(self, tokens: Tensor, rope: Tensor | None) -> Tensor:
        tokens = tokens + self.attention(self.attention_input(tokens), rope)
        return tokens + self.mlp(self.mlp_input(tokens))

    def attention_input(self, tokens: Tensor) -> Tensor:
        return super().attention_input(tokens).to(self._dtype)

    def mlp_input(self, tokens: Tensor) -> Tensor:
        return super().mlp_input(tokens).to(self._dtype)


def _fold_layer_scale(block: Any) -> None:
    """Multiply each LayerScale into the product whose output it scales; one behind anything else stays."""
    eva = isinstance(block, EvaBlock)
    for layer, ends, last, eva_scale, scale in (
        (block.attn, _ENDS_IN_PROJ, "proj", "gamma_1", "ls1"),
        (block.mlp, _ENDS_IN_FC2, "fc2", "gamma_2", "ls2"),
    ):
        product = getattr(layer, last, None)
        factors = getattr(block, eva_scale) if eva else getattr(getattr(block, scale), "gamma", None)
        if factors is None or type(layer) not in ends or not isinstance(product, nn.Linear):
            continue
        product.weight.data = product.weight * factors[:, None]
        if product.bias is not None:
            product.bias.data = product.bias * factors
        if eva:
            setattr(block, eva_scale, None)
        else:
            setattr(block, scale, nn.Identity())
