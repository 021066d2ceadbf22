"""A loss or a gradient that is not finite: detected in every process, explained, then skipped or fatal."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimetric.errors import NonFiniteError
from unimetric.losses import LOSSES
from unimetric.progress import log_status
from unimetric.training.checkpoint import Progress
from unimetric.training.resolve import Run

MOST_IN_A_ROW = 10
"""Consecutive steps that fail end the run even when steps are skipped: the images are not the cause."""
_WEIGHTS = 1


def read_numbers(loss: Tensor, total: Tensor, parameters: Sequence[nn.Parameter]) -> tuple[float, bool]:
    """Return the loss, and True if the loss, the differentiated total and every gradient are finite.

    A single synchronisation on a GPU. The largest absolute gradient represents all, because it cannot overflow.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    largest = nn.utils.get_total_norm(gradients, norm_type=math.inf)
    numbers = torch.stack([value.detach().to(loss.device, torch.float32) for value in (loss, total, largest)]).tolist()
    return numbers[0], all(math.isfinite(number) for number in numbers)


@dataclass(frozen=True)
class _Finding:
    """The first quantity of a step that is not finite, in one process.

    Attributes:
        stage: 0 the pixels, 1 the weights, 2 the embeddings, 3 the loss, 4 the gradient, 5 nothing in this process. The
            lowest of all processes counts.
        cause: The likely cause and the remedy, in words.
        images: The images that are listed.
    """

    stage: int
    cause: str
    images: str


def handle_nonfinite_step(
    run: Run, images: Tensor, embeddings: Tensor, numbers: Sequence[int], value: float, progress: Progress
) -> None:
    """Record a step as skipped; a `NonFiniteError` with the likely cause if the run is to stop.

    To be called in all processes, with moving averages as before the step and gradients as after it.

    Args:
        run: The run.
        images: float32 [b, 3, S, S], this process's part of the batch, perhaps none.
        embeddings: [b, E], theirs.
        numbers: Those of their train images, [b].
        value: The loss of the batch of all processes.
        progress: That before the step.
    """
    step = progress.step + 1
    stage, cause, rows = _first_not_finite(run, images, embeddings, value)
    in_a_row = progress.skipped_steps[1 - MOST_IN_A_ROW :] == list(range(step - MOST_IN_A_ROW + 1, step))
    stopping = run.processes.any_of(not run.skip_nonfinite or stage == _WEIGHTS or in_a_row)
    paths = [str(run.split.train[numbers[row]].path) for row in rows or range(len(numbers))]
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    listed = f"{'suspected images' if rows else 'images of the batch'}: {', '.join(paths[:3])}{more}"
    found = min(run.processes.gather_objects(_Finding(stage, cause, listed)), key=lambda finding: finding.stage)
    failed = "the gradient is not finite" if math.isfinite(value) else f"the loss is {value}"
    message = f"{failed} at step {step}: {found.cause}; {found.images}"
    if in_a_row:
        message = f"{message}; it is the {MOST_IN_A_ROW}th step in a row that fails"
    if stopping:
        raise NonFiniteError(message)
    progress.skipped_steps.append(step)
    log_status(f"skipped: {message}", style="yellow")


def _first_not_finite(run: Run, images: Tensor, embeddings: Tensor, value: float) -> tuple[int, str, list[int]]:
    """Return the stage of this process's part, the likely cause, and the rows of suspected images, perhaps none."""
    remedy = f"lower --training.learning_rate ({run.config.training.learning_rate:g})"
    if run.dtype != torch.float32:
        remedy = f"set --device.precision fp32, or {remedy}"
    if rows := _bad_rows(images):
        return 0, "pixels are not finite: remove or repair the file", rows
    sides = (("model.", run.embedder), ("loss.", run.loss))
    weights = {name: value for prefix, side in sides for name, value in side.state_dict(prefix=prefix).items()}
    if names := _not_finite(weights.items()):
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        cause = f"weights were not finite before the step already ({names[0]}{more}): the learning rate is too high"
        return _WEIGHTS, f"{cause} for this model; {remedy}", []
    if rows := _bad_rows(embeddings):
        return 2, f"embeddings are not finite, from finite pixels and weights: {remedy}", rows
    if not math.isfinite(value):
        name, given = run.config.loss.name, run.config.loss.options
        constants = ", ".join(f"{option} {each:g}" for option, each in {**LOSSES[name].options, **given}.items())
        cause = f"the loss fails on finite embeddings: look at --loss.options of {name} ({constants})"
        return 3, f"{cause}, or {remedy}", []
    gradients = [
        (f"{prefix}{name}", parameter.grad)
        for prefix, side in sides
        for name, parameter in side.named_parameters()
        if parameter.grad is not None
    ]
    if names := _not_finite(gradients):
        # The backward pass comes from the loss.
        cause = f"the gradient is not finite, first in {names[-1]} ({len(names)} of {len(gradients)} parameters)"
        return 4, f"{cause}: {remedy}", []
    return 5, f"nothing is wrong with this process's part; {remedy}", []


def _bad_rows(values: Tensor) -> list[int]:
    rows: list[int] = (~values.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
    return rows


def _not_finite(named: Iterable[tuple[str, Tensor]]) -> list[str]:
    return [name for name, value in named if value.is_floating_point() and not bool(value.isfinite().all())]
