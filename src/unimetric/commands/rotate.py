"""Fit the rotation by which a trained model, or a backbone, gives shorter vectors."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from unimetric.arguments import PositiveInt, Without
from unimetric.config import DeviceConfig
from unimetric.errors import MissingOptionError, UserError
from unimetric.files import check_writable
from unimetric.models.source import ModelSource

if TYPE_CHECKING:
    from unimetric.data.catalog import Item
    from unimetric.models.sizes import Rotation


def rotate(
    model: Path,
    sources: list[str] | None = None,
    *,
    out: Path | None = None,
    batch_size: PositiveInt = 32,
    weights: str | None = None,
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Fit the rotation by which a model gives shorter vectors with --size.

    Training does this itself; the command is for backbones, older models, and images of another kind.

    Args:
        model: Run folder, model folder or name of a backbone.
        sources: Folders of images or of class folders, manifests; by default the train images of the run.
        out: Model folder to write; by default that of MODEL, whose whole vectors stay as they are.
        batch_size: Images per forward pass.
        weights: Weights of the backbone, for a model trained with --model.weights FILE.
        device: Device and precision.
    """
    from unimetric.progress import log_status

    if out is None and not model.is_dir():
        raise MissingOptionError(f"--out is missing: name the folder for the rotated model of {model}")
    rotation, folder = rotate_model(ModelSource(model, weights, device), sources or [], out, batch_size=batch_size)
    log_status(f"The rotation of {rotation.images} images is in {folder}: --size gives its vectors in any size.")
    return 0


def rotate_model(
    source: ModelSource, sources: Sequence[str], out: Path | None = None, *, batch_size: int = 32
) -> tuple[Rotation, Path]:
    """Fit a rotation and write it into the model's folder, or into a copy of it.

    Args:
        source: The model.
        sources: As in `DataConfig.sources`, labels are not needed; none for the train images of the run.
        out: The model folder to write; None for the model's own.
        batch_size: Images per forward pass.

    Returns:
        The rotation, and the folder that it is in.

    Raises:
        UserError: the model or the images cannot be read, the model cannot have a rotation, or the folder cannot be
            written.
    """
    from unimetric.models.saving import read_model_config, write_rotation
    from unimetric.training.rotation import rotate

    folder, config = read_model_config(source.folder)
    if config["geometry"]["name"] != "sphere":
        raise UserError(f"{source.path} is a hyperbolic model, whose vectors cannot be shortened")
    check_writable(out or folder)
    items = _items(source, sources)
    embedder = source.load()
    rotate(embedder, items, batch_size=batch_size, precision=source.device.precision)
    rotation = embedder.sizes.rotation
    assert rotation is not None  # noqa: S101  # just fitted
    if out is None:
        write_rotation(folder, config, rotation)
    else:
        embedder.save_pretrained(out, metrics=_metrics(source.folder))
    return rotation, out or folder


def _items(source: ModelSource, sources: Sequence[str]) -> list[Item]:
    from unimetric.data.sources import read_sources
    from unimetric.formats.run_folder import RunFolder
    from unimetric.training.setup import load_split

    if sources:
        return [item for dataset in read_sources(sources, classes=False) for item in dataset.items]
    run = RunFolder(source.folder)
    if not run.config.is_file():
        raise MissingOptionError(f"no images are named, and {source.path} is no run folder: name folders after it")
    return list(load_split(run.read_config()).train)


def _metrics(folder: Path) -> dict[str, Any] | None:
    from unimetric.formats.run_folder import RunFolder

    path = RunFolder(folder).metrics
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
