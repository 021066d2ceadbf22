"""A training step computed once more, aside from the training: to find out what went wrong with it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unimetric.models.embedder import Embedder


def noise_seed(seed: int, step: int, rank: int) -> int:
    """The seed of what is random in a step of a process: adapter dropping, pairs drawn by a loss."""
    return (seed * 2**40 + step * 2**12 + rank) % 2**63


class Buffers:
    """What a forward pass changes in a model and its loss, such as moving averages; it can be put back.

    The frozen backbone is in evaluation mode and changes nothing.
    """

    def __init__(self, embedder: Embedder, loss: nn.Module) -> None:
        frozen = set(embedder.backbone.modules())
        modules = [module for root in (embedder, loss) for module in root.modules() if module not in frozen]
        self._places = [(module, name) for module in modules for name, _ in module.named_buffers(recurse=False)]
        self._kept: list[Tensor] = []

    def remember(self) -> None:
        """Keep the present values."""
        self._kept = [getattr(module, name).clone() for module, name in self._places]

    def restore(self) -> None:
        """Put the values of the last `remember` back."""
        for (module, name), value in zip(self._places, self._kept, strict=True):
            getattr(module, name).copy_(value)


@dataclass(frozen=True)
class StepInput:
    """What a step of one process is computed from, beside the weights.

    Attributes:
        images: float32 [B, 3, S, S], normalised: this process's part of the batch.
        embeddings: float32 [W * B, E] that the loss was given, those of all W processes; from the step itself.
        labels: int64 [W * B], their classes.
        first_row: Where this process's embeddings start among them.
        seed: Of the forward pass.
        loss_seed: Of the loss; None where it goes on with the forward pass's.
    """

    images: Tensor
    embeddings: Tensor
    labels: Tensor
    first_row: int
    seed: int
    loss_seed: int | None

    @property
    def own_rows(self) -> slice:
        """Where this process's embeddings are."""
        return slice(self.first_row, self.first_row + len(self.images))


@dataclass(frozen=True)
class ComputedStep:
    """The numbers of a step.

    Attributes:
        embeddings: [B, E], those of this process.
        loss: The loss with the method's penalty, of the batch of all processes.
        gradients: By parameter, as in the model's and the loss's state dicts; what takes no part is left out.
    """

    embeddings: Tensor
    loss: float
    gradients: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """Whether all of them are finite numbers."""
        values = [self.embeddings, torch.tensor(self.loss), *self.gradients.values()]
        return all(bool(value.isfinite().all()) for value in values)


def named_parameters(embedder: Embedder, loss: nn.Module) -> dict[str, nn.Parameter]:
    """What is trained, from the input to the loss: ``model.*``, then ``loss.*``."""
    named = [(f"model.{name}", parameter) for name, parameter in embedder.named_parameters()]
    # The backbone's and the method's parameters come in the order of definition, the head after both.
    named += [(f"loss.{name}", parameter) for name, parameter in loss.named_parameters()]
    return {name: parameter for name, parameter in named if parameter.requires_grad}


def compute_step(embedder: Embedder, loss: nn.Module, given: StepInput, dtype: torch.dtype) -> ComputedStep:
    """Forward and backward pass in ``dtype``; gradients, weights and moving averages stay as they are.

    Gradients are those that this process alone contributes: no other one is waited for.
    """
    buffers = Buffers(embedder, loss)
    buffers.remember()
    parameters = named_parameters(embedder, loss)
    try:
        with _training_mode(embedder, loss), embedder.backbone.holding(dtype):
            torch.manual_seed(given.seed)
            device = given.images.device.type
            with torch.autocast(device, dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
                own = embedder(given.images)  # (B, E)
            rows = given.own_rows
            embeddings = torch.cat((given.embeddings[: rows.start], own, given.embeddings[rows.stop :]))
            if given.loss_seed is not None:
                torch.manual_seed(given.loss_seed)
            value: Tensor = loss(embeddings, given.labels)
            penalty = embedder.method.penalty()
            total = value if penalty is None else value + penalty
            # Not backward(): in a distributed run that would start to exchange gradients.
            found = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    finally:
        buffers.restore()
    gradients = {name: value for name, value in zip(parameters, found, strict=True) if value is not None}
    return ComputedStep(own.detach(), total.item(), gradients)


@contextmanager
def _training_mode(*modules: nn.Module) -> Iterator[None]:
    before: list[Any] = [module.training for module in modules]
    for module in modules:
        module.train()
    try:
        yield
    finally:
        for module, training in zip(modules, before, strict=True):
            module.train(training)
