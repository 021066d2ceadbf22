"""The inference form of a network: an equivalent that embeds faster and cannot be trained."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Attention, AttentionRope, DiffAttention, GluMlp, Mlp, SwiGLU
from timm.models.eva import EvaAttention, EvaBlock
from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.models.backbone import Backbone, FrozenBlock
from unimetric.models.devices import compute_dtype
from unimetric.models.network import Network, learned_weights

_ENDS_IN_PROJ = (Attention, AttentionRope, DiffAttention, EvaAttention)
_ENDS_IN_FC2 = (Mlp, GluMlp, SwiGLU)

BATCH = 16
"""Images per forward pass of `InferenceModel.embed_pixels`. Shorter batches are padded, because the last bits of a
product depend on its shape."""


def fuse(network: Network, precision: str = "auto") -> "InferenceModel":
    """Make the inference form of a network on its device; later training does not affect it.

    LayerScale is folded into the preceding products, LoRA's updates into the weights that they update, and an adapter's
    factor into its second product. The weights of matrix products are held in the type of the computation, while
    residual connections, norms, prompts and the head stay float32; no autocast is needed. Where only the class token is
    pooled, the last block computes no other token. Unchanged frozen weights are shared. ``docs/performance.md`` has the
    measurements, including those of rejected ideas. The precision is as for `compute_dtype`.
    """
    dtype = compute_dtype(precision, network.device)
    # Fuse from the float32 weights, even while another thread holds a cast copy.
    with network.backbone.holding(torch.float32, trained_too=True), torch.no_grad():
        originals = [*network.parameters(), *network.buffers()]
        # Copy the structure only, because most weights are about to be replaced by smaller ones.
        twin = copy.deepcopy(network, {id(tensor): _same_values(tensor) for tensor in originals})
        model = InferenceModel(twin.eval(), dtype)
        learned = {tensor.data_ptr() for tensor in learned_weights(network).values()}
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.data_ptr() in learned:
                tensor.data = tensor.data.clone()
    return model


def _same_values(tensor: Tensor) -> Tensor:
    shared = tensor.detach()
    return nn.Parameter(shared, requires_grad=False) if isinstance(tensor, nn.Parameter) else shared


class InferenceModel(nn.Module):
    """Inference form of a network, which it takes over; its products are of ``dtype``. It cannot be trained or saved.

    Made by `fuse`.
    """

    def __init__(self, network: Network, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.geometry, self.embedding_size = network.geometry, network.embedding_size
        self.backbone, self.method, self.head = network.backbone, network.method, network.head
        self.size_map: Tensor | None
        self.register_buffer("size_map", None if network.size_map is None else network.size_map.to(network.device))
        self.method.fuse(self.backbone)
        self.blocks = [InferenceBlock(block, dtype) for block in self.backbone.vit.blocks]
        self.last_for_class_token = _pools_class_token(self.backbone) and self.blocks[-1].has_plain_attention
        self.backbone.vit.patch_embed.to(dtype)
        for module in self.method.modules():
            if isinstance(module, nn.Linear):
                module.to(dtype)

    def __repr__(self) -> str:
        return f"InferenceModel({self.describe()})"

    def describe(self) -> str:
        """Return the precision and the device in a few words."""
        name = "bf16" if self.dtype == torch.bfloat16 else "fp32"
        return f"fused, {name} products, {self._device.type}"

    @property
    def _device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def forward(self, images: Tensor) -> Tensor:
        """Return vectors [B, E] in float32, unit or points of the ball, for normalised images [B, 3, S, S]."""
        return self.finish(self.run_blocks(*self.start(images)))

    def start(self, images: Tensor) -> tuple[Tensor, list[Tensor | None]]:
        """Return the input of the first block [B, T, D], and every block's rotary embedding, which images share."""
        backbone = self.backbone
        patches = backbone.patch_tokens(images.to(self.dtype))  # (B, N, D)
        return backbone.embed_tokens(patches.float(), self.method.prompts(patches, backbone))

    def run_blocks(self, tokens: Tensor, ropes: list[Tensor | None]) -> Tensor:
        """Return the output of the last block, [B, T, D], or [B, 1, D] if only its class token is computed."""
        method = self.method
        for index, (block, rope) in enumerate(zip(self.blocks, ropes, strict=True)):
            tokens = method.enter_block(index, tokens)
            if self.last_for_class_token and index == len(ropes) - 1:
                return method.run_block(index, _ClassTokenBlock(block, tokens), tokens[:, :1], rope)
            tokens = method.run_block(index, block, tokens, rope)
        return tokens

    def finish(self, tokens: Tensor) -> Tensor:
        """Return vectors [B, E] for the output of `run_blocks`."""
        features = self.backbone.pool(tokens, 0 if self.last_for_class_token else self.method.prompt_count)
        vectors = self.geometry.embed(features if self.head is None else self.head(features))
        return vectors if self.size_map is None else F.normalize(vectors @ self.size_map, dim=-1)

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """Return the vectors [n, E] of n images from ``EvaluationTransform.crop``, uint8 [3, S, S] each."""
        if not images:
            return np.empty((0, self.embedding_size), np.float32)
        parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
        return np.concatenate([self._embed_padded(part) for part in parts])

    @torch.inference_mode()
    def _embed_padded(self, images: list[Tensor]) -> NDArray[np.float32]:
        device = self._device
        pixels = torch.stack([*images, *[images[-1]] * (BATCH - len(images))]).to(device)
        normalised = self.backbone.transform.normalise(pixels)
        # Disable a caller's autocast, which would change the type of the head and the prompts.
        with torch.autocast(device.type, enabled=False):
            return self(normalised)[: len(images)].cpu().numpy()  # type: ignore[no-any-return]


def each(function: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """Apply a function to every image of [B, ...] separately, and concatenate the results."""
    if len(tokens) == 1:
        return function(tokens)
    return torch.cat([function(of_image) for of_image in torch.split(tokens, 1)])


class InferenceBlock(FrozenBlock):
    """A block with LayerScale folded in, whose sub-layers compute in one type between float32 tokens.

    Attributes:
        divided: Compute operations that may depend on the number of images image by image.
    """

    def __init__(self, block: nn.Module, dtype: torch.dtype) -> None:
        super().__init__(block)
        self.divided = False
        self._dtype = dtype
        _fold_layer_scale(self._block)
        self._block.attn.to(dtype)
        self._block.mlp.to(dtype)

    def __call__(self, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Map tokens [B, T, D] to tokens [B, T, D]."""
        tokens = tokens + self.attention(self.attention_input(tokens), rope)
        return tokens + self.mlp(self.mlp_input(tokens))

    @property
    def has_plain_attention(self) -> bool:
        """True if its attention is timm's `Attention` without a gate."""
        attention = self._block.attn
        return type(attention) is Attention and getattr(attention, "gate", None) is None

    def attention_input(self, tokens: Tensor) -> Tensor:
        """Return the layer-normed tokens [B, T, D] in the type of the products."""
        return super().attention_input(tokens).to(self._dtype)

    def attention(self, normed: Tensor, rope: Tensor | None) -> Tensor:
        """Return self-attention [B, T, D] without the residual."""
        if not self.divided:
            return super().attention(normed, rope)
        if not self.has_plain_attention:
            return each(lambda of_image: super(InferenceBlock, self).attention(of_image, rope), normed)
        attention = self._block.attn
        # The linear layers divide the images themselves, so that they read their weights once for all images.
        mixed = each(self._mix, attention.qkv(normed))
        return self._block.ls1(attention.proj(attention.norm(mixed)))  # type: ignore[no-any-return]

    def _mix(self, products: Tensor) -> Tensor:
        """Return the values [B, T, D] mixed by attention, for queries, keys and values [B, T, 3 D]."""
        attention = self._block.attn
        heads = products.reshape(*products.shape[:2], 3, attention.num_heads, -1)  # (B, T, 3, H, D / H)
        queries, keys, values = heads.permute(2, 0, 3, 1, 4).unbind(0)
        queries, keys = attention.q_norm(queries), attention.k_norm(keys)
        if attention.fused_attn:
            mixed = F.scaled_dot_product_attention(queries, keys, values)
        else:
            mixed = ((queries * attention.scale) @ keys.transpose(-2, -1)).softmax(-1) @ values
        return mixed.transpose(1, 2).flatten(2)

    def mlp_input(self, tokens: Tensor) -> Tensor:
        """Return the layer-normed tokens [B, T, D] in the type of the products."""
        return super().mlp_input(tokens).to(self._dtype)

    def mlp(self, normed: Tensor) -> Tensor:
        """Return the output of the MLP [B, T, D] without the residual."""
        if not self.divided or self.has_fused_mlp:
            return super().mlp(normed)
        return each(super().mlp, normed)

    @property
    def has_fused_mlp(self) -> bool:
        """True if its MLP is two linear layers that divide the images themselves, with the activation in the first."""
        mlp = self._block.mlp
        return type(mlp) is Mlp and isinstance(mlp.act, nn.Identity)


class _ClassTokenBlock(InferenceBlock):
    """A block that computes only its class token [B, 1, D], which attends to all of the tokens [B, T, D]."""

    def __init__(self, block: InferenceBlock, tokens: Tensor) -> None:
        # One by one: torch.export of some versions cannot follow an update of __dict__.
        self._block, self._is_eva, self._dtype = block._block, block._is_eva, block._dtype
        self.divided = block.divided
        self._all_normed = block.attention_input(tokens)

    def attention_input(self, tokens: Tensor) -> Tensor:
        return self._all_normed[:, :1]

    def attention(self, normed: Tensor, rope: Tensor | None) -> Tensor:
        return each(self._attend, self._all_normed) if self.divided else self._attend(self._all_normed)

    def _attend(self, tokens: Tensor) -> Tensor:
        attention = self._block.attn
        heads, width = attention.num_heads, attention.num_heads * attention.head_dim
        weight, bias = attention.qkv.weight, attention.qkv.bias
        own, others = (None, None) if bias is None else (bias[:width], bias[width:])
        query = F.linear(tokens[:, :1], weight[:width], own)
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
    """Fold each LayerScale into the product before it; one that follows another operation is kept."""
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
