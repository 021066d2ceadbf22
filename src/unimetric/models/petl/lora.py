"""LoRA: low-rank updates of the attention's products (Hu et al., ICLR 2022), made by peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from unimetric.errors import UserError
from unimetric.models.backbone import Backbone
from unimetric.models.petl.base import Method

_MLP = ("mlp.fc1", "mlp.fc2", "mlp.fc1_g", "mlp.fc1_x")
_TARGETS = {
    "qkv": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj"),
    "attention": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj"),
    "all": ("attn.qkv", "attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.proj", *_MLP),
}


@dataclass(frozen=True)
class LoraOptions:
    """What can be set about LoRA.

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
        if not 1 <= self.rank <= 2**12:
            raise UserError(f"option rank of lora is {self.rank}: use a value from 1 to {2**12}")
        if not 0 < self.alpha <= 1e4:
            raise UserError(f"option alpha of lora is {self.alpha}: use a value above 0, at most 10000")
        if self.targets not in _TARGETS:
            raise UserError(f"option targets of lora is {self.targets!r}: use {', '.join(_TARGETS)}")


class Lora(Method):
    """``W x + (alpha / r) · B A x`` in place of ``W x``; A is Kaiming-uniform, B zero, so it starts as the backbone.

    Trainable parameters: ``L · r · (D + 3 D)`` with one product for queries, keys and values, and ``L · r · 2 D``
    more with the output projection, and ``L · r · 2 (D + 4 D)`` more with an MLP of the usual size.

    Args:
        backbone: The frozen backbone, whose layers are replaced by peft's.
        options: See `LoraOptions`.

    Raises:
        UserError: peft is not installed, or the backbone has none of the layers.
    """

    def __init__(self, backbone: Backbone, options: LoraOptions) -> None:
        super().__init__()
        peft = _import_peft()
        targets = [
            name
            for name, module in backbone.vit.named_modules()
            if isinstance(module, nn.Linear) and name.endswith(_TARGETS[options.targets])
        ]
        if not targets:
            raise UserError(
                f"--model.method lora: {backbone.name} has no {' or '.join(_TARGETS[options.targets])} to attach to; "
                "use another backbone or method"
            )
        for module in backbone.vit.modules():
            # EVA's attention would read the weight past the layer; with its bias added separately it calls the layer.
            if getattr(module, "q_bias", None) is not None:
                module.qkv_bias_separate = True
        config = peft.LoraConfig(r=options.rank, lora_alpha=options.alpha, target_modules=targets)
        peft.inject_adapter_in_model(config, backbone.vit)
        # Shared with the replaced layers, so that what is learned is found where it is with every method.
        layers: list[Any] = [module for module in backbone.vit.modules() if hasattr(module, "lora_A")]
        self.down = nn.ModuleList(layer.lora_A["default"] for layer in layers)
        self.up = nn.ModuleList(layer.lora_B["default"] for layer in layers)

    def fuse(self, backbone: Backbone) -> None:
        """Put ``W + (alpha / r) · B A`` in the place of every W, and the plain layer in that of peft's."""
        for name, layer in [(n, m) for n, m in backbone.vit.named_modules() if hasattr(m, "lora_A")]:
            plain = layer.get_base_layer()
            update = layer.lora_B["default"].weight.data @ layer.lora_A["default"].weight.data
            plain.weight.data = plain.weight.data + layer.scaling["default"] * update
            backbone.vit.set_submodule(name, plain)
        for module in backbone.vit.modules():
            if getattr(module, "q_bias", None) is not None:
                module.qkv_bias_separate = False
        self.down, self.up = nn.ModuleList(), nn.ModuleList()


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise UserError("--model.method lora needs the package peft: pip install peft") from error
    return peft
