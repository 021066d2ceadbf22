"""The parts of a report: a folder's numbers, vectors, log and model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.errors import UserError
from unimetric.files import explain_os_error, parse_json
from unimetric.formats.vectors import VECTORS_FILE, MeasuredVectors, read_measured
from unimetric.geometry import Geometry, make_geometry
from unimetric.models.source import ModelSource


@dataclass(frozen=True)
class Measured:
    """A run folder, or one that ``unimetric evaluate`` wrote: content of ``metrics.json``, vectors of both sides."""

    folder: Path
    metrics: dict[str, Any]
    vectors: MeasuredVectors

    @property
    def name(self) -> str:
        """The folder's name; with its run's for an evaluation, and its entry's for a seed of a benchmark."""
        folder = self.folder.absolute()
        parents = 1 if folder.name in ("evaluation", "frozen") else 2 if folder.name.startswith("seed-") else 0
        return "/".join(folder.parts[-1 - parents :])

    @property
    def geometry(self) -> Geometry:
        """The geometry of the vectors."""
        constants = dict(self.metrics["model"]["geometry"])
        return make_geometry(constants.pop("name"), **constants)


def read_metrics(folder: Path) -> dict[str, Any]:
    """Read a folder's ``metrics.json``; a `UserError`, with the command that makes it, if it is missing or damaged."""
    path = folder / "metrics.json"
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name a run folder, or one that unimetric evaluate wrote")
    if not path.is_file():
        # A run that was stopped before its first checkpoint has its configuration alone.
        unfinished = (folder / "config.yaml").is_file() and not (folder / "model").is_dir()
        if unfinished or (folder / "checkpoint.safetensors").is_file():
            raise UserError(f"{folder} has no metrics.json: finish it with: unimetric train --resume {folder}")
        if (folder / "config.json").is_file():
            raise UserError(
                f"{folder} is a model folder without numbers: measure it with: unimetric evaluate {folder} SOURCE..."
            )
        raise UserError(f"{folder} has no metrics.json: make it with unimetric train or unimetric evaluate")
    with explain_os_error(path, "read"):
        try:
            metrics = parse_json(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{path} is not JSON ({error}): write it again with: unimetric evaluate") from error
    parts = ("separate", "unified", "harmonic", "counts", "model")
    if not isinstance(metrics, dict) or (missing := [name for name in parts if name not in metrics]):
        what = "an object" if not isinstance(metrics, dict) else ", ".join(missing)
        raise UserError(f"{path} lacks {what}: write it again with: unimetric evaluate")
    if not isinstance(metrics["model"], dict) or not {"method", "geometry"} <= metrics["model"].keys():
        raise UserError(f"{path} names no model: write it again with: unimetric evaluate")
    if not metrics["unified"]:
        raise UserError(
            f"{path} holds no numbers, since no class was held out: "
            f"measure it with: unimetric evaluate {folder} SOURCE..."
        )
    return metrics


def read_run(folder: Path) -> Measured:
    """Read what the folder of a run or an evaluation holds; a `UserError`, with the command, for missing parts."""
    return Measured(folder, read_metrics(folder), read_measured(folder / VECTORS_FILE))


def located(source: ModelSource, folder: Path) -> ModelSource:
    """Return the source with the path of a folder's model, if it has no path yet and there is a model.

    The model is in the folder, or above it for ``RUN/evaluation``.
    """
    if source.path is not None:
        return source
    for place in (folder, folder.absolute().parent if folder.name == "evaluation" else folder):
        if (place / "model" / "config.json").is_file() or (place / "config.json").is_file():
            return source.at(place)
    return source


def read_log(folder: Path) -> list[dict[str, Any]]:
    """Return the rows of a run's ``log.jsonl``, without damaged lines; empty if there is no log."""
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = parse_json(line)
        except ValueError:  # cut off while being written
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows
