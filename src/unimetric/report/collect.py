"""What a report is made from: a folder's numbers, its vectors, its log, and its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.config import RunConfig, run_config
from unimetric.errors import UserError
from unimetric.files import explain_os_error
from unimetric.formats.vectors import VECTORS_FILE, MeasuredVectors, read_measured
from unimetric.geometry import Geometry, make_geometry
from unimetric.models.source import ModelSource


@dataclass(frozen=True)
class Measured:
    """A run folder, or a folder that ``unimetric evaluate`` wrote.

    Attributes:
        folder: Where it lies.
        metrics: What ``metrics.json`` holds.
        vectors: Queries and gallery.
        embedded_again: Whether the vectors were made for this report, because no file of them was there.
    """

    folder: Path
    metrics: dict[str, Any]
    vectors: MeasuredVectors
    embedded_again: bool = False

    @property
    def name(self) -> str:
        """The folder's name; with its run's for an evaluation, and its entry's for a seed of a benchmark."""
        folder = self.folder.absolute()
        parents = 1 if folder.name in ("evaluation", "frozen") else 2 if folder.name.startswith("seed-") else 0
        return "/".join(folder.parts[-1 - parents :])

    @property
    def geometry(self) -> Geometry:
        """Where the vectors lie."""
        constants = dict(self.metrics["model"]["geometry"])
        return make_geometry(constants.pop("name"), **constants)


def read_metrics(folder: Path) -> dict[str, Any]:
    """What a folder's ``metrics.json`` holds.

    Raises:
        UserError: it is missing or damaged, or nothing was measured; the command that makes it is named.
    """
    path = folder / "metrics.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: name a run folder, or one that unimetric evaluate wrote")
    if not path.is_file():
        if (folder / "checkpoint.safetensors").is_file():
            raise UserError(f"{folder} has no metrics.json: finish it with: unimetric train --resume {folder}")
        if (folder / "config.json").is_file():
            raise UserError(
                f"{folder} is a model folder without numbers: measure it with: unimetric evaluate {folder} SOURCE..."
            )
        raise UserError(f"{folder} has no metrics.json: make it with unimetric train or unimetric evaluate")
    with explain_os_error(path, "read"):
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is no JSON ({error}): write it again with: unimetric evaluate") from error
    parts = ("separate", "unified", "harmonic", "counts", "model")
    if not isinstance(metrics, dict) or (missing := [name for name in parts if name not in metrics]):
        what = "an object" if not isinstance(metrics, dict) else ", ".join(missing)
        raise UserError(f"{path} lacks {what}: write it again with: unimetric evaluate")
    if not isinstance(metrics["model"], dict) or not {"method", "geometry"} <= metrics["model"].keys():
        raise UserError(f"{path} does not say of which model it is: write it again with: unimetric evaluate")
    if not metrics["unified"]:
        raise UserError(
            f"{path} holds no numbers, since no class was held out: "
            f"measure it with: unimetric evaluate {folder} SOURCE..."
        )
    return metrics


def read_run(folder: Path, source: ModelSource | None = None) -> Measured:
    """Read a folder's numbers and vectors; without a file of vectors, its images are embedded again.

    Args:
        folder: A run folder, or one that ``unimetric evaluate`` wrote.
        source: The model to embed with; without a path, the one in the folder or above it.

    Raises:
        UserError: something is missing or damaged; the command that makes it is named.
    """
    metrics = read_metrics(folder)
    file = folder / VECTORS_FILE
    if file.is_file():
        return Measured(folder, metrics, read_measured(file))
    config = _configuration(folder, metrics)
    vectors = embed_again(folder, metrics, config, source or ModelSource())
    return Measured(folder, metrics, vectors, embedded_again=True)


def _configuration(folder: Path, metrics: dict[str, Any]) -> RunConfig:
    if "configuration" in metrics:
        return run_config(metrics["configuration"], str(folder / "metrics.json"))
    from unimetric.formats.run_folder import RunFolder

    run = RunFolder(folder)
    if not run.config.is_file():
        raise UserError(
            f"{folder} has neither {VECTORS_FILE} nor {run.config.name}, so its images cannot be embedded again: write "
            f"it again with: unimetric evaluate MODEL --out {folder}"
        )
    return run.read_config()


def embed_again(folder: Path, metrics: dict[str, Any], config: RunConfig, source: ModelSource) -> MeasuredVectors:
    """The vectors of the images that a folder's numbers were measured on.

    Raises:
        UserError: the model or the images are not there any more.
    """
    from unimetric.measure import measure
    from unimetric.models.devices import choose_device
    from unimetric.progress import say
    from unimetric.training.provenance import measured_sides
    from unimetric.training.setup import build_embedder, load_split

    again = f"{folder} has no {VECTORS_FILE}"
    if "members" in metrics["model"]:
        raise UserError(f"{again}: write it with: unimetric evaluate --ensemble MODEL... --out {folder}")
    sides = measured_sides(config, load_split(config, training=False))
    if not sides["query"]:
        raise UserError(
            f"{again}, and its sources hold no image to measure: run unimetric evaluate with --data.sources"
        )
    say(f"{again}: embedding {len({*sides['query'], *sides['gallery']})} images again", style="yellow")
    source = located(source, folder)
    if source.path is not None:
        embedder = source.load()
    elif metrics["model"]["method"] == "frozen":
        embedder = build_embedder(config).to(choose_device(source.device.accelerator))
    else:
        raise UserError(f"{again}, and no model lies in it: name the model with --model, or run unimetric evaluate")
    measurement = measure(
        embedder,
        sides["query"],
        sides["gallery"],
        ks=(1,),
        precision=source.device.precision,
    )
    assert measurement.vectors is not None  # noqa: S101 - there are queries
    return measurement.vectors


def located(source: ModelSource, folder: Path) -> ModelSource:
    """The source with the path of the model that a folder's numbers are of, if it has none and there is one.

    The model lies in the folder, or above it for ``RUN/evaluation``.
    """
    if source.path is not None:
        return source
    for place in (folder, folder.absolute().parent if folder.name == "evaluation" else folder):
        if (place / "model" / "config.json").is_file() or (place / "config.json").is_file():
            return source.at(place)
    return source


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's ``log.jsonl``; none where there is no log. A line that is no row is left out."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:  # cut off while being written
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows
