"""int8 inference: quantisation of an ONNX network's products, and the inference form that runs it."""

import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from unimetric.data.transforms import EvaluationTransform
from unimetric.errors import UserError
from unimetric.models.devices import overflows_in_int8
from unimetric.models.network import Network
from unimetric.models.onnx_export import missing_package, onnx_graph
from unimetric.models.onnx_runtime import OnnxNetwork, open_session

_STRENGTH = 0.7
"""The share of a channel's magnitude that moves from activations to weights: alpha of SmoothQuant, equation 4."""

_IMAGES = 12
_SIDES = (2, 4, 8, 16, 32, 64)


class Int8Model:
    """Inference form that approximates the vectors of a network with 8-bit products, faster on a CPU.

    Weights and the activations they multiply are rounded to 8 bits, see `quantise`; attention, norms and the first
    layer stay float32. Building takes seconds. A vector does not depend on other images in the batch.
    ``docs/performance.md`` has the loss of accuracy.

    Raises:
        UserError: a package is missing, or the model is too large.
    """

    def __init__(self, network: Network) -> None:
        if missing := missing_package():
            raise UserError(f"precision int8 needs the package {missing}: pip install 'unimetric[export]'")
        self._transform, self._embedding_size = network.transform, network.embedding_size
        graph = quantise(onnx_graph([network]), network.transform)
        self._network = OnnxNetwork(open_session(graph.SerializeToString()), max(1, torch.get_num_threads()))

    def describe(self) -> str:
        """Return the precision and the device in a few words."""
        return "fused, int8 products, cpu"

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """Return the vectors [n, E] of n images from ``EvaluationTransform.crop``, uint8 [3, S, S] each."""
        if not images:
            return np.empty((0, self._embedding_size), np.float32)
        return self._network(self._transform.normalise(torch.stack(images)).numpy())


def quantise(model: Any, transform: EvaluationTransform, seven_bits: bool | None = None) -> Any:
    """Return the same network with int8 weights, int8 activations and int32 sums in products with constant matrices.

    Weights have a scale for each output; activations have one scale per call, so pass one image at a time for vectors
    that do not depend on other images. Before quantisation, channels that are far larger than others in the output of
    a layer norm are scaled down, and the weights that read them are scaled up, which changes only the rounding error
    (Xiao et al., SmoothQuant, ICML 2023). Channel sizes are measured on noise images, so that the result depends only
    on the model.

    Args:
        model: An `onnx.ModelProto` with input ``images``, float32 [B, 3, S, S]; it is changed.
        transform: The preprocessing of the images.
        seven_bits: Use 7 bits for weights, as x86 processors without VNNI need: they add 8-bit products in 16 bits,
            which overflow. None chooses for this processor.

    Returns:
        An `onnx.ModelProto` of about a quarter of the size.
    """
    if seven_bits is None:
        seven_bits = overflows_in_int8()
    norms = _smoothable(model.graph)
    noise = _noise(transform.image_size, transform.mean, transform.std)
    for norm, size in zip(norms, _channel_sizes(model, norms, noise), strict=True):
        _smooth(norm, size)
    return _with_int8_products(model, seven_bits)


@dataclass(frozen=True)
class _Norm:
    """A layer norm whose output is only read by products with constant matrices.

    Args:
        output: Name of its output.
        affine: Its scale and shift, initialisers [D] of the graph.
        weights: The matrices [D, N] that it is multiplied with, initialisers of the graph.
    """

    output: str
    affine: tuple[Any, ...]
    weights: tuple[Any, ...]


def _smoothable(graph: Any) -> list[_Norm]:
    """Return the norms whose channels can be scaled without side effects."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers: dict[str, list[tuple[Any, int]]] = defaultdict(list)
    for node in graph.node:
        for place, name in enumerate(node.input):
            readers[name].append((node, place))
    for output in graph.output:
        readers[output.name].append((None, 0))

    def is_product(node: Any, place: int) -> bool:
        return node is not None and node.op_type == "MatMul" and place == 0 and is_own(node.input[1], 2)

    def is_own(name: str, axes: int) -> bool:
        return name in constants and len(constants[name].dims) == axes and len(readers[name]) == 1

    norms = []
    for node in graph.node:
        if node.op_type != "LayerNormalization" or not all(is_own(name, 1) for name in node.input[1:]):
            continue
        reading = readers[node.output[0]]
        if reading and all(is_product(*reader) for reader in reading):
            affine = tuple(constants[name] for name in node.input[1:])
            norms.append(_Norm(node.output[0], affine, tuple(constants[reader.input[1]] for reader, _ in reading)))
    return norms


def _channel_sizes(model: Any, norms: list[_Norm], images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Return the largest absolute value [D] of each channel of the norms' outputs."""
    import onnx

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.helper.make_empty_tensor_value_info(norm.output) for norm in norms)
    # One thread, so that the sums, and with them the vectors, are the same on any number of processors.
    session = open_session(probe.SerializeToString())
    names = [norm.output for norm in norms]
    sizes = [
        [np.abs(output).max(axis=(0, 1)) for output in session.run(names, {"images": image[None]})]
        for image in images
        if names
    ]
    return [np.max(per_image, axis=0) for per_image in zip(*sizes, strict=True)]


def _smooth(norm: _Norm, size: NDArray[np.float32]) -> None:
    from onnx import numpy_helper

    weights = [numpy_helper.to_array(tensor) for tensor in norm.weights]
    largest = np.abs(np.concatenate(weights, axis=1)).max(axis=1)
    logarithm = _STRENGTH * np.log(size.clip(min=1e-4)) - (1 - _STRENGTH) * np.log(largest.clip(min=1e-6))
    factor = np.exp(logarithm - logarithm.mean()).astype(np.float32)  # (D,)
    for tensor in norm.affine:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / factor, tensor.name))
    for tensor, weight in zip(norm.weights, weights, strict=True):
        tensor.CopyFrom(numpy_helper.from_array(weight * factor[:, None], tensor.name))


def _noise(image_size: int, mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Return the calibration images: normalised noise, coarse and fine, float32 [N, 3, S, S]."""
    random = np.random.default_rng(0)
    images = []
    for number in range(_IMAGES):
        side = _SIDES[number % len(_SIDES)]
        image = Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8))
        images.append(np.asarray(image.resize((image_size, image_size), Image.Resampling.BICUBIC), np.float32) / 255)
    normalised = (np.stack(images) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normalised.transpose(0, 3, 1, 2))


def _products_of_tokens(graph: Any) -> list[str]:
    """Return the names of the products of tokens [B, T, D] with a constant matrix [D, N].

    Nearly all of the time is spent in these. The patch embedding, a convolution, is slower in int8; prompts and the
    head have one row per image.
    """
    constants = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2}
    tokens = {value.name for value in graph.value_info if len(value.type.tensor_type.shape.dim) == 3}
    return [
        node.name
        for node in graph.node
        if node.op_type == "MatMul" and node.input[0] in tokens and node.input[1] in constants
    ]


def _with_int8_products(model: Any, seven_bits: bool) -> Any:
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    products = _products_of_tokens(model.graph)
    # The quantiser of onnxruntime 1.23 transposes the head's weight and then rejects the shape that the exporter
    # recorded for it. Without recorded shapes it infers all of them.
    del model.graph.value_info[:]
    # Without this property the quantiser wrongly warns, through the root logger, that shapes were not inferred.
    onnx.helper.set_model_props(model, {"onnx.quant.pre_process": "onnxruntime.quant"})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        quantize_dynamic(
            model,
            path,
            op_types_to_quantize=["MatMul"],
            nodes_to_quantize=products,
            weight_type=QuantType.QInt8,
            per_channel=True,
            reduce_range=seven_bits,
        )
        result = onnx.load(path)
    del result.metadata_props[:]
    return result
