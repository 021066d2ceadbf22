"""Everything that a run needs to go on, in one safetensors file that is renamed into place: no pickle.

The data order, the augmentation, the adapter dropping and the learning rate are functions of the seed and the
step, so the step number is all there is to save about the random state, the schedule and most samplers; the losses
that an adaptive sampler goes by are saved with it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from unimetric.errors import NonFiniteError, UserError, WriteError
from unimetric.files import write_atomically
from unimetric.losses import proxy_slice
from unimetric.models.embedder import Embedder
from unimetric.models.saving import assign_weights, learned_weights
from unimetric.training.run import RunFolder


@dataclass
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimiser steps done.
        seconds: Time spent on steps, waiting for images included, validation and interruptions not.
        validated: The step of the latest measurement on the validation classes.
        skipped: What is wrong with each train image that could not be read, by its number.
        skipped_validation: The same of the validation images.
        best_score: Best harmonic Recall@1 on the validation classes so far, or None.
        best_weights: The learned weights of that moment.
        sampler: The sampler's state.
        skipped_steps: The steps, from 1, that were passed over because their loss or gradient was not finite.
    """

    step: int = 0
    seconds: float = 0.0
    validated: int = 0
    skipped: dict[int, str] = field(default_factory=dict)
    skipped_validation: dict[int, str] = field(default_factory=dict)
    best_score: float | None = None
    best_weights: dict[str, Tensor] = field(default_factory=dict)
    sampler: dict[str, Any] = field(default_factory=dict)
    skipped_steps: list[int] = field(default_factory=list)


def save_checkpoint(
    path: Path,
    embedder: Embedder,
    loss: nn.Module,
    optimiser: torch.optim.Optimizer,
    progress: Progress,
    identity: str,
) -> None:
    """Write a checkpoint; the one before stays until the new one is whole.

    It does not depend on how many processes there are. Where they divide the proxies, all have to call this, and the
    first one writes.

    ``identity`` names what the checkpoint belongs to (classes, images and configuration).

    Raises:
        WriteError: full disk, or no permission.
    """
    tensors = {f"model.{name}": value for name, value in learned_weights(embedder).items()}
    tensors |= {f"loss.{name}": value for name, value in loss.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in progress.best_weights.items()}
    for index, state in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{name}": value for name, value in state.items()}
    if own := proxy_slice(loss):
        for name in _of_proxies(tensors, loss, optimiser):
            if (whole := own.collect(tensors[name])) is not None:
                tensors[name] = whole
        if own.rank:
            return
    metadata = {
        "identity": identity,
        "step": progress.step,
        "seconds": progress.seconds,
        "validated": progress.validated,
        "best_score": progress.best_score,
        "skipped": list(progress.skipped.items()),
        "skipped_validation": list(progress.skipped_validation.items()),
        "sampler": progress.sampler,
        "skipped_steps": progress.skipped_steps,
    }
    # Tensors may share memory (a loss may hold one of the model's); a file holds each by itself.
    copies = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}
    text = json.dumps(metadata)
    header = {"progress": text, "checksum": _checksum(text, copies)}
    write_atomically(path, lambda temporary: save_file(copies, temporary, metadata=header))


def load_checkpoint(
    path: Path, embedder: Embedder, loss: nn.Module, optimiser: torch.optim.Optimizer, identity: str
) -> Progress:
    """Put a checkpoint back into model, loss and optimiser.

    Raises:
        UserError: the file is damaged, or belongs to other data or another configuration.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            metadata = json.loads(header["progress"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no dict
        _check_whole(header, tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({error}): start the run again in a new folder") from error
    if metadata["identity"] != identity:
        raise UserError(
            f"{path} belongs to other images, classes or another configuration: put the data back as it was, or start "
            "a new run"
        )
    if own := proxy_slice(loss):
        tensors |= {name: tensors[name][own.classes] for name in _of_proxies(tensors, loss, optimiser)}
    assign_weights(embedder, _part(tensors, "model"), path)
    loss.load_state_dict(_part(tensors, "loss"))
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in _part(tensors, "optimiser").items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})
    return Progress(
        step=metadata["step"],
        seconds=metadata["seconds"],
        validated=metadata["validated"],
        skipped={int(number): reason for number, reason in metadata["skipped"]},
        skipped_validation={int(number): reason for number, reason in metadata["skipped_validation"]},
        best_score=metadata["best_score"],
        best_weights=_part(tensors, "best"),
        # A checkpoint that was written before there were samplers with a state has none.
        sampler=metadata.get("sampler", {}),
        skipped_steps=metadata.get("skipped_steps", []),
    )


def _of_proxies(tensors: dict[str, Tensor], loss: nn.Module, optimiser: torch.optim.Optimizer) -> list[str]:
    """Names of what has a row for each class that has a proxy here."""
    parameters = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    index = next(number for number, parameter in enumerate(parameters) if parameter is loss.proxies)
    # AdamW's own number of steps is one for all.
    return ["loss.proxies", *(n for n, v in tensors.items() if n.startswith(f"optimiser.{index}.") and v.ndim == 2)]


def saved_step(path: Path) -> int | None:
    """The step of a checkpoint; None if there is none that can be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return int(json.loads((file.metadata() or {})["progress"])["step"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return None


@contextmanager
def saying_what_is_kept(folder: RunFolder) -> Iterator[None]:
    """Where a file could not be written, or the numbers of a step went wrong, say what there is to go on from.

    Raises:
        UserError: the same, with the step of the latest checkpoint and what to type.
    """
    try:
        yield
    except (WriteError, NonFiniteError) as error:
        step = saved_step(folder.checkpoint)
        if step is None:
            raise
        raise type(error)(f"{error}; the checkpoint of step {step} is kept, {folder.how_to_resume}") from error


def _check_whole(header: dict[str, str], tensors: dict[str, Tensor]) -> None:
    # A checkpoint of an earlier version has no checksum.
    if header.get("checksum", whole := _checksum(header["progress"], tensors)) != whole:
        raise ValueError("its checksum is another one")


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    """CRC-32 of all that a checkpoint says: its lengths are the format's to check, what a bad disk did to it is not."""
    value = zlib.crc32(text.encode())
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {list(tensor.shape)}".encode(), value)
        value = zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}
