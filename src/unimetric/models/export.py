"""A trained model as one file of its inference form, which needs neither this package nor the backbone's weights."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unimetric.data.cropping import resized_side
from unimetric.errors import UserError, nearest_names
from unimetric.files import write_atomically
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import Ensemble
from unimetric.models.fused import fuse
from unimetric.models.saving import model_config, model_fingerprint

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""What a file may be, and how its name ends."""

LARGEST_DIFFERENCE = 1e-4
"""Between a vector of the file and the model's own, as a share of its length; float32 gives about 1e-6."""

_ONNX_BYTES = 2**31 - 2**20
"""A single ONNX file is a protocol buffer, which ends at 2 GiB; the graph takes some of it."""

_BATCH = 16

Runner = Callable[[Tensor], NDArray[np.float32]]


def export_model(model: Embedder | Ensemble, path: Path, kind: str, pixels: Tensor) -> float:
    """Write a model's inference form in float32, after its vectors have been compared with the model's own.

    The file maps ``images``, normalised float32 [B, 3, S, S] with any B, to ``embeddings``, float32 [B, E]; what else
    is to be known is inside, see `metadata`.

    Args:
        model: On the CPU.
        path: The file; one that is there is replaced, at the end.
        kind: ``onnx``, or ``torch`` for what `torch.export.load` reads.
        pixels: What it is checked on, uint8 [N, 3, S, S].

    Returns:
        The largest distance between a vector of the file and the model's own, as a share of the vector's length.

    Raises:
        UserError: unknown kind, a package is missing, the model is too large for the format, the file cannot be
            written, or its vectors are others. Nothing is written then.
    """
    check_kind(kind)
    program = _program(model, kind)
    images = model.transform.normalise(pixels)
    expected = _vectors(lambda batch: model(batch).numpy(), images)
    difference = float("nan")

    def write(temporary: Path) -> None:
        nonlocal difference
        _WRITERS[kind](program, temporary, metadata(model))
        found = _vectors(_RUNNERS[kind](temporary), images)
        lengths = np.linalg.norm(expected, axis=1).clip(min=1e-12)
        difference = float((np.linalg.norm(found - expected, axis=1) / lengths).max())
        # Written so that NaN is refused.
        if not difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"{path}: not written, because its vectors differ from the model's by {difference:.1e} of their "
                f"length, more than {LARGEST_DIFFERENCE:g}; try the other --format, or another version of torch"
            )

    write_atomically(path, write)
    return difference


def metadata(model: Embedder | Ensemble) -> dict[str, Any]:
    """What an exported file says of itself: how images are prepared for it, what model it is, what it returns."""
    transform = model.transform
    members = model.members if isinstance(model, Ensemble) else [model]
    fingerprints = [model_fingerprint(model_config(member)) for member in members]
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


def check_kind(kind: str) -> None:
    """Find out before the work whether a format is known and its packages are there.

    Raises:
        UserError: it is not, or one is missing.
    """
    if kind not in FORMATS:
        raise UserError(f"--format is {kind!r}; {nearest_names(kind, FORMATS)}")
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if kind == "onnx" and find_spec(name) is None]
    if missing:
        raise UserError(f"--format onnx needs the package {missing[0]}: pip install 'unimetric[export]'")


def _program(model: Embedder | Ensemble, kind: str) -> torch.export.ExportedProgram:
    members = model.members if isinstance(model, Ensemble) else [model]
    forms = [fuse(member, "fp32") for member in members]
    module = forms[0] if isinstance(model, Embedder) else _Mean(forms, model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
    if kind == "onnx" and size > _ONNX_BYTES:
        raise UserError(
            f"the model's weights are {size / 2**30:.1f} GiB, a single ONNX file holds at most 2: use --format torch"
        )
    side = model.transform.image_size
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            module.eval(), (torch.zeros(2, 3, side, side),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},)
        )


class _Mean(nn.Module):
    """The members' forms and the mean of their vectors, as `Ensemble.encode` computes it."""

    def __init__(self, forms: list[Any], ensemble: Ensemble) -> None:
        super().__init__()
        self.forms, self.geometry = nn.ModuleList(forms), ensemble.geometry

    def forward(self, images: Tensor) -> Tensor:
        vectors = torch.stack([form(images) for form in self.forms])
        return self.geometry.mean(vectors.double()).float()


def _write_onnx(program: torch.export.ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        onnx_program = torch.onnx.export(
            program, dynamo=True, input_names=["images"], output_names=["embeddings"], verbose=False
        )
    assert onnx_program is not None  # noqa: S101 - only the older exporter returns nothing
    model = onnx_program.model
    model.metadata_props.update({name: json.dumps(value) for name, value in about.items()})
    onnx_program.save(path, external_data=False)


def _write_torch(program: torch.export.ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    # Through memory: given a path, torch wants one that ends in .pt2.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(about)})
    path.write_bytes(content.getbuffer())


def _run_onnx(path: Path) -> Runner:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(images: Tensor) -> NDArray[np.float32]:
        (vectors,) = session.run(["embeddings"], {"images": images.numpy()})
        return vectors  # type: ignore[no-any-return]

    return run


def _run_torch(path: Path) -> Runner:
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda images: module(images).numpy()


_WRITERS = {"onnx": _write_onnx, "torch": _write_torch}
_RUNNERS: dict[str, Callable[[Path], Runner]] = {"onnx": _run_onnx, "torch": _run_torch}


@torch.no_grad()
def _vectors(run: Runner, images: Tensor) -> NDArray[np.float32]:
    # A last batch of one image: whether B is free is checked, too.
    bounds = [*range(0, len(images) - 1, _BATCH), len(images) - 1, len(images)]
    return np.concatenate([run(images[start:end]) for start, end in pairwise(bounds)])
