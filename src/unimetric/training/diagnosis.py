"""Search for the cause of a step that is not finite, from its input to the loss."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimetric.config import RunConfig
from unimetric.losses import LOSSES
from unimetric.models.embedder import Embedder
from unimetric.training.step import Objective, StepInput, compute_step

_SAME = 1e-6
"""Unit vectors that are no farther apart than this in any entry are the same to float32."""


@dataclass(frozen=True)
class Diagnosis:
    """Likely cause of a step that is not finite.

    Attributes:
        cause: The likely cause and the remedy, in words.
        rows: Suspected images of the batch, by row; perhaps none.
        first: Stage of the step: 0 the pixels, 1 the weights, 2 the embeddings, 3 the loss, 4 the
            gradient, 5 nowhere. The lowest of all processes counts.
        lasting: True if the next step will fail as well, because of the weights.
    """

    cause: str
    rows: tuple[int, ...] = ()
    first: int = 5
    lasting: bool = False


def diagnose(
    objective: Objective,
    given: StepInput,
    gradients: dict[str, Tensor],
    value: float,
    config: RunConfig,
    dtype: torch.dtype,
    alone: bool,
) -> Diagnosis:
    """Find the likely cause, of this process's part of the batch; ``alone`` if there is no other process.

    The objective's moving averages are those before the step, the ``gradients`` by name those of its backward pass, and
    ``value`` is its loss. ``dtype`` is that of its products, and the remedy names values of the configuration.
    """
    embedder, loss = objective.embedder, objective.loss
    lower = f"lower --training.learning_rate ({config.training.learning_rate:g})"
    own = given.embeddings[given.own.to(given.embeddings.device)]
    if rows := _bad_rows(given.images):
        return Diagnosis("pixels are not finite: remove or repair the file", rows, 0)
    if names := _not_finite({**embedder.state_dict(prefix="model."), **loss.state_dict(prefix="loss.")}.items()):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        cause = f"weights were not finite before the step already ({names[0]}{more}): the learning rate is too high"
        return Diagnosis(f"{cause} for this model; {lower}", (), 1, lasting=True)
    rows = _bad_rows(own)
    again_in_float32 = dtype != torch.float32 and objective.can_be_computed_alone
    if again_in_float32 and compute_step(objective, given, torch.float32).finite:
        again = alone and compute_step(objective, given, dtype).finite
        if not again and (alone or rows):
            cause = "half precision overflows, in float32 the same step is finite: set --device.precision fp32"
            return Diagnosis(cause, rows, 2 if rows else 4)
    if rows:
        size, largest = max((parameter.abs().max().item(), name) for name, parameter in objective.parameters.items())
        cause = f"embeddings are not finite, from finite pixels and weights (the largest, {size:.3g}, is in {largest})"
        return Diagnosis(f"{cause}: the learning rate is too high for this model; {lower}", rows, 2)
    if alone and compute_step(objective, given, dtype).finite:
        cause = "the same step, computed again, is finite: suspect the machine's memory, processor or driver"
        return Diagnosis(f"{cause}; or the learning rate is too high for this model, then {lower}")
    compares_pairs = LOSSES[config.loss.name].images_per_class is not None
    if found := _degenerate(embedder, loss, own, compares_pairs, lower):
        return found
    if value != value or abs(value) == float("inf"):
        constants = {**LOSSES[config.loss.name].options, **config.loss.options}
        said = ", ".join(f"{name} {constant:g}" for name, constant in constants.items())
        cause = f"the loss fails on embeddings that are sound: look at --loss.options of {config.loss.name} ({said})"
        return Diagnosis(f"{cause}, or {lower}", (), 3)
    if names := _not_finite(gradients.items()):
        # The backward pass comes from the loss.
        cause = f"the gradient is not finite, first in {names[-1]} ({len(names)} of {len(gradients)} parameters)"
        return Diagnosis(f"{cause}: the learning rate is too high for this model; {lower}", (), 4)
    return Diagnosis(f"nothing is wrong with this process's part; {lower}")


def _degenerate(embedder: Embedder, loss: nn.Module, own: Tensor, compares_pairs: bool, lower: str) -> Diagnosis | None:
    """Find embeddings and proxies at which a loss or its gradient is undefined."""
    if embedder.geometry.name == "sphere" and (zero := tuple((own.norm(dim=1) < _SAME).nonzero().flatten().tolist())):
        return Diagnosis(f"embeddings are zero vectors, which have no direction: {lower}", zero, 2)
    for name, parameter in loss.named_parameters():
        if parameter.ndim == 2 and (empty := (parameter.norm(dim=1) == 0).nonzero().flatten().tolist()):
            cause = f"loss.{name} has a zero vector, which has no direction, in row {empty[0]}: {lower}"
            return Diagnosis(cause, (), 3)
    if len(own) > 1 and bool(((own - own[0]).abs() < _SAME).all()):
        cause = "all images have the same embedding: the images are all alike, or the model has collapsed"
        return Diagnosis(f"{cause}, then {lower}", tuple(range(len(own))), 3)
    if not compares_pairs:
        return None
    distances = torch.cdist(own.float(), own.float()).fill_diagonal_(1)
    if pair := (distances < _SAME).nonzero().tolist():
        cause = "two images have the same embedding, where a distance has no gradient: remove one, if they are copies"
        return Diagnosis(cause, tuple(pair[0]), 3)
    return None


def _bad_rows(values: Tensor) -> tuple[int, ...]:
    bad = ~values.isfinite().flatten(1).all(dim=1)
    return tuple(bad.nonzero().flatten().tolist())


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, value in named if value.is_floating_point() and not bool(value.isfinite().all())]
