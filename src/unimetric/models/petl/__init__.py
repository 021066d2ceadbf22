"""Training methods by name: one file each, and one line here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from unimetric.config_values import NoOptions, complete_options
from unimetric.errors import UserError, nearest_names, shown
from unimetric.models.backbone import Backbone
from unimetric.models.petl.adaptformer import AdaptFormer, AdaptFormerOptions
from unimetric.models.petl.backbone_tuning import BackboneTuning
from unimetric.models.petl.base import Method, mean_of_weights
from unimetric.models.petl.lora import Lora, LoraOptions, mean_of_updates
from unimetric.models.petl.puma import Puma, PumaOptions
from unimetric.models.petl.vpt import VptDeep, VptOptions

__all__ = ["METHODS", "Method", "MethodSpec", "method_options"]


Mean = Callable[[Any, Sequence[Mapping[str, Tensor]]], tuple[Any, dict[str, Tensor]]]
"""Function of the options and the `learned_weights` of several models that returns those of their mean."""


@dataclass(frozen=True)
class MethodSpec:
    """Constructor, options, head and mean of a method.

    Args:
        make: Function of the backbone and the options that returns the method.
        options: The dataclass of its options.
        has_head: True if a trained linear head maps the backbone's output to the embedding.
        mean: The mean of several models, for `unimetric.models.merging`; None for a method without one.
    """

    make: Callable[[Backbone, Any], Method]
    options: type[Any] = NoOptions
    has_head: bool = True
    mean: Mean | None = None


METHODS: dict[str, MethodSpec] = {
    "adaptformer": MethodSpec(AdaptFormer, AdaptFormerOptions),
    "bitfit": MethodSpec(lambda backbone, options: BackboneTuning(backbone, "bias"), mean=mean_of_weights),
    "frozen": MethodSpec(lambda backbone, options: Method(), has_head=False),
    "full": MethodSpec(lambda backbone, options: BackboneTuning(backbone), mean=mean_of_weights),
    "linear": MethodSpec(lambda backbone, options: Method(), mean=mean_of_weights),
    "lora": MethodSpec(Lora, LoraOptions, mean=mean_of_updates),
    "puma": MethodSpec(Puma, PumaOptions),
    "vpt-deep": MethodSpec(VptDeep, VptOptions),
}


def method_options(name: str, options: Mapping[str, Any]) -> Any:
    """Return the options of a method with its defaults; a `UserError` for an unknown one or a bad value."""
    if name not in METHODS:
        raise UserError(f"unknown --model.method {shown(name)}; {nearest_names(name, METHODS)}")
    kind = METHODS[name].options
    return kind(**complete_options(name, options, asdict(kind())))
