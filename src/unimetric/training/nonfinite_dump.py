"""Dump of a training step whose numbers are not finite, from which it can be computed again."""

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unimetric.config import RunConfig, run_config
from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.files import explain_os_error, make_folder, user_path, write_json
from unimetric.losses import make_loss
from unimetric.models.devices import choose_device
from unimetric.models.network import learned_weights
from unimetric.training.diagnosis import Diagnosis
from unimetric.training.extension import Extension
from unimetric.training.provenance import code_version, describe_processor
from unimetric.training.setup import build_embedder
from unimetric.training.step import ComputedStep, Objective, StepInput, compute_step, noise_seed
from unimetric.training.tensors import independent, part_of, write_tensors

TENSORS, FACTS = "tensors.safetensors", "step.json"


def write_nonfinite_dump(
    folder: Path,
    objective: Objective,
    given: StepInput,
    items: Sequence[Item],
    diagnosis: Diagnosis,
    config: RunConfig,
    dtype: torch.dtype,
    facts: dict[str, Any],
) -> None:
    """Write pixels, labels, weights, the state of the random numbers, configuration and versions into a folder.

    ``tensors.safetensors`` is written first, then ``step.json``. The objective is that before the step; frozen weights
    are named by their fingerprint only. The items are in the order of the batch; ``facts`` are further numbers, with
    ``number_of_classes`` among them.

    Raises:
        UserError: the folder cannot be made; a `WriteError` for a full disk.
    """
    embedder, extension = objective.embedder, objective.extension
    tensors = {f"model.{name}": value for name, value in learned_weights(embedder).items()}
    tensors |= {f"loss.{name}": value for name, value in objective.loss.state_dict().items()}
    tensors |= {"images": given.images, "embeddings": given.embeddings, "labels": given.labels, "own": given.own}
    if extension is not None:
        tensors["old_classes"] = extension.old
    for use, name in enumerate(("random_state", "random_state_of_loss")):
        # The state behind the seed, in case another version of torch derives a different one.
        generator = torch.Generator().manual_seed(noise_seed(given.seed, given.step, use))
        tensors[name] = generator.get_state()
    content = {
        **facts,
        "cause": diagnosis.cause,
        "suspected_rows": list(diagnosis.rows),
        "images": [{"dataset": item.dataset, "label": item.label, "path": str(item.path)} for item in items],
        "proxies_divided": not objective.can_be_computed_alone,
        "precision": "bf16" if dtype == torch.bfloat16 else "fp32",
        "device": str(embedder.device),
        "backbone_fingerprint": embedder.backbone.fingerprint,
        "versions": {
            "unimetric": code_version(),
            "torch": torch.__version__,
            "python": platform.python_version(),
            "processor": describe_processor(),
        },
        "configuration": asdict(config),
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
    loss = make_loss(
        config.loss.name,
        facts["number_of_classes"],
        embedder.embedding_size,
        config.loss.options,
        config.model.nested_sizes,
    )
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
