"""Checkpoints: the whole state of a run in one safetensors file that is renamed into place, without pickle.

The data order, the augmentation, the adapter dropping and the learning rate are functions of the seed and the
step, so the step number is all there is to save about the random state, the schedule and most samplers; the losses
that an adaptive sampler goes by are saved with it.
"""

import json
import math
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from unimetric.errors import NonFiniteError, ProcessLost, UserError, WorkerError, WriteError, cause, shown
from unimetric.files import parse_json
from unimetric.formats.run_folder import RunFolder
from unimetric.losses import proxy_slice
from unimetric.models.embedder import Embedder
from unimetric.models.network import assign_weights, check_weights, learned_weights
from unimetric.training.tensors import independent, part_of, write_tensors


@dataclass
class Progress:
    """Progress of a run.

    Attributes:
        step: Optimiser steps done.
        seconds: Time spent on steps, including the wait for images, without validation and interruptions.
        validated: The step of the latest measurement on the validation classes.
        skipped: Reason for each train image that could not be read, by its number.
        skipped_validation: The same of the validation images.
        best_score: Best harmonic Recall@1 on the validation classes so far, or None.
        best_weights: The learned weights of that moment.
        average: The running average of the learned weights, where one is kept.
        sampler: The sampler's state.
        skipped_steps: The steps, from 1, that were skipped because their loss or gradient was not finite.
        peak_memory: The most bytes that a process of the run needed, by kind of memory.
    """

    step: int = 0
    seconds: float = 0.0
    validated: int = 0
    skipped: dict[int, str] = field(default_factory=dict)
    skipped_validation: dict[int, str] = field(default_factory=dict)
    best_score: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    average: dict[str, Tensor] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    skipped_steps: list[int] = field(default_factory=list)
    peak_memory: dict[str, int] = field(default_factory=dict)


def save_checkpoint(
    path: Path, embedder: Embedder, loss: nn.Module, optimiser: torch.optim.Optimizer, progress: Progress, identity: str
) -> None:
    """Write a checkpoint; the previous one stays until the new one is complete.

    It does not depend on how many processes there are. Where they divide the proxies, all have to call this, and the
    first one writes.

    ``identity`` identifies the run of the checkpoint (classes, images and configuration).
    """
    tensors = {f"model.{name}": value for name, value in learned_weights(embedder).items()}
    tensors |= {f"loss.{name}": value for name, value in loss.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in progress.best_weights.items()}
    tensors |= {f"average.{name}": value for name, value in progress.average.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    if own := proxy_slice(loss):
        for name in _of_proxies(tensors, loss, optimiser):
            if (whole := own.collect(tensors[name])) is not None:
                tensors[name] = whole
        if own.rank:
            return
    plain = ("step", "seconds", "validated", "best_score", "sampler", "skipped_steps", "peak_memory")
    metadata = {
        "identity": identity,
        **{name: getattr(progress, name) for name in plain},
        "skipped": list(progress.skipped.items()),
        "skipped_validation": list(progress.skipped_validation.items()),
    }
    copies, text = independent(tensors), json.dumps(metadata)
    write_tensors(path, copies, {"progress": text, "checksum": _checksum(text, copies)})


def load_checkpoint(
    path: Path, embedder: Embedder, loss: nn.Module, optimiser: torch.optim.Optimizer, identity: str
) -> Progress:
    """Load a checkpoint into model, loss and optimiser.

    Raises:
        UserError: the file is damaged, or belongs to other data or another configuration.
    """
    metadata, tensors = read_tensors(path)
    if metadata.get("identity") != identity:
        raise UserError(
            f"{path} belongs to other images, classes or another configuration: put the data back as it was, or start "
            "a new run"
        )
    # Everything is checked before the first weight is changed.
    progress = _progress(path, metadata)
    progress.best_weights, progress.average = part_of(tensors, "best"), part_of(tensors, "average")
    for weights in filter(None, (progress.best_weights, progress.average)):
        check_weights(learned_weights(embedder), weights, path)
    if own := proxy_slice(loss):
        tensors |= {
            name: tensors[name][own.classes]
            for name in _of_proxies(tensors, loss, optimiser)
            if name in tensors and tensors[name].ndim
        }
    of_loss = part_of(tensors, "loss")
    check_weights(loss.state_dict(), of_loss, path)
    state = _optimiser_state(path, part_of(tensors, "optimiser"), optimiser)
    assign_weights(embedder, part_of(tensors, "model"), path)
    loss.load_state_dict(of_loss)
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return progress


def read_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Read a checkpoint's progress, and the tensors named ``prefix`` and more; a `UserError` if it is damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            # Copies, because the tensors would otherwise be the file's own pages, which a new checkpoint replaces.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 - it is no dict
        if header["checksum"] != _checksum(header["progress"], tensors):
            raise ValueError("its checksum differs")  # noqa: TRY301 - one message for all damage
        progress = parse_json(header["progress"])
        if not isinstance(progress, dict):
            raise ValueError("its progress is not a mapping")  # noqa: TRY301, TRY004 - one message for all damage
        return progress, {n: value for n, value in tensors.items() if n.startswith(prefix)}
    # RuntimeError: unknown type or size in torch.
    except (SafetensorError, OSError, KeyError, ValueError, RuntimeError) as error:
        raise _damaged(path, cause(error)) from error


def _progress(path: Path, metadata: dict[str, Any]) -> Progress:
    """Return the progress without its tensors; a file that another program wrote may have anything in it."""
    try:
        score, sampler = metadata["best_score"], metadata["sampler"]
        if not isinstance(sampler, dict):
            raise ValueError("the sampler's state is not a mapping")  # noqa: TRY301, TRY004 - one message for all damage
        return Progress(
            step=_number(metadata["step"], int),
            seconds=_number(metadata["seconds"], int, float),
            validated=_number(metadata["validated"], int),
            skipped=_reasons(metadata["skipped"]),
            skipped_validation=_reasons(metadata["skipped_validation"]),
            best_score=None if score is None else _number(score, int, float),
            sampler=sampler,
            skipped_steps=[_number(step, int) for step in metadata["skipped_steps"]],
            peak_memory={str(kind): _number(peak, int) for kind, peak in metadata["peak_memory"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _damaged(path, f"progress: {cause(error)}") from error


def _number(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds or not 0 <= value < math.inf:
        raise ValueError(f"{shown(value)} is not a number of steps, seconds, images or bytes")
    return value


def _reasons(pairs: Any) -> dict[int, str]:
    found = {_number(number, int): reason for number, reason in pairs}
    if not all(isinstance(reason, str) for reason in found.values()):
        raise ValueError("a reason is not text")
    return found


def _damaged(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path} is damaged ({reason}): copy it from where the run was made, or start again in a new folder"
    )


def _optimiser_state(
    path: Path, tensors: dict[str, Tensor], optimiser: torch.optim.Optimizer
) -> dict[int, dict[str, Tensor]]:
    """Return AdamW's two moments and number of steps for every parameter that has them."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, key = name.partition(".")
        if not index.isdecimal():
            raise _damaged(path, f"the optimiser has no parameter {index!r}")
        state.setdefault(int(index), {})[key] = value
    for number, moments in state.items():
        shape = parameters[number].shape if number < len(parameters) else None
        if {value.shape for key, value in moments.items() if key != "step"} != {shape}:
            raise _damaged(path, f"the optimiser's moments are not those of parameter {number}")
    return state


def _of_proxies(tensors: dict[str, Tensor], loss: nn.Module, optimiser: torch.optim.Optimizer) -> list[str]:
    """Return the names of the tensors with one row per class."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    index = next(number for number, parameter in enumerate(parameters) if parameter is loss.proxies)
    # AdamW's own number of steps is one for all.
    return ["loss.proxies", *(n for n, v in tensors.items() if n.startswith(f"optimiser.{index}.") and v.ndim == 2)]


def saved_step(path: Path) -> int | None:
    """Return the step of a checkpoint; None if none can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(parse_json((file.metadata() or {})["progress"])["step"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


@contextmanager
def naming_the_kept_checkpoint(folder: RunFolder) -> Iterator[None]:
    """Add the step of the latest checkpoint, and the command that continues the run, to an error."""
    try:
        yield
    except (WriteError, NonFiniteError, WorkerError, ProcessLost) as error:
        step = saved_step(folder.checkpoint)
        if step is None:
            raise
        raise type(error)(f"{error}; the checkpoint of step {step} is kept, {folder.how_to_resume}") from error


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """CRC-32 of a checkpoint's content, which the format itself does not protect."""
    value = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
