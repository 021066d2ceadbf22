"""The inference form: a trained embedder turned once into the fastest equivalent that only embeds."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Attention, AttentionRope, DiffAttention, GluMlp, Mlp, SwiGLU
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.models.backbone import Backbone, FrozenBlock
from unimetric.models.devices import choose_precision, compute_dtype
from unimetric.models.int8 import Int8Embedder
from unimetric.models.saving import learned_names, learned_weights

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder

_ENDS_IN_PROJ = (Attention, AttentionRope, DiffAttention, EvaAttention)
_ENDS_IN_FC2 = (Mlp, GluMlp, SwiGLU)


def fuse(embedder: Embedder, precision: str = "auto") -> FusedEmbedder:
    """The fastest equivalent of an embedder on the device that it is on.

    LayerScale goes into the products before it, LoRA's updates into the weights that they update, an adapter's factor
    into its second product. The weights of matrix products are held in the type that is computed in, while residual
    connections, norms, prompts and the head stay float32; no autocast is needed. Where the class token alone is pooled,
    the last block computes no other. What was measured and left out: ``docs/performance.md``.

    Args:
        embedder: It is copied, and stays as it is; what it learns later does not reach the copy. What is frozen and
            needs no change is shared.
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
        _own_what_is_learned(form, {tensor.data_ptr() for tensor in learned_weights(embedder).values()})
    return form


class InferenceForm(Protocol):
    """What a trained embedder is turned into to embed: a `FusedEmbedder` or an `Int8Embedder`."""

    def describe(self) -> str:
        """What it is, in a line."""

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors [B, E] in float32 for normalised images [B, 3, S, S]."""

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """The vectors [n, E] of n images, uint8 [3, S, S] each."""


class CurrentForm:
    """The inference form of an embedder, made again when the embedder is no longer what it was made of."""

    def __init__(self) -> None:
        self._made: tuple[tuple[object, ...], InferenceForm] | None = None

    def of(self, embedder: Embedder, precision: str) -> InferenceForm:
        """As `fuse`, or for ``int8`` as `Int8Embedder`."""
        chosen, made = choose_precision(precision, embedder.device), self._made
        if made is not None and made[0] == (chosen, *_state_of(embedder)):
            return made[1]
        with embedder.backbone.holding(torch.float32, trained_too=True):
            form = Int8Embedder(embedder) if chosen == "int8" else fuse(embedder, chosen)
            made = (chosen, *_state_of(embedder)), form
        self._made = made
        return made[1]


def _state_of(embedder: Embedder) -> tuple[object, ...]:
    """What differs as soon as any weight does: where each one is, how often it was written, and the learned bits."""
    parameters = dict(embedder.named_parameters())
    tensors = [*parameters.values(), *embedder.buffers()]
    places = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
    # Writing through .data is counted nowhere.
    learned = learned_names(embedder, parameters)
    bits = [parameters[name].detach().view(torch.int32).sum() for name in learned]
    return embedder.backbone.image_size, places, tuple(torch.stack(bits).tolist()) if bits else ()


def _same_values(tensor: Tensor) -> Tensor:
    shared = tensor.detach()
    return nn.Parameter(shared, requires_grad=False) if isinstance(tensor, nn.Parameter) else shared


def _own_what_is_learned(form: nn.Module, learned: set[int]) -> None:
    for tensor in (*form.parameters(), *form.buffers()):
        if tensor.data_ptr() in learned:
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
        self._last_for_class_token = _pools_class_token(self.backbone) and self._blocks[-1].can_compute_one_token
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
            tokens = method.enter_block(index, tokens)
            if self._last_for_class_token and index == len(ropes) - 1:
                first = method.run_block(index, _ClassTokenBlock(block, tokens), tokens[:, :1], rope)  # (B, 1, D)
                return backbone.pool(first)
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

    @property
    def can_compute_one_token(self) -> bool:
        """Whether `_ClassTokenBlock` knows its attention."""
        attention = self._block.attn
        return type(attention) is Attention and getattr(attention, "gate", None) is None

    def attention_input(self, tokens: Tensor) -> Tensor:
        return super().attention_input(tokens).to(self._dtype)

    def mlp_input(self, tokens: Tensor) -> Tensor:
        return super().mlp_input(tokens).to(self._dtype)


class _ClassTokenBlock(_FusedBlock):
    """A block that computes its class token [B, 1, D] alone, which attends to all of the tokens [B, T, D]."""

    def __init__(self, block: _FusedBlock, tokens: Tensor) -> None:
        self.__dict__.update(block.__dict__)
        self._all_normed = block.attention_input(tokens)

    def attention_input(self, tokens: Tensor) -> Tensor:
        return self._all_normed[:, :1]

    def attention(self, normed: Tensor, rope: Tensor | None) -> Tensor:
        attention, tokens = self._block.attn, self._all_normed
        heads, width = attention.num_heads, attention.num_heads * attention.head_dim
        weight, bias = attention.qkv.weight, attention.qkv.bias
        own, others = (None, None) if bias is None else (bias[:width], bias[width:])
        query = F.linear(normed, weight[:width], own)
        query = query.reshape(query.shape[0], 1, heads, -1).transpose(1, 2)  # (B, H, 1, D / H)
        both = F.linear(tokens, weight[width:], others)
        both = both.reshape(*tokens.shape[:2], 2, heads, -1)  # (B, T, 2, H, D / H)
        keys, values = both.permute(2, 0, 3, 1, 4).unbind(0)
        query, keys = attention.q_norm(query) * attention.scale, attention.k_norm(keys)
        shares = (query @ keys.transpose(-2, -1)).softmax(-1)  # (B, H, 1, T)
        mixed = (shares @ values).transpose(1, 2).flatten(2)
        return self._block.ls1(attention.proj(attention.norm(mixed)))  # type: ignore[no-any-return]


def _pools_class_token(backbone: Backbone) -> bool:
    vit = backbone.vit
    if backbone.pool_type != "auto":
        return backbone.pool_type == "token"
    return vit.global_pool == "token" and vit.attn_pool is None


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
