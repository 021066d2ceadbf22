"""Export of a network's inference form, or of the mean of several, as a `torch.export` program or an ONNX graph."""

import math
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from unimetric.errors import UserError
from unimetric.models.inference import InferenceModel, fuse
from unimetric.models.network import Network

LARGEST_ONNX = 2**31 - 2**20
"""Maximum bytes of weights in one ONNX file: a protocol buffer is limited to 2 GiB, part of which is the graph."""

_LARGEST_BATCH = 2**31 - 1
"""Without a limit, torch.export of torch 2.7 takes the largest integer for an end of the batch."""


def onnx_graph(networks: Sequence[Network], largest: float = LARGEST_ONNX) -> Any:
    """Export networks of one geometry, on the CPU, in float32; a `UserError` if the weights exceed ``largest`` bytes.

    It maps ``images``, normalised float32 [B, 3, S, S] with any B, to ``embeddings``, float32 [B, E], the mean of the
    networks' vectors.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.onnx.export(
            torch_program(networks, largest),
            dynamo=True,
            input_names=["images"],
            output_names=["embeddings"],
            verbose=False,
        )
    assert exported is not None  # noqa: S101 - only the older exporter returns nothing
    proto: Any = exported.model_proto
    for node in proto.graph.node:
        # The metadata holds source lines with paths of this machine.
        del node.metadata_props[:]
    return proto


def torch_program(networks: Sequence[Network], largest: float = math.inf) -> torch.export.ExportedProgram:
    """Export networks of one geometry as a program with the inputs and outputs of `onnx_graph`."""
    models = [fuse(network, "fp32") for network in networks]
    module: nn.Module = models[0] if len(models) == 1 else _Mean(models)
    size = sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))
    if size > largest:
        raise UserError(
            f"the model's weights are {size / 2**30:.1f} GiB, a single ONNX file holds at most 2 GiB: use --format "
            "torch, or, to embed images, another precision than int8"
        )
    side = networks[0].transform.image_size
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.export.export(
            module.eval(),
            (torch.zeros(2, 3, side, side),),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)},),
        )


def missing_package() -> str | None:
    """Return the first package needed for ONNX that is not installed."""
    return next((name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None), None)


class _Mean(nn.Module):
    """The mean of several models' vectors, as `Ensemble.encode` computes it."""

    def __init__(self, models: list[InferenceModel]) -> None:
        super().__init__()
        self.models, self.geometry = nn.ModuleList(models), models[0].geometry

    def forward(self, images: Tensor) -> Tensor:
        vectors = torch.stack([model(images) for model in self.models])
        return self.geometry.mean(vectors.double()).float()
