"""The frozen vision transformer, split into the parts that methods attach to: patch tokens, blocks, pooling."""

import copy
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.layers import global_pool_nlc, use_fused_attn
from timm.models import list_models, model_entrypoint
from timm.models.eva import Eva, EvaBlock
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from unimetric.data.transforms import EvaluationTransform
from unimetric.errors import UserError, cause, nearest_names, shown
from unimetric.files import user_path
from unimetric.models.packaged import PACKAGED, fingerprint, packaged_state_dict
from unimetric.progress import console

POOLS = ("auto", "token", "avg", "token+avg")
"""Valid values of ``pool``."""

_FAMILIES = ("vision_transformer", "eva", "deit")
"""timm modules whose models are `VisionTransformer` or `Eva`."""

_EXPLICIT_ATTENTION_PATCHES = 512
"""Up to this many patches, a CPU computes attention as two matrix products and a softmax.

torch's fused attention is made for long sequences and is slower here in bf16, forward and backward together: 59 against
13 ms per layer for 73 tokens, 249 against 150 ms for 265 tokens.
"""


class FrozenBlock:
    """One pre-norm transformer block, split at the layer-normed inputs of its two sub-layers.

    ``x + attention(attention_input(x))``, then ``y + mlp(mlp_input(y))``, is the block. LayerScale belongs to the
    sub-layers, so it does not scale the additions of a method.
    """

    def __init__(self, block: nn.Module) -> None:
        self._block: Any = block
        self._is_eva = isinstance(block, EvaBlock)

    def __call__(self, tokens: Tensor, rope: Tensor | None) -> Tensor:
        """Apply the unchanged block: tokens [B, T, D] to tokens [B, T, D]."""
        return self._block(tokens, rope=rope) if self._is_eva else self._block(tokens)  # type: ignore[no-any-return]

    def attention_input(self, tokens: Tensor) -> Tensor:
        """Return the layer-normed tokens [B, T, D] that self-attention reads."""
        return self._block.norm1(tokens)  # type: ignore[no-any-return]

    def attention(self, normed: Tensor, rope: Tensor | None) -> Tensor:
        """Return self-attention with its LayerScale, without the residual, [B, T, D]."""
        if not self._is_eva:
            return self._block.ls1(self._block.attn(normed))  # type: ignore[no-any-return]
        out: Tensor = self._block.attn(normed, rope=rope)
        return out if self._block.gamma_1 is None else self._block.gamma_1 * out

    def mlp_input(self, tokens: Tensor) -> Tensor:
        """Return the layer-normed tokens [B, T, D] that the MLP reads."""
        return self._block.norm2(tokens)  # type: ignore[no-any-return]

    def mlp(self, normed: Tensor) -> Tensor:
        """Return the MLP's output with its LayerScale, without the residual, [B, T, D]."""
        if not self._is_eva:
            return self._block.ls2(self._block.mlp(normed))  # type: ignore[no-any-return]
        out: Tensor = self._block.mlp(normed)
        return out if self._block.gamma_2 is None else self._block.gamma_2 * out


class Backbone(nn.Module):
    """A frozen ViT of timm's `VisionTransformer` or `Eva` family at one input size.

    It stays in eval mode, and no parameter requires a gradient unless a method sets it.

    Attributes:
        name: The name given to `make_backbone`.
        weights: ``pretrained``, ``random`` or the weights' path, as given.
        fingerprint: SHA-256 of its weights at their own input size; empty for an outline.
        image_size: Side of the square input in pixels.
        width: D, the size of a token.
        output_size: Size of the pooled output: D, or 2 D for ``token+avg``.
        depth: L, the number of blocks.
        patch_size: Side of a patch in pixels.
        mean, std: Per channel, for pixel values in [0, 1].
    """

    def __init__(
        self, name: str, vit: VisionTransformer | Eva, *, weights: str, image_size: int, pool: str = "auto"
    ) -> None:
        super().__init__()
        self.name, self.weights = name, weights
        self.pool_type = pool
        # The outline of a backbone has no values to hash.
        self.fingerprint = "" if vit.patch_embed.proj.weight.is_meta else fingerprint(vit.state_dict())
        self.vit: Any = vit
        self.width: int = vit.embed_dim
        self.output_size = self.width * (2 if pool == "token+avg" else 1)
        self.depth = len(vit.blocks)
        self.patch_size: int = vit.patch_embed.patch_size[0]
        self.mean: tuple[float, ...] = tuple(vit.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(vit.pretrained_cfg["std"])
        self.prefix_tokens: int = vit.num_prefix_tokens
        self._lock = threading.RLock()
        self._exact: dict[nn.Parameter, Tensor] = {}
        self.requires_grad_(False)
        self.eval()
        self.resize(image_size)

    def resize(self, image_size: int) -> None:
        """Change the input size, in pixels, by resampling the position embeddings; the patch size must divide it."""
        _check_size(self.name, image_size, self.patch_size)
        position = self.vit.pos_embed
        self.vit.set_input_size(img_size=(image_size, image_size))
        if position is not None:
            # Resampling makes a new parameter with requires_grad set; keep the old one's value.
            self.vit.pos_embed.requires_grad_(position.requires_grad)
        self.image_size = image_size
        self._choose_attention()

    @property
    def blocks(self) -> list[FrozenBlock]:
        """The L blocks, in order."""
        return [FrozenBlock(block) for block in self.vit.blocks]

    @property
    def transform(self) -> EvaluationTransform:
        """The transform from an RGB image to the input."""
        return EvaluationTransform(self.image_size, self.mean, self.std)

    @property
    def class_position(self) -> Tensor:
        """Position embedding [1, 1, D] of the class token; zero where the backbone has none."""
        vit = self.vit
        if vit.pos_embed is None or vit.cls_token is None or vit.no_embed_class:
            return torch.zeros(1, 1, self.width, device=vit.patch_embed.proj.weight.device)
        position: Tensor = vit.pos_embed[:, :1]
        return position

    def train(self, mode: bool = True) -> "Backbone":
        """Stay in eval mode, because a frozen network uses neither dropout nor stochastic depth."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Backbone":
        # `to`, `cuda` and `cpu` all call this method.
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self._choose_attention()
        return self

    def _choose_attention(self) -> None:
        vit = self.vit
        on_cpu = vit.patch_embed.proj.weight.device.type == "cpu"
        explicit = on_cpu and vit.patch_embed.num_patches <= _EXPLICIT_ATTENTION_PATCHES
        for block in vit.blocks:
            block.attn.fused_attn = use_fused_attn() and not explicit

    def __getstate__(self) -> dict[str, Any]:
        # A lock can be neither copied nor sent to another process.
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_exact")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._lock = threading.RLock()
        self._exact = {}

    @contextmanager
    def holding(self, dtype: torch.dtype, *, trained_too: bool = False) -> Iterator[None]:
        """Hold the frozen linear and convolution weights in ``dtype``, instead of casting them at every autocast call.

        Under autocast to the same type the result is the same to the bit. The float32 values are restored at the end;
        other threads wait until then. A nested call with float32 restores the exact values meanwhile.

        Args:
            dtype: The type that autocast computes in.
            trained_too: Also cast the backbone's weights that a method trains. Do not use during training.
        """
        with self._lock, self._swapped(dtype, trained_too):
            yield

    @contextmanager
    def _swapped(self, dtype: torch.dtype, trained_too: bool) -> Iterator[None]:
        layers = [module for module in self.vit.modules() if isinstance(module, nn.Linear | nn.Conv2d)]
        frozen = [p for layer in layers for p in layer.parameters(recurse=False) if trained_too or not p.requires_grad]
        before, outer = [parameter.data for parameter in frozen], self._exact
        self._exact = {**dict(zip(frozen, before, strict=True)), **outer}
        for parameter in frozen:
            parameter.data = self._exact[parameter].to(parameter.device, dtype)
        try:
            yield
        finally:
            self._exact = outer
            for parameter, values in zip(frozen, before, strict=True):
                parameter.data = values.to(parameter.device)

    def patch_tokens(self, images: Tensor) -> Tensor:
        """Return the output [B, N, D] of the patch embedding, before position embeddings, for images [B, 3, H, W]."""
        return self.vit.patch_embed(images)  # type: ignore[no-any-return]

    def embed_tokens(self, patches: Tensor, prompts: Tensor | None = None) -> tuple[Tensor, list[Tensor | None]]:
        """Return the input of the first block, [B, T, D], and every block's rotary embedding (None for most families).

        ``prompts`` [B, l, D] go between the class and register tokens and the patches. They have no position in the
        image, so rotary attention does not rotate them.
        """
        vit = self.vit
        ropes: list[Tensor | None] = [None] * self.depth
        tokens = vit._pos_embed(patches)
        if isinstance(vit, Eva):
            tokens, rope = tokens
            if rope is not None:
                ropes = list(rope) if getattr(vit, "rope_mixed", False) else [rope] * self.depth
        if prompts is not None:
            prefix = self.prefix_tokens
            tokens = torch.cat([tokens[:, :prefix], prompts.to(tokens.dtype), tokens[:, prefix:]], dim=1)
            ropes = [None if rope is None else _rope_with_prompts(rope, prompts.shape[1]) for rope in ropes]
        return vit.norm_pre(tokens), ropes

    def pool(self, tokens: Tensor, prompt_count: int = 0) -> Tensor:
        """Apply the final norm and pool the tokens [B, T, D] of the last block except prompts: [B, D] or [B, 2 D]."""
        vit = self.vit
        if prompt_count:
            prefix = self.prefix_tokens
            tokens = torch.cat([tokens[:, :prefix], tokens[:, prefix + prompt_count :]], dim=1)
        tokens = vit.norm(tokens)
        if self.pool_type == "auto":
            return vit.forward_head(tokens, pre_logits=True)  # type: ignore[no-any-return]
        parts = [
            vit.fc_norm(global_pool_nlc(tokens, pool_type=part, num_prefix_tokens=self.prefix_tokens))
            for part in self.pool_type.split("+")
        ]
        return torch.cat(parts, dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Return the output of the plain backbone, [B, D] or [B, 2 D], for normalised images [B, 3, H, W]."""
        tokens, ropes = self.embed_tokens(self.patch_tokens(images))
        for block, rope in zip(self.blocks, ropes, strict=True):
            tokens = block(tokens, rope)
        return self.pool(tokens)


def _rope_with_prompts(rope: Tensor, count: int) -> Tensor:
    """Prepend ``count`` tokens without rotation to a rotary embedding [..., N, 2d], sines then cosines."""
    still = rope.new_zeros(*rope.shape[:-2], count, rope.shape[-1])
    still[..., rope.shape[-1] // 2 :] = 1
    return torch.cat([still, rope], dim=-2)


def make_backbone(name: str, *, weights: str = "pretrained", image_size: int = 224, pool: str = "auto") -> Backbone:
    """Make a frozen backbone.

    Args:
        name: ``dinov2-small`` (packaged, no hub needed), or a timm name, with or without its weights' tag.
        weights: ``pretrained``; ``random`` for seeded random ones; or the path of a ``.safetensors`` file.
        image_size: Side of the square input in pixels. Position embeddings are resampled to it.
        pool: ``auto`` for the backbone's own pooling, ``token``, ``avg``, or ``token+avg``.

    Raises:
        UserError: unknown or unsupported name, weights out of reach, or a size that the patch does not divide.
    """
    # Check before any weights are downloaded.
    _refuse_unsupported(name, _outline(name), image_size, pool)
    if weights == "random":
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            vit = _create(PACKAGED.get(name, name))
    elif weights != "pretrained":
        vit = _load_file(name, user_path(weights))
    elif name in PACKAGED:
        vit = _create(PACKAGED[name])
        vit.load_state_dict(packaged_state_dict())
    else:
        vit = _download(name)
    return Backbone(name, vit, weights=weights, image_size=image_size, pool=pool)


def outline_backbone(name: str, *, image_size: int, pool: str = "auto") -> Backbone:
    """Make a backbone on the device ``meta``, as `make_backbone`: names and shapes without values or memory.

    Raises:
        UserError: unknown or unsupported name, or a size that the patch does not divide.
    """
    vit = copy.deepcopy(_outline(name))
    _refuse_unsupported(name, vit, image_size, pool)
    with torch.device("meta"):
        return Backbone(name, vit, weights="random", image_size=image_size, pool=pool)


@lru_cache(maxsize=8)
def _outline(name: str) -> Any:
    if name not in PACKAGED:
        _check_name(name)
    with torch.device("meta"):
        return _create(PACKAGED.get(name, name))


def _create(name: str, **options: Any) -> Any:
    # With a fixed input size, the patch tokens of every family are [B, N, D].
    return timm.create_model(name, num_classes=0, dynamic_img_size=False, **options)


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        valid = [*PACKAGED, *(model for family in _FAMILIES for model in list_models(module=family, pretrained=True))]
        architectures = {valid_name.split(".")[0] for valid_name in valid}
        raise UserError(f"unknown --model.backbone {shown(name)}; {nearest_names(name, {*valid, *architectures})}")
    architecture, _, tag = name.partition(".")
    tagged = list_models(f"{architecture}.*", pretrained=True)
    if tag and name not in tagged:
        raise UserError(f"unknown weights {shown(tag)} in --model.backbone {name}; {nearest_names(name, tagged)}")
    module = model_entrypoint(architecture).__module__
    if module not in {f"timm.models.{family}" for family in _FAMILIES}:
        raise UserError(
            f"--model.backbone {name}: {module.removeprefix('timm.models.')} models are not supported; "
            "use a plain ViT or EVA model, for example vit_small_patch16_224.augreg_in21k_ft_in1k"
        )


def _download(name: str) -> Any:
    console.print(f"Loading the weights of {name}, from the hub if they are not in its cache.")
    # The client logs every retry.
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    try:
        return _create(name, pretrained=True)
    # The hub's client, its transport and timm raise many error types; all of them mean the same here.
    except Exception as error:
        raise UserError(
            f"--model.backbone {name}: its weights could not be fetched ({type(error).__name__}: {cause(error)}); "
            "connect to the hub, give a file with --model.weights FILE.safetensors, or use dinov2-small"
        ) from error


def _load_file(name: str, path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"--model.weights {path}: no such file; use pretrained, random or a .safetensors file")
    if path.suffix != ".safetensors":
        raise UserError(f"--model.weights {path}: only .safetensors files are read, pickles never; convert it")
    try:
        weights = load_file(path)
        classifier = _outline(name).pretrained_cfg.get("classifier")
        classifiers = (classifier,) if isinstance(classifier, str) else classifier or ()
        for key in [f"{layer}.{kind}" for layer in classifiers for kind in ("weight", "bias")]:
            weights.pop(key, None)
        # num_classes 0 on both sides makes timm load strictly: every weight and no other.
        overlay = {"state_dict": weights, "num_classes": 0, "label_offset": 0}
        vit = _create(PACKAGED.get(name, name), pretrained=True, pretrained_cfg_overlay=overlay)
    # timm raises many error types for weights that do not fit.
    except Exception as error:
        raise UserError(f"--model.weights {path} does not fit the backbone {name}: {cause(error)}") from error
    vit.pretrained_cfg.pop("state_dict")
    return vit


def _refuse_unsupported(name: str, vit: Any, image_size: int, pool: str) -> None:
    if type(vit) not in (VisionTransformer, Eva):
        raise UserError(f"--model.backbone {name}: {type(vit).__name__} is not supported; use a plain ViT or EVA model")
    for block in vit.blocks:
        if type(block) not in (Block, EvaBlock):
            raise UserError(
                f"--model.backbone {name}: its {type(block).__name__} has no separate pre-norm attention and MLP, "
                "which adapters need; use a plain ViT or EVA model"
            )
    _check_size(name, image_size, vit.patch_embed.patch_size[0])
    if pool not in POOLS:
        raise UserError(f"--model.pool is {pool!r}; {nearest_names(pool, POOLS)}")
    if "token" in pool and vit.cls_token is None:
        raise UserError(f"--model.pool is {pool!r}: {name} has no class token; use auto or avg")


def _check_size(name: str, image_size: int, patch: int) -> None:
    if image_size < patch or image_size % patch:
        lower = max(image_size // patch, 1) * patch
        raise UserError(
            f"--model.image_size is {image_size}: the patch size {patch} of {name} does not divide it; "
            f"use {lower} or {lower + patch}"
        )
