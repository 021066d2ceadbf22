"""Write a trained model as one file for programs without this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unimetric.arguments import PositiveInt
from unimetric.errors import UserError
from unimetric.files import check_writable, make_folder
from unimetric.models.source import ModelSource

if TYPE_CHECKING:
    from torch import Tensor

    from unimetric.data.transforms import EvaluationTransform
    from unimetric.formats.run_folder import RunFolder
    from unimetric.models.embedder import Embedder
    from unimetric.models.ensemble import Ensemble

_CHECKED_IMAGES = 64


def export(
    models: list[Path],
    *,
    out: Path | None = None,
    format: Literal["onnx", "torch"] = "onnx",
    precision: Literal["fp32", "int8"] = "fp32",
    size: PositiveInt | None = None,
    overwrite: bool = False,
    weights: str | None = None,
) -> int:
    """Write a model as one ONNX or torch file that runs without this package.

    The vectors of the file are compared with the model's own on 64 images.

    Args:
        models: Run folders or model folders; several are exported as an ensemble. Its vectors are the mean of theirs.
        out: The file; by default MODEL/model.onnx or MODEL/model.pt2. With int8 it is model.int8.onnx, with a size
            model.32.onnx.
        format: Format of the file; torch.export.load reads torch.
        precision: int8 is smaller, faster and a little less exact; ONNX only. The file has a quarter of the size.
        size: Numbers of a vector, for a single model; by default all.
        overwrite: Replace an existing file.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
    """
    from unimetric.models.embedder import Embedder
    from unimetric.models.ensemble import Ensemble
    from unimetric.models.export import check_kind, export_model
    from unimetric.models.onnx_runtime import default_name
    from unimetric.progress import log_status

    check_kind(format, precision)
    if size is not None and len(models) > 1:
        raise UserError(f"--size is {size}, for a single model: leave it out for an ensemble")
    path = _path(models, out, format, default_name(precision, size), overwrite)
    files = [ModelSource(model, weights).weights_file for model in models]
    model: Embedder | Ensemble = (
        Embedder.from_pretrained(models[0], weights=files[0], size=size)
        if len(models) == 1
        else Ensemble.from_pretrained(models, weights=files)
    ).eval()
    pixels, real, reason = _images(models[0], model.transform)
    make_folder(path.parent)
    difference = export_model(model, path, format, pixels, precision)
    if reason:
        log_status(f"note: {len(pixels) - real} of the images it was checked on are noise: {reason}")
    log_status(
        f"The model is in {path}: on {len(pixels)} images, its vectors are within {difference:.1e} of the original's, "
        "as a share of their length."
    )
    return 0


def _path(models: Sequence[Path], out: Path | None, kind: str, name: str, overwrite: bool) -> Path:
    from unimetric.models.export import FORMATS

    suffix = FORMATS[kind]
    if out is None and len(models) > 1:
        raise UserError(f"--out is missing: name the {suffix} file for the ensemble")
    if out is None and not models[0].exists() and ModelSource(models[0]).folder.exists():
        raise UserError(f"--out is missing: name the {suffix} file, {models[0]} is a name and not a folder")
    path = models[0] / f"{name}{suffix}" if out is None else out
    if path.suffix != suffix:
        raise UserError(f"--out is {path}: a file of --format {kind} ends in {suffix}")
    if path.is_dir():
        raise UserError(f"--out is {path}, which is a folder: name a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists: add --overwrite to replace it, or name another file with --out")
    check_writable(path.parent)
    return path


def _images(model: Path, transform: EvaluationTransform) -> tuple[Tensor, int, str]:
    """Pixels, uint8 [64, 3, S, S], how many of them are the run's own images, and why not all of them."""
    import torch

    from unimetric.formats.run_folder import RunFolder
    from unimetric.models.encoding import decoded_batches

    paths, reason = _image_paths(RunFolder(model))
    real: list[Tensor] = []
    for pixels, _ in decoded_batches(paths, transform, _CHECKED_IMAGES, skip_unreadable=True):
        real += pixels
    if paths and len(real) < _CHECKED_IMAGES:
        reason = f"the run has only {len(real)} images that can be read"
    size = (_CHECKED_IMAGES - len(real), 3, transform.image_size, transform.image_size)
    noise = torch.randint(0, 256, size, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return torch.stack([*real, *noise]), len(real), reason


def _image_paths(run: RunFolder) -> tuple[list[Path], str]:
    """Up to 64 images of a run's data, evenly spread, and why there are none."""
    from unimetric.training.rotation import evenly
    from unimetric.training.setup import load_split

    if not run.config.is_file():
        return [], "no run's configuration lies beside the model"
    try:
        split = load_split(run.read_config(), training=False)
    except UserError as error:
        return [], str(error)
    paths = list(dict.fromkeys(item.path for item in (*split.query, *split.gallery, *split.train)))
    return evenly(paths, _CHECKED_IMAGES), ""
