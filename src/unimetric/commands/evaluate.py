"""Measure a trained model, or a backbone as it is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimetric.commands.weights import weights_file
from unimetric.config import RunConfig
from unimetric.errors import UserError
from unimetric.files import check_writable, make_folder, write_json
from unimetric.measure import measure
from unimetric.models.devices import choose_device
from unimetric.models.embedder import Embedder
from unimetric.models.petl import METHODS, method_options
from unimetric.training.build import build_embedder, describe, load_split, say_split


def evaluate_model(config: RunConfig, model: Path | None, out: Path) -> dict[str, Any]:
    """Measure on the test classes of the configured data, and write ``metrics.json``.

    Args:
        config: The data, how to measure, and where to compute; without ``model``, the backbone too. Where
            ``model.weights`` is a file, a model's backbone is read from it.
        model: A model folder, or None for the configured backbone as it is.
        out: Folder for ``metrics.json``.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        UserError: the model or the data cannot be read, or nothing can be measured.
    """
    device = choose_device(config.device.accelerator)
    if model is None and METHODS.get(config.model.method) is not METHODS["frozen"]:
        raise UserError(
            f"--model.method is {config.model.method!r}: without a trained model only frozen can be measured; "
            "name a run folder, or add --model.method frozen"
        )
    if model is None:
        method_options(config.model.method, config.model.options)
    check_writable(out)
    split = load_split(config)
    if not split.query:
        raise UserError(f"--data.split is {config.data.split!r}: no image is left to measure; use auto or test-only")
    if model is None:
        embedder = build_embedder(config)
    else:
        embedder = Embedder.from_pretrained(model, weights=weights_file(model, config.model.weights))
    embedder.to(device)
    say_split(split)
    measurement = measure(
        embedder,
        split.query,
        split.gallery,
        ks=config.evaluation.ks,
        batch_size=config.evaluation.batch_size,
        precision=config.device.precision,
        strict=config.data.strict,
        description=f"Measuring {embedder.method_name}",
    )
    metrics = describe(config, embedder, measurement.metrics, list(measurement.skipped))
    write_json(make_folder(out) / "metrics.json", metrics)
    return metrics
