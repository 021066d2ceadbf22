"""Fit the rotation by which a trained model, or a backbone, gives shorter vectors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from unimetric.arguments import PositiveInt, Without
from unimetric.config import DeviceConfig
from unimetric.errors import MissingOptionError, UserError
from unimetric.files import check_writable, parse_json, read_bytes
from unimetric.models.source import ModelSource

if TYPE_CHECKING:
    from unimetric.data.catalog import Item


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

    Training does this itself; the command is for backbones, merged models, and images of another kind.

    Args:
        model: Run folder, model folder or name of a backbone.
        sources: Folders of images, manifests; by default the run's train images.
        out: Model folder to write; by default the rotation goes into MODEL. Its whole vectors stay as they are.
        batch_size: Images per forward pass.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        device: Device and precision.
    """
    from unimetric.evaluation.evaluate_split import Evaluator
    from unimetric.models.saving import read_model_config, write_rotation
    from unimetric.progress import log_status
    from unimetric.training.rotation import rotate

    if out is None and not model.is_dir():
        raise MissingOptionError(f"--out is missing: name the folder for the rotated model of {model}")
    source = ModelSource(model, weights, device)
    folder, config = read_model_config(source.folder)
    if config["geometry"]["name"] != "sphere":
        raise UserError(f"{model} is a hyperbolic model, whose vectors cannot be shortened")
    check_writable(out or folder)
    items = _items(source, sources or [])
    embedder = source.load()
    rotate(embedder, items, Evaluator(batch_size=batch_size, precision=device.precision))
    rotation = embedder.sizes.rotation
    assert rotation is not None  # noqa: S101  # just fitted
    if out is None:
        write_rotation(folder, config, rotation)
    else:
        embedder.save_pretrained(out, metrics=_metrics(source.folder))
    log_status(f"The rotation of {rotation.images} images is in {out or folder}: --size gives its vectors in any size.")
    return 0


def _items(source: ModelSource, sources: Sequence[str]) -> list[Item]:
    from unimetric.data.sources import read_sources
    from unimetric.formats.run_folder import RunFolder
    from unimetric.training.setup import load_split

    if sources:
        return [item for dataset in read_sources(sources, classes=False) for item in dataset.items]
    run = RunFolder(source.folder)
    if not run.config.is_file():
        raise MissingOptionError(f"no images are named, and {source.path} is not a run folder: name folders after it")
    return list(load_split(run.read_config()).train)


def _metrics(folder: Path) -> dict[str, Any] | None:
    from unimetric.formats.run_folder import RunFolder

    path = RunFolder(folder).metrics
    try:
        return parse_json(read_bytes(path)) if path.is_file() else None
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); measure the model again with: unimetric evaluate") from error
