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
from unimetric.losses import make_loss
from unimetric.measure import Measurement, Skipped
from unimetric.models.backbone import make_backbone
from unimetric.models.devices import choose_precision
from unimetric.models.embedder import Embedder
from unimetric.models.petl import method_options
from unimetric.progress import say


def check_options(config: RunConfig) -> None:
    """Check the names and options of method and loss, before images are read and a backbone is loaded.

    Raises:
        UserError: unknown method, loss or option, or a value of the wrong type or range.
    """
    method_options(config.model.method, config.model.options)
    make_loss(config.loss.name, 2, config.model.embedding_size, config.loss.options)


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


def say_split(split: Split) -> None:
    """Say how the datasets were understood, and what makes the numbers worth less than they seem."""
    parts = {
        "train on": split.train,
        "validate on": split.validation,
        "test on": (*split.query, *split.gallery),
    }
    for dataset in dict.fromkeys(item.dataset for items in parts.values() for item in items):
        said: list[str] = []
        for use, items in parts.items():
            members = {item.path: item.label for item in items if item.dataset == dataset}
            if members:
                classes, images = len(set(members.values())), len(members)
                size = f"{classes} / {images}" if said else f"{classes} classes / {images} images"
                said.append(f"{size} to {use}")
        say(f"{dataset}: {', '.join(said)}")
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


def unmeasured() -> Measurement:
    """What takes the place of a measurement where no class was held out: the shape of one, with null for numbers."""
    counts = {"queries": 0, "gallery": 0, "queries_without_positive": 0, "datasets": {}}
    return Measurement(
        {"separate": {}, "harmonic": None, "unified": None, "counts": counts, "seconds": 0.0},
        (),
    )


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
