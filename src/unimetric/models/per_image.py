"""The inference form on a CPU, in which no bit of an image's vector depends on other images."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from timm.layers import Mlp
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F

from unimetric.models.inference import InferenceModel, each
from unimetric.models.threads import OneThreadCalls


class PerImageModel:
    """Wrapper of an inference form that computes each vector from its image alone.

    A matrix product may add its terms in another order when its number of rows changes. Here every product is
    computed image by image; only layer norms, sums and conversions, which treat rows independently, are computed for
    several images at once. Where torch has oneDNN, weights are packed once into the processor's layout: short products
    would otherwise spend a quarter of their time on packing.

    Args:
        model: The inference form on the CPU, which is taken over and changed.
    """

    def __init__(self, model: InferenceModel) -> None:
        self.embedding_size = model.embedding_size
        self._model = model
        self._calls = OneThreadCalls()
        backbone, method = model.backbone, model.method
        blocks = backbone.vit.blocks
        tokens = backbone.vit.patch_embed.num_patches + backbone.prefix_tokens + method.prompt_count
        rows = tokens if _has_packed_products(model.dtype) else None
        with torch.no_grad():
            for index, (block, layers) in enumerate(zip(model.blocks, blocks, strict=True)):
                # The last block may compute one token only, from parts of its weights.
                one_token = model.last_for_class_token and index == len(blocks) - 1
                _divide_linear_layers(layers.attn, None if one_token else rows)
                _divide_linear_layers(layers.mlp, None if one_token else rows)
                block.divided = True
            _divide_linear_layers(method, rows)
        # With plain attention and fused MLPs, only matrix products can depend on the number of threads, which test
        # images reveal. Other attentions and activations split work among threads such that only few images differ, so
        # test images would not be reliable.
        plain = all(block.has_plain_attention and block.has_fused_mlp for block in model.blocks)
        uses_fused_attention = backbone.vit.attn_pool is not None or any(layers.attn.fused_attn for layers in blocks)
        self._test_images = _Noise(backbone.image_size) if plain and not uses_fused_attention else None

    def describe(self) -> str:
        """Return the precision and the device in a few words."""
        return self._model.describe()

    def __call__(self, images: Tensor) -> Tensor:
        """Return vectors [B, E] in float32, unit or points of the ball, for normalised images [B, 3, S, S]."""
        return torch.from_numpy(self._embed(list(images)))

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """Return the vectors [n, E] of n images from ``EvaluationTransform.crop``, uint8 [3, S, S] each."""
        if not images:
            return np.empty((0, self.embedding_size), np.float32)
        return np.concatenate(self._calls(self._embed_pixels, images, self._test_images))

    def _embed_pixels(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        return self._embed(list(self._model.backbone.transform.normalise(torch.stack(list(images)))))

    @torch.inference_mode()
    def _embed(self, images: Sequence[Tensor]) -> NDArray[np.float32]:
        model = self._model
        # Disable a caller's autocast, which would change the type of the head and the prompts.
        with torch.autocast("cpu", enabled=False):
            starts = [model.start(image[None]) for image in images]
            tokens = model.run_blocks(torch.cat([tokens for tokens, _ in starts]), starts[0][1])
            return each(model.finish, tokens).numpy()


@dataclass(frozen=True)
class _Noise:
    """Noise images, uint8 [3, S, S], the same in every process."""

    side: int

    def __call__(self) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        return list(torch.randint(0, 256, (4, 3, self.side, self.side), dtype=torch.uint8, generator=generator))


class _DividedLinear(nn.Module):
    """A linear layer for inference that multiplies image by image, optionally followed by GELU.

    Args:
        layer: The layer.
        rows: Tokens per image, for packing the weights; None to leave them unpacked.
        gelu: Apply GELU, which needs packed weights.
    """

    def __init__(self, layer: nn.Linear, rows: int | None, gelu: bool = False) -> None:
        super().__init__()
        self.bias = None if layer.bias is None else layer.bias.data
        self.weight = layer.weight.data
        self._packed = rows is not None
        self._fused: tuple[Any, ...] = ("gelu", [], "none") if gelu else ("none", [], "")
        if rows is not None:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight, rows)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map [B, ..., D] to [B, ..., O]."""
        return each(self._multiply, tokens)

    def _multiply(self, tokens: Tensor) -> Tensor:
        if not self._packed:
            return F.linear(tokens, self.weight, self.bias)
        out: Tensor = torch.ops.mkldnn._linear_pointwise(tokens, self.weight, self.bias, *self._fused)
        return out


def _has_packed_products(dtype: torch.dtype) -> bool:
    # On other platforms torch builds oneDNN on other libraries, or not at all.
    if platform.machine().lower() not in ("x86_64", "amd64") or not torch._C._has_mkldnn:
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _divide_linear_layers(module: nn.Module, rows: int | None) -> None:
    if type(module) is Mlp and rows is not None and type(module.fc1) is nn.Linear and _is_exact_gelu(module.act):
        module.fc1 = _DividedLinear(module.fc1, rows, gelu=True)
        module.act = nn.Identity()
    for name, child in module.named_children():
        if type(child) is nn.Linear:
            # With a bias for queries and values only, EVA's attention reads the weight directly, without the layer.
            past = isinstance(module, EvaAttention) and name == "qkv" and module.q_bias is not None
            setattr(module, name, _DividedLinear(child, None if past else rows))
        else:
            _divide_linear_layers(child, rows)


def _is_exact_gelu(activation: object) -> bool:
    return type(activation) is nn.GELU and activation.approximate == "none"
