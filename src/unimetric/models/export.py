"""A trained model as one file of its inference form, which needs neither this package nor the backbone's weights."""

from __future__ import annotations

import io
import json
import math
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
from unimetric.models.devices import overflows_in_int8
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import Ensemble
from unimetric.models.exported import OnnxNetwork, open_session
from unimetric.models.fused import fuse
from unimetric.models.quantised import quantised
from unimetric.models.saving import model_config, model_fingerprint

FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
"""What a file may be, and how its name ends."""

LARGEST_DIFFERENCE = {"fp32": 1e-4, "int8": 0.25}
"""Between a vector of the file and the model's own, as a share of its length; float32 gives about 1e-6, int8 0.1."""

_ONNX_BYTES = 2**31 - 2**20
"""A single ONNX file is a protocol buffer, which ends at 2 GiB; the graph takes some of it."""

_BATCH = 16

Runner = Callable[[Tensor], NDArray[np.float32]]


def export_model(model: Embedder | Ensemble, path: Path, kind: str, pixels: Tensor, precision: str = "fp32") -> float:
    """Write a model's inference form, after its vectors have been compared with the model's own.

    The file maps ``images``, normalised float32 [B, 3, S, S] with any B, to ``embeddings``, float32 [B, E]; what else
    is to be known is inside, see `metadata`.

    Args:
        model: On the CPU.
        path: The file; one that is there is replaced, at the end.
        kind: ``onnx``, or ``torch`` for what `torch.export.load` reads.
        pixels: What it is checked on, uint8 [N, 3, S, S].
        precision: Of the products, ``fp32`` or, with ``onnx``, ``int8``.

    Returns:
        The largest distance between a vector of the file and the model's own, as a share of the vector's length.

    Raises:
        UserError: unknown kind or precision, a package is missing, the model is too large for the format, the file
            cannot be written, or its vectors are others. Nothing is written then.
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
            _write_torch(_program(model), temporary, metadata(model))
        found = _vectors(_run_onnx(temporary, precision) if kind == "onnx" else _run_torch(temporary), images)
        lengths = np.linalg.norm(expected, axis=1).clip(min=1e-12)
        difference = float((np.linalg.norm(found - expected, axis=1) / lengths).max())
        # Written so that NaN is refused.
        largest = LARGEST_DIFFERENCE[precision]
        if not difference <= largest:
            raise UserError(
                f"{path}: not written, because its vectors differ from the model's by {difference:.1e} of their "
                f"length, more than {largest:g}; try the other --format or --precision, or another version of torch"
            )

    write_atomically(path, write)
    return difference


def onnx_model(model: Embedder | Ensemble, precision: str) -> Any:
    """A model's inference form as an `onnx.ModelProto`, with `metadata`; ``precision`` is ``fp32`` or ``int8``.

    Raises:
        UserError: the weights do not go into a single file, which holds at most 2 GiB.
    """
    # Slow to import, and of an extra.
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            _program(model, _ONNX_BYTES),
            dynamo=True,
            input_names=["images"],
            output_names=["embeddings"],
            verbose=False,
        )
    assert program is not None  # noqa: S101 - only the older exporter returns nothing
    proto: Any = program.model_proto
    for node in proto.graph.node:
        # Lines of source files, by their paths on this machine.
        del node.metadata_props[:]
    if precision == "int8":
        transform = model.transform
        seven_bits = overflows_in_int8(model.device)
        proto = quantised(proto, transform.image_size, transform.mean, transform.std, seven_bits=seven_bits)
    about = metadata(model) | {"precision": precision}
    onnx.helper.set_model_props(proto, {name: json.dumps(value) for name, value in about.items()})
    return proto


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


def check_kind(kind: str, precision: str = "fp32") -> None:
    """Find out before the work whether a format and a precision are known and their packages are there.

    Raises:
        UserError: they are not, one is missing, or the format does not have the precision.
    """
    if kind not in FORMATS:
        raise UserError(f"--format is {kind!r}; {nearest_names(kind, FORMATS)}")
    if precision not in LARGEST_DIFFERENCE:
        raise UserError(f"--precision is {precision!r}; {nearest_names(precision, LARGEST_DIFFERENCE)}")
    if kind != "onnx" and precision != "fp32":
        raise UserError(f"--precision is {precision!r}, --format {kind!r} has fp32 alone: use --format onnx")
    if kind == "onnx" and (missing := missing_package()):
        raise UserError(f"--format onnx needs the package {missing}: pip install 'unimetric[export]'")


def missing_package() -> str | None:
    """The first package of those that ONNX takes which is not there."""
    return next((name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None), None)


def _program(model: Embedder | Ensemble, most_bytes: float = math.inf) -> torch.export.ExportedProgram:
    members = model.members if isinstance(model, Ensemble) else [model]
    forms = [fuse(member, "fp32") for member in members]
    module = forms[0] if isinstance(model, Embedder) else _Mean(forms, model)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
    if size > most_bytes:
        raise UserError(
            f"the model's weights are {size / 2**30:.1f} GiB, a single ONNX file holds at most 2: use --format torch, "
            "or to embed another precision than int8"
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


def _write_torch(program: torch.export.ExportedProgram, path: Path, about: dict[str, Any]) -> None:
    # Through memory: given a path, torch wants one that ends in .pt2.
    content = io.BytesIO()
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(about)})
    path.write_bytes(content.getbuffer())


def _run_onnx(path: Path, precision: str) -> Runner:
    network = OnnxNetwork(open_session(str(path), torch.get_num_threads()), images_at_once=int(precision == "int8"))
    return lambda images: network(images.numpy())


def _run_torch(path: Path) -> Runner:
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()
    return lambda images: module(images).numpy()


@torch.no_grad()
def _vectors(run: Runner, images: Tensor) -> NDArray[np.float32]:
    # A last batch of one image: whether B is free is checked, too.
    bounds = [*range(0, len(images) - 1, _BATCH), len(images) - 1, len(images)]
    return np.concatenate([run(images[start:end]) for start, end in pairwise(bounds)])
