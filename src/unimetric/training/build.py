"""From a configuration to the parts of a run, and from measured numbers to what ``metrics.json`` says."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

import unimetric
from unimetric.config import RunConfig
from unimetric.data.catalog import Dataset
from unimetric.data.images import is_image_name
from unimetric.data.sources import read_sources
from unimetric.data.splits import Split, split_datasets
from unimetric.measure import Skipped
from unimetric.models.backbone import make_backbone
from unimetric.models.devices import choose_precision
from unimetric.models.embedder import Embedder
from unimetric.progress import say


def load_split(config: RunConfig) -> Split:
    """Read the configured sources and divide their classes; what is worth knowing about them is in its notes.

    Raises:
        UserError: a source cannot be read, or a side of the split is empty.
    """
    data = config.data
    datasets = read_sources(data.sources)
    split = split_datasets(
        datasets,
        how=data.split,
        seed=data.split_seed,
        validation_fraction=data.validation_fraction,
    )
    return replace(split, notes=(*_left_out(datasets), *split.notes))


def say_notes(split: Split) -> None:
    """Say what makes the numbers of a split worth less than they seem."""
    for note in split.notes:
        say(f"note: {note}", style="yellow")


def _left_out(datasets: Sequence[Dataset]) -> Iterator[str]:
    for dataset in datasets:
        if images := [path for path in dataset.ignored if is_image_name(path.name)]:
            yield (
                f"dataset {dataset.name!r}: {len(images)} images are left out, because they lie outside of any class "
                f"folder or repeat another; the first is {images[0]}"
            )


def build_embedder(config: RunConfig) -> Embedder:
    """A fresh embedder as configured, its random weights from the configured seed.

    Raises:
        UserError: unknown backbone, method or option.
    """
    model = config.model
    backbone = make_backbone(model.backbone, weights=model.weights, image_size=model.image_size, pool=model.pool)
    torch.manual_seed(config.training.seed)
    return Embedder(backbone, model.method, model.options, model.embedding_size)


def describe(config: RunConfig, embedder: Embedder, metrics: dict[str, Any], skipped: list[Skipped]) -> dict[str, Any]:
    """Add to measured numbers what they were measured with, and which files were left out."""
    precision = choose_precision(config.device.precision, embedder.device)
    metrics["counts"]["skipped_files"] = len(skipped)
    return metrics | {
        "skipped": [{"path": str(entry.item.path), "reason": entry.reason} for entry in skipped],
        "model": {
            "backbone": embedder.backbone.name,
            "fingerprint": embedder.backbone.fingerprint,
            "image_size": embedder.backbone.image_size,
            "method": embedder.method_name,
            "embedding_size": embedder.embedding_size,
            "trainable_parameters": embedder.trainable_parameter_count(),
        },
        "machine": {
            "device": str(embedder.device),
            "precision": precision,
            "threads": torch.get_num_threads(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "unimetric": unimetric.__version__,
        },
    }
