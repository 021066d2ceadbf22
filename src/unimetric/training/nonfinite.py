"""A loss or a gradient that is not finite: detected in every process, diagnosed, dumped, then skipped or fatal."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unimetric.errors import NonFiniteError, UserError
from unimetric.progress import log_status
from unimetric.training.checkpoint import Progress, saved_step
from unimetric.training.diagnosis import Diagnosis, diagnose
from unimetric.training.nonfinite_dump import FACTS, write_nonfinite_dump
from unimetric.training.resolve import Run
from unimetric.training.step import StepInput

MOST_IN_A_ROW = 10
"""Consecutive steps that fail end the run even when steps are skipped: the images are not the cause."""


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
    """Diagnosis of one process, for the others."""

    diagnosis: Diagnosis
    images: tuple[str, ...]
    dump: str


def handle_nonfinite_step(run: Run, given: StepInput, numbers: Sequence[int], value: float, progress: Progress) -> None:
    """Diagnose a step and dump its input; record it as skipped, or end the run.

    To be called in all processes, with moving averages as before the step and gradients as after it. Of the skipped
    steps, the first one is dumped. ``numbers`` are those of the train images, ``progress`` is before the step.

    Raises:
        NonFiniteError: the run is to stop.
    """
    folder = run.folder
    items = [run.split.train[number] for number in numbers]
    step, dtype = progress.step + 1, run.dtype
    parameters = run.objective.parameters.items()
    gradients = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
    alone = run.processes.count == 1
    own = diagnose(run.objective, given, gradients, value, run.config, dtype, alone)
    in_a_row = progress.skipped_steps[1 - MOST_IN_A_ROW :] == list(range(step - MOST_IN_A_ROW + 1, step))
    stopping = run.processes.any_of(not run.skip_nonfinite or own.lasting or in_a_row)
    kept = "nothing was kept of it"
    if stopping or not progress.skipped_steps:
        where = folder.non_finite / f"step-{step}"
        if not alone:
            where /= f"rank-{run.processes.rank}"
        facts = {
            "step": step,
            "rank": run.processes.rank,
            "processes": run.processes.count,
            "loss": str(value),
            "gradients_not_finite": [name for name, found in gradients.items() if not bool(found.isfinite().all())],
            "number_of_classes": max(run.numbers) + 1,
            "checkpoint": {"path": str(folder.checkpoint), "step": saved_step(folder.checkpoint)},
        }
        try:
            write_nonfinite_dump(where, run.objective, given, items, own, run.config, dtype, facts)
            kept = f"the step is kept in {where}, its images are named in {FACTS}"
        except UserError as error:
            # The other processes wait for this one, and the cause matters more than a full disk.
            kept = f"it could not be kept ({error})"
    suspects = [items[row] for row in own.rows] or list(items)
    finding = _Finding(own, tuple(str(item.path) for item in suspects), kept)
    message = _message(step, value, run.processes.gather_objects(finding))
    if in_a_row:
        message = f"{message}; it is the {MOST_IN_A_ROW}th step in a row that fails"
    if stopping:
        raise NonFiniteError(message)
    progress.skipped_steps.append(step)
    log_status(f"skipped: {message}", style="yellow")


def _message(step: int, value: float, findings: Sequence[_Finding]) -> str:
    worst = min(findings, key=lambda finding: finding.diagnosis.first)
    images = _some(worst.images, suspected=bool(worst.diagnosis.rows))
    said = (
        f"the gradient is not finite at step {step}" if math.isfinite(value) else f"the loss is {value} at step {step}"
    )
    return f"{said}: {worst.diagnosis.cause}; {images}; {worst.dump}"


def _some(paths: Sequence[str], suspected: bool) -> str:
    shown = ", ".join(paths[:3])
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return f"{'suspected images' if suspected else 'images of the batch'}: {shown}{more}"
