"""A training step computed again, apart from the training, to find out why it failed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unimetric.losses import proxy_slice
from unimetric.models.embedder import Embedder
from unimetric.models.petl.noise import drawing_for
from unimetric.training.extension import Extension


def noise_seed(seed: int, step: int, use: int) -> int:
    """Return the seed of a step's random numbers: ``use`` 0 for adapter dropping, 1 for the loss's draws."""
    return (seed * 2**40 + step * 2**12 + use) % 2**63


class Buffers:
    """Buffers that a forward pass changes, such as moving averages, with a copy to restore them from.

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
class Objective:
    """Model, loss and extension, whose sum of loss and penalties is differentiated."""

    embedder: Embedder
    loss: nn.Module
    extension: Extension | None = None

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """Trained parameters, from the input to the loss: ``model.*``, then ``loss.*``."""
        # The backbone's and the method's parameters come in the order of definition, the head after both.
        named = [(f"model.{name}", parameter) for name, parameter in self.embedder.named_parameters()]
        named += [(f"loss.{name}", parameter) for name, parameter in self.loss.named_parameters()]
        return {name: parameter for name, parameter in named if parameter.requires_grad}

    @property
    def can_be_computed_alone(self) -> bool:
        """True unless the loss's proxies are divided among processes."""
        return proxy_slice(self.loss) is None

    def penalties(self, images: Tensor, embeddings: Tensor, labels: Tensor) -> list[Tensor]:
        """Return the scalars that are added to the loss of a forward pass.

        The images are float32 [b, 3, S, S], normalised, with their embeddings [b, E] and classes, int64 [b]; no classes
        for the dummy image of a rank without images.
        """
        found = [self.embedder.method.penalty()]
        if self.extension is not None:
            found.append(self.extension.penalty(images, embeddings, labels))
        return [penalty for penalty in found if penalty is not None]


@dataclass(frozen=True)
class StepInput:
    """Input of one process's training step, without the weights.

    Attributes:
        images: float32 [b, 3, S, S], normalised: this process's part of the batch, perhaps none.
        embeddings: float32 [B, E] of all processes, as the loss received them.
        labels: int64 [B], their classes.
        own: int64 [b], rows of this process.
        seed: Of the run.
        step: Steps before this one.
    """

    images: Tensor
    embeddings: Tensor
    labels: Tensor
    own: Tensor
    seed: int
    step: int


@dataclass(frozen=True)
class ComputedStep:
    """The numbers of a step.

    Attributes:
        embeddings: [B, E], those of this process.
        loss: The loss of the batch of all processes, plus the penalties for this process's images.
        gradients: By parameter, named as in the state dicts, without parameters that have none.
    """

    embeddings: Tensor
    loss: float
    gradients: dict[str, Tensor]

    @property
    def finite(self) -> bool:
        """True if all of them are finite numbers."""
        values = [self.embeddings, torch.tensor(self.loss), *self.gradients.values()]
        return all(bool(value.isfinite().all()) for value in values)


def compute_step(objective: Objective, given: StepInput, dtype: torch.dtype) -> ComputedStep:
    """Forward and backward pass in ``dtype``; gradients, weights and moving averages stay as they are.

    Gradients are those of this process alone, without communication.
    """
    embedder, loss = objective.embedder, objective.loss
    buffers = Buffers(embedder, loss)
    buffers.remember()
    parameters = objective.parameters
    device = given.images.device
    rows = given.own.to(device)
    try:
        with _training_mode(embedder, loss), embedder.backbone.holding(dtype):
            own, penalties = given.embeddings[rows], list[Tensor]()
            if len(rows):
                torch.manual_seed(noise_seed(given.seed, given.step, 0))
                half = torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)
                with drawing_for(given.own.cpu(), len(given.labels)), half:
                    own = embedder(given.images)  # (b, E)
                penalties = objective.penalties(given.images, own, given.labels[rows])
            embeddings = given.embeddings.index_copy(0, rows, own.to(given.embeddings.dtype))
            torch.manual_seed(noise_seed(given.seed, given.step, 1))
            value: Tensor = loss(embeddings, given.labels)
            total = sum(penalties, start=value)
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
