"""A loss or a gradient that is not finite: detected in every process, diagnosed, kept, then skipped or fatal.

The dump of a step holds all that it takes to compute it again.
"""

import json
import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unimetric.config import run_config
from unimetric.data.catalog import Item
from unimetric.errors import NonFiniteError, UserError
from unimetric.files import explain_os_error, make_folder, user_path, write_json
from unimetric.models.devices import choose_device
from unimetric.models.network import learned_weights
from unimetric.progress import log_status
from unimetric.training.checkpoint import Progress, saved_step
from unimetric.training.diagnosis import Diagnosis, diagnose
from unimetric.training.extension import Extension, configured_loss
from unimetric.training.provenance import code_version, describe_processor
from unimetric.training.resolve import Run
from unimetric.training.setup import build_embedder
from unimetric.training.step import ComputedStep, Objective, StepInput, compute_step, noise_seed
from unimetric.training.tensors import independent, part_of, write_tensors

TENSORS, FACTS = "tensors.safetensors", "step.json"
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
    """Diagnose a step, dump its input and record it as skipped; a `NonFiniteError` if the run is to stop.

    To be called in all processes, with moving averages as before the step and gradients as after it. Of the skipped
    steps, the first one is dumped. ``numbers`` are those of the train images, ``progress`` is before the step.
    """
    items = [run.split.train[number] for number in numbers]
    step, alone = progress.step + 1, run.processes.count == 1
    parameters = run.objective.parameters.items()
    gradients = {name: parameter.grad for name, parameter in parameters if parameter.grad is not None}
    own = diagnose(run.objective, given, gradients, value, run.config, run.dtype, alone)
    in_a_row = progress.skipped_steps[1 - MOST_IN_A_ROW :] == list(range(step - MOST_IN_A_ROW + 1, step))
    stopping = run.processes.any_of(not run.skip_nonfinite or own.lasting or in_a_row)
    kept = "nothing was kept of it"
    if stopping or not progress.skipped_steps:
        where = run.folder.non_finite / f"step-{step}"
        if not alone:
            where /= f"rank-{run.processes.rank}"
        try:
            _write_dump(where, run, given, items, own, value, gradients)
            kept = f"the step is kept in {where}, its images are named in {FACTS}"
        except UserError as error:
            # The other processes wait for this one, and the cause matters more than a full disk.
            kept = f"it could not be kept ({error})"
    suspects = [items[row] for row in own.rows] or items
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
    failed = "the gradient is not finite" if math.isfinite(value) else f"the loss is {value}"
    images = f"{'suspected images' if worst.diagnosis.rows else 'images of the batch'}: {', '.join(worst.images[:3])}"
    more = f" and {len(worst.images) - 3} more" if len(worst.images) > 3 else ""
    return f"{failed} at step {step}: {worst.diagnosis.cause}; {images}{more}; {worst.dump}"


def _write_dump(
    folder: Path,
    run: Run,
    given: StepInput,
    items: Sequence[Item],
    diagnosis: Diagnosis,
    value: float,
    gradients: dict[str, Tensor],
) -> None:
    """Write pixels, labels, weights before the step, random states, configuration and versions; `FACTS` comes last."""
    embedder, objective = run.embedder, run.objective
    tensors = {f"model.{name}": value for name, value in learned_weights(embedder).items()}
    tensors |= {f"loss.{name}": value for name, value in run.loss.state_dict().items()}
    tensors |= {"images": given.images, "embeddings": given.embeddings, "labels": given.labels, "own": given.own}
    if run.extension is not None:
        tensors["old_classes"] = run.extension.old
    for use, name in enumerate(("random_state", "random_state_of_loss")):
        # The state behind the seed, in case another version of torch derives a different one.
        generator = torch.Generator().manual_seed(noise_seed(given.seed, given.step, use))
        tensors[name] = generator.get_state()
    checkpoint = run.folder.checkpoint
    content = {
        "step": given.step + 1,
        "rank": run.processes.rank,
        "processes": run.processes.count,
        "loss": str(value),
        "gradients_not_finite": [name for name, found in gradients.items() if not bool(found.isfinite().all())],
        "number_of_classes": max(run.numbers) + 1,
        "checkpoint": {"path": str(checkpoint), "step": saved_step(checkpoint)},
        "cause": diagnosis.cause,
        "suspected_rows": list(diagnosis.rows),
        "images": [{"dataset": item.dataset, "label": item.label, "path": str(item.path)} for item in items],
        "proxies_divided": not objective.can_be_computed_alone,
        "precision": "bf16" if run.dtype == torch.bfloat16 else "fp32",
        "device": str(embedder.device),
        "backbone_fingerprint": embedder.backbone.fingerprint,
        "versions": {
            "unimetric": code_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": describe_processor(),
        },
        "configuration": asdict(run.config),
    }
    make_folder(folder)
    write_tensors(folder / TENSORS, independent(tensors))
    write_json(folder / FACTS, content)


def replay_step(folder: str | Path, *, precision: str | None = None, device: str = "cpu") -> ComputedStep:
    """Compute a dumped step again: its embeddings, loss and gradients.

    Args:
        folder: ``RUN/non-finite/step-N``, or ``…/rank-R`` in it where several processes trained.
        precision: ``bf16`` or ``fp32``; None for that of the run.
        device: Device to compute on; see `DeviceConfig.accelerator`.

    Raises:
        UserError: the folder holds no dump, is damaged, the backbone's weights differ, or the step
            needs the proxies of several processes.
    """
    path = user_path(folder)
    facts, tensors = _read(path)
    if facts["proxies_divided"]:
        raise UserError(
            f"{path}: it has the proxies of one process only, of {facts['processes']} that divided them; for a step "
            "that can be computed again, repeat the run without --training.shard_proxies"
        )
    config = run_config(facts["configuration"], str(path / FACTS))
    embedder = build_embedder(config)
    if embedder.backbone.fingerprint != facts["backbone_fingerprint"]:
        raise UserError(f"{path}: the backbone {config.model.backbone} has other weights here than in the run")
    loss = configured_loss(config, facts["number_of_classes"])
    embedder.load_state_dict(part_of(tensors, "model"), strict=False)
    loss.load_state_dict(part_of(tensors, "loss"))
    place = choose_device(device)
    given = StepInput(
        images=tensors["images"].to(place),
        embeddings=tensors["embeddings"].to(place),
        labels=tensors["labels"].to(place),
        own=tensors["own"],
        seed=config.training.seed,
        step=facts["step"] - 1,
    )
    extension = Extension.of(config, tensors["old_classes"], place) if "old_classes" in tensors else None
    dtype = torch.bfloat16 if (precision or facts["precision"]) == "bf16" else torch.float32
    return compute_step(Objective(embedder.to(place), loss.to(place), extension), given, dtype)


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with explain_os_error(folder, "read"):
            return json.loads((folder / FACTS).read_text(encoding="utf-8")), load_file(folder / TENSORS)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{folder} is damaged ({error}): repeat the run to write it again") from error
