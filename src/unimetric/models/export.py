"""Export of a trained model to one file, which needs neither this package nor the backbone's weights."""

import io
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimetric.data.cropping import resized_side
from unimetric.errors import UserError, nearest_names
from unimetric.files import remove_leftovers, write_atomically
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import Ensemble
from unimetric.models.int8 import quantise
from unimetric.models.onnx_export import missing_package, onnx_graph, torch_program
from unimetric.models.onnx_runtime import OnnxNetwork, open_session

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""The formats and their file extensions."""

LARGEST_DIFFERENCE = {"fp32": 1e-4, "int8": 0.25}
"""Largest accepted distance between a vector of the file and the model's own, as a share of its length; float32 gives
about 1e-6, int8 about 0.1."""

_BATCH = 16

Runner = Callable[[Tensor], NDArray[np.float32]]


def export_model(model: Embedder | Ensemble, path: Path, kind: str, pixels: Tensor, precision: str = "fp32") -> float:
    """Write a model's inference form, after comparing its vectors with the model's own.

    The file maps ``images``, normalised float32 [B, 3, S, S] with any B, to ``embeddings``, float32 [B, E], and
    contains `metadata`.

    Args:
        model: The model, on the CPU.
        path: The file; an existing one is replaced at the end.
        kind: ``onnx``, or ``torch`` for a file for `torch.export.load`.
        pixels: Images for the comparison, uint8 [N, 3, S, S].
        precision: Type of the products, ``fp32`` or, with ``onnx``, ``int8``.

    Returns:
        The largest distance between a vector of the file and the model's own, as a share of the vector's length.

    Raises:
        UserError: unknown kind or precision, a package is missing, the model is too large for the format, the file
            cannot be written, or its vectors differ. In that case no file is written.
    """
    check_kind(kind, precision)
    images = model.transform.normalise(pixels)
    expected = _vectors(lambda batch: model(batch).numpy(), images)
    difference = float("nan")

    def write(temporary: Path) -> None:
        nonlocal difference
        if kind == "onnx":
            temporary.write_bytes(onnx_model(model, precision).SerializeToString())
        else:
            # Written to memory first, because torch only accepts paths that end in .pt2.
            content = io.BytesIO()
            about = {"metadata.json": json.dumps(metadata(model))}
            torch.export.save(torch_program(_members(model)), content, extra_files=about)
            temporary.write_bytes(content.getbuffer())
        found = _vectors(_run_onnx(temporary, precision) if kind == "onnx" else _run_torch(temporary), images)
        lengths = np.linalg.norm(expected, axis=1).clip(min=1e-12)
        difference = float((np.linalg.norm(found - expected, axis=1) / lengths).max())
        # Written so that NaN fails, too.
        largest = LARGEST_DIFFERENCE[precision]
        if not difference <= largest:
            raise UserError(
                f"{path}: not written, because its vectors differ from the model's by {difference:.1e} of their "
                f"length, more than {largest:g}; try the other --format or --precision, or another version of torch"
            )

    remove_leftovers(path)
    write_atomically(path, write)
    return difference


def onnx_model(model: Embedder | Ensemble, precision: str) -> Any:
    """Export a model's inference form, at most 2 GiB, with `metadata`; ``precision`` is ``fp32`` or ``int8``."""
    # Imported here because it is slow and optional.
    import onnx

    proto = onnx_graph(_members(model))
    if precision == "int8":
        proto = quantise(proto, model.transform)
    about = metadata(model) | {"precision": precision}
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in about.items()})
    return proto


def _members(model: Embedder | Ensemble) -> list[Embedder]:
    return model.members if isinstance(model, Ensemble) else [model]


def metadata(model: Embedder | Ensemble) -> dict[str, Any]:
    """Return the metadata of an exported file: its preprocessing, its model and its output."""
    transform = model.transform
    members = _members(model)
    fingerprints = [member.fingerprint for member in members]
    return {
        "format": 1,
        "image_size": transform.image_size,
        "resize_shorter_side": resized_side(transform.image_size),
        "interpolation": "bicubic",
        "mean": list(transform.mean),
        "std": list(transform.std),
        "embedding_size": model.embedding_size,
        "geometry": model.geometry.to_dict(),
        "fingerprint": fingerprints[0] if isinstance(model, Embedder) else "+".join(fingerprints),
        "backbone": ", ".join(dict.fromkeys(member.backbone.name for member in members)),
        "method": model.method_name,
        "compatible_with": list(model.compatible_with) if isinstance(model, Embedder) else [],
    }


def check_kind(kind: str, precision: str = "fp32") -> None:
    """Refuse a format or a precision that is unknown, does not fit or needs a package that is missing."""
    if kind not in FORMATS:
        raise UserError(f"--format is {kind!r}; {nearest_names(kind, FORMATS)}")
    if precision not in LARGEST_DIFFERENCE:
        raise UserError(f"--precision is {precision!r}; {nearest_names(precision, LARGEST_DIFFERENCE)}")
    if kind != "onnx" and precision != "fp32":
        raise UserError(f"--precision is {precision!r}, --format {kind!r} has fp32 alone: use --format onnx")
    if kind == "onnx" and (missing := missing_package()):
        raise UserError(f"--format onnx needs the package {missing}: pip install 'unimetric[export]'")


def _run_onnx(path: Path, precision: str) -> Runner:
    session = open_session(str(path))
    if precision == "fp32":
        # In batches, as other programs may run it.
        return lambda images: session.run(["embeddings"], {"images": images.numpy()})[0]
    network = OnnxNetwork(session, torch.get_num_threads())
    return lambda images: network(images.numpy())


def _run_torch(path: Path) -> Runner:
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda images: module(images).numpy()


@torch.no_grad()
def _vectors(run: Runner, images: Tensor) -> NDArray[np.float32]:
    # The last batch has one image, to check that B is dynamic.
    bounds = [*range(0, len(images) - 1, _BATCH), len(images) - 1, len(images)]
    return np.concatenate([run(images[start:end]) for start, end in pairwise(bounds)])
