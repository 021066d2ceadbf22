"""One model from several: the mean of what they learned, as fast as one of them (Wortsman et al., ICML 2022)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from unimetric.errors import UserError
from unimetric.geometry import Sphere
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import check_agreement
from unimetric.models.network import assign_weights, learned_weights
from unimetric.models.petl import METHODS

_ASPECTS: dict[str, Callable[[Embedder], object]] = {
    "method": lambda model: model.method_name,
    "options": lambda model: asdict(model.options),
    "backbone": lambda model: f"{model.backbone.name} {model.backbone.fingerprint[:12]}",
    "pooling": lambda model: model.backbone.pool_type,
    "preprocessing": lambda model: model.transform,
    "embedding size": lambda model: model.embedding_size,
    "geometry": lambda model: model.geometry,
}


def merge(models: Sequence[Embedder], names: Sequence[str]) -> Embedder:
    """Return the model whose learned weights are the mean of those of several models.

    The models begin as the same frozen backbone, so that they differ only in what they learned. LoRA's mean is that of
    its updates, with a rank that is the sum of the ranks. Heads that began with other random values are first turned to
    the first model's: that changes none of a model's similarities, but the mean then depends on which is first.

    Args:
        models: At least two, of the same backbone, input size, method, options, embedding size and geometry.
        names: Their names in error messages; as many as models.

    Returns:
        A model on the CPU, without a rotation for shorter vectors.

    Raises:
        UserError: fewer than two models, models that differ in more than their weights, a method whose weights have no
            mean, hyperbolic models, or nested sizes.
    """
    if len(models) < 2:
        raise UserError(f"a merged model needs at least two models, got {len(models)}")
    check_agreement(models, names, _ASPECTS, "models can be merged if they differ in nothing but their weights")
    first = models[0]
    mean = METHODS[first.method_name].mean
    if mean is None:
        having = ", ".join(name for name, spec in METHODS.items() if spec.mean)
        raise UserError(f"{names[0]}: weights of method {first.method_name} have no mean; merge models of {having}")
    if not isinstance(first.geometry, Sphere):
        raise UserError(f"{names[0]} is a hyperbolic model; merge models on the sphere")
    for model, name in zip(models, names, strict=True):
        if model.sizes.nested:
            raise UserError(f"{name} has nested sizes, which a mean does not keep; merge models without them")
    states = [{name: value.cpu() for name, value in learned_weights(model).items()} for model in models]
    options, state = mean(first.options, [_turned(each, states[0]) for each in states])
    backbone = first.backbone
    twin = make_backbone(
        backbone.name, weights=backbone.weights, image_size=backbone.image_size, pool=backbone.pool_type
    )
    merged = Embedder(twin, first.method_name, asdict(options), first.embedding_size, first.geometry)
    assign_weights(merged, state, Path(names[0]))
    return merged.eval()


def _turned(state: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights whose head is turned to be as near as possible to another's (orthogonal Procrustes problem)."""
    head = state["head.weight"].double()  # [E, D]
    left, _, right = torch.linalg.svd(like["head.weight"].double() @ head.T)
    turn = left @ right  # [E, E], orthogonal
    turned = {name: (turn @ state[name].double()).float() for name in ("head.weight", "head.bias")}
    return {**state, **turned}
