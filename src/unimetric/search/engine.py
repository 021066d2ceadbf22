"""Choose between torch with the model's folder and onnxruntime with an exported file to embed queries.

The exported file starts in a fraction of the time, since neither torch nor timm is imported.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from unimetric.errors import UserError
from unimetric.files import user_path
from unimetric.models.onnx_runtime import default_name

if TYPE_CHECKING:
    from unimetric.config import DeviceConfig
    from unimetric.models.onnx_runtime import ExportedEmbedder
    from unimetric.search.index import SearchIndex

PRECISIONS = ("fp32", "int8")
"""Precisions of exported files."""


def find_exported(
    index: SearchIndex, model: str | Path | None, engine: str, device: DeviceConfig, note: Callable[[str], None]
) -> ExportedEmbedder | None:
    """Return the exported file that embeds queries to a database, or None for torch.

    The model is a folder or an exported file, by default the folder that was recorded. Engines are ``torch``; ``onnx``,
    which needs a file; and ``auto``, which uses a file of the database's model if there is one and it supports the
    device. ``note`` is called with the reason why a file that was found is not used.

    Raises:
        UserError: the named file, or with ``onnx`` the one in the model's folder, is missing, damaged
            or of another model; or the options contradict each other.
    """
    named = is_exported(model)
    if named and engine == "torch":
        raise UserError(
            f"--engine is torch, which does not run {model}: name the model's folder, or leave --engine out"
        )
    wanted = named or engine == "onnx"
    if engine == "torch" or (not wanted and not _computes_on(device)):
        return None
    if not _computes_on(device):
        raise UserError(
            f"--device asks for {device.accelerator} and {device.precision}: an exported file computes on cpu in fp32 "
            "or int8; leave that out, or use --engine torch"
        )
    if named:
        exported = _opened(index, user_path(str(model)))
        if device.precision not in ("auto", exported.precision):
            raise UserError(
                f"--device.precision is {device.precision!r}, {model} computes in {exported.precision}: leave it out"
            )
        return exported
    precision = "fp32" if device.precision == "auto" else device.precision
    files = _beside(user_path(model or index.model), default_name(precision, index.shortened_to))
    present = [file for file in files if file.is_file()]
    if engine == "onnx":
        if not present:
            options = "" if precision == "fp32" else f" --precision {precision}"
            options += "" if index.shortened_to is None else f" --size {index.shortened_to}"
            raise UserError(
                f"--engine is onnx, but {files[0]} does not exist: write it with unimetric export "
                f"{files[0].parent}{options}"
            )
        return _opened(index, present[0])
    fitting = (_fitting(index, file, note) for file in present)
    return next((exported for exported in fitting if exported is not None), None)


def is_exported(model: str | Path | None) -> bool:
    """Return True if the model is an exported file and not a folder."""
    return model is not None and str(model).endswith(".onnx")


def _computes_on(device: DeviceConfig) -> bool:
    return device.accelerator in ("auto", "cpu") and device.precision in ("auto", *PRECISIONS)


def _beside(folder: Path, name: str) -> list[Path]:
    """Return the places of a model's exported file: in the run's folder, and in the model's."""
    run = folder.parent if folder.name == "model" else folder
    return [run / f"{name}.onnx", run / "model" / f"{name}.onnx"]


def _fitting(index: SearchIndex, file: Path, note: Callable[[str], None]) -> ExportedEmbedder | None:
    try:
        return _opened(index, file)
    except UserError as error:
        note(f"{error}; it is not used")
        return None


def _opened(index: SearchIndex, file: Path) -> ExportedEmbedder:
    from unimetric.models.onnx_runtime import ExportedEmbedder

    exported = ExportedEmbedder(file)
    if index.fingerprint not in (exported.fingerprint, *exported.compatible_with):
        of = "+".join(part[:12] for part in exported.fingerprint.split("+"))  # those of an ensemble's members
        raise UserError(
            f"{file} is of another model (fingerprint {of}) than the database's vectors "
            f"({index.fingerprint[:12]}): export the database's model again, {index.model}"
        )
    if exported.embedding_size < index.embedding_size:
        raise UserError(
            f"{file} is one model; until the upgrade to it is finished, two embed queries: use --engine torch"
        )
    return exported
