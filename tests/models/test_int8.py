"""int8 products: close to the model's vectors, the same for an image whatever is beside it, and never for training."""

import copy
import logging
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from test_export import noise
from test_inference import embedder_of
from toys import pixels

from unimetric.data.transforms import EvaluationTransform
from unimetric.errors import UserError
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import Ensemble
from unimetric.models.export import export_model, onnx_model
from unimetric.models.int8 import _channel_sizes, _noise, _smooth, _smoothable, quantise
from unimetric.models.onnx_runtime import ExportedEmbedder, OnnxNetwork, open_session

pytest.importorskip("onnxscript", reason="the extra `export` is not installed")

PUMA = ("puma", "augreg")
CASES = [
    PUMA,
    ("vpt-deep", "eva02 with rope"),
    ("puma", "siglip, map pooling, no class token"),
    pytest.param(("lora on all", "dinov2 with LayerScale"), marks=pytest.mark.soak),
]


@pytest.fixture(scope="module", params=CASES, ids=" on ".join)
def case(request, embedder, plain):
    """An embedder, and its network in float32; to export one takes seconds."""
    if request.param == PUMA:
        return embedder, plain
    other = embedder_of(*request.param)
    return other, onnx_model(other, "fp32")


@pytest.fixture(scope="module")
def embedder():
    """Of a random start; only to be used, so that its int8 form is made once."""
    return embedder_of(*PUMA)


@pytest.fixture(scope="module")
def plain(embedder):
    """The network in float32."""
    return onnx_model(embedder, "fp32")


def rounded(model, seven_bits=False):
    size = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
    return quantise(copy.deepcopy(model), EvaluationTransform(size, (0.5,) * 3, (0.5,) * 3), seven_bits)


def run(model, images):
    return OnnxNetwork(open_session(model.SerializeToString()))(images.numpy())


def cosines(one, other):
    lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
    return (one * other).sum(axis=1) / lengths


def test_methods_and_families(case):
    embedder, plain = case
    images = pixels(9, embedder.transform.image_size)
    with torch.no_grad():
        exact = embedder(images).numpy()
    found = run(rounded(plain), images)
    assert found.dtype == np.float32
    assert cosines(found, exact).min() > 0.98
    # Something was rounded, or this test shows nothing.
    assert np.abs(found - exact).max() > 1e-4


def test_smoothing_changes_nothing_in_float32(case):
    embedder, plain = case
    model, size = copy.deepcopy(plain), embedder.transform.image_size
    images = pixels(3, size)
    norms = _smoothable(model.graph)
    assert norms
    for norm, sizes in zip(norms, _channel_sizes(model, norms, _noise(size, (0.5,) * 3, (0.5,) * 3)), strict=True):
        before = norm.weights[0].raw_data
        assert sizes.shape == (embedder.backbone.vit.embed_dim,)
        _smooth(norm, sizes)
        assert norm.weights[0].raw_data != before
    np.testing.assert_allclose(run(model, images), run(plain, images), atol=2e-5)


def test_every_product_of_tokens_with_a_matrix_is_in_int8(plain):
    def count(model, *operators):
        return sum(node.op_type in operators for node in model.graph.node)

    model = rounded(plain)
    # Two blocks of queries with keys and values, output, two of the MLP and two adapters; the last block's queries
    # are a product of their own. Of the others, prompts and head have a row an image, and attention no constant.
    assert count(model, "MatMulInteger") == 2 * (4 + 2 * 2) + 1
    assert count(plain, "MatMul", "Gemm") - count(model, "MatMul", "Gemm") == 17


def test_a_vector_does_not_depend_on_what_is_beside_it(embedder):
    images = list(noise(7, 48))
    images[3] = torch.full_like(images[3], 255)
    form = embedder.inference_form("int8")
    together = form.embed_pixels(images)
    for number, image in enumerate(images):
        np.testing.assert_array_equal(form.embed_pixels([image])[0], together[number])
    assert form.embed_pixels([]).shape == (0, 16)


def test_encode_computes_in_it_until_the_model_changes(embedder):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8))
    before = embedder.encode([picture], precision="int8")
    assert embedder.encoded_in == "fused, int8 products, cpu"
    form = embedder.inference_form("int8")
    assert embedder.inference_form("int8") is form
    np.testing.assert_array_equal(embedder.encode([picture], precision="int8"), before)
    # Nothing is drawn: another one of the same weights gives the same vectors.
    other = embedder_of(*PUMA)
    np.testing.assert_array_equal(other.encode([picture], precision="int8"), before)
    with torch.no_grad():
        other.head.weight.mul_(-1)
        other.head.bias.mul_(-1)
    assert cosines(other.encode([picture], precision="int8"), before).max() < -0.98


def test_an_ensemble_computes_in_it(embedder):
    ensemble = Ensemble([embedder, embedder_of("lora on all", "augreg")])
    picture = np.random.default_rng(0).integers(0, 256, (60, 70, 3), dtype=np.uint8)
    found, exact = (ensemble.encode(picture, precision=precision) for precision in ("int8", "fp32"))
    assert 1 - 1e-6 > cosines(found, exact).min() > 0.98


def test_smoothing_helps_where_a_channel_is_large(embedder, plain):
    from onnx import numpy_helper

    model = copy.deepcopy(plain)
    for norm in _smoothable(model.graph):
        for tensor, factor in (
            *((tensor, 60) for tensor in norm.affine),
            *((tensor, 1 / 60) for tensor in norm.weights),
        ):
            values = numpy_helper.to_array(tensor).copy()
            values[5] *= factor
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    images = pixels(20, 48)
    exact = run(plain, images)
    usual, smooth = (1 - cosines(run(rounded(one), images), exact).mean() for one in (plain, model))
    assert smooth < 1.5 * usual


@pytest.mark.parametrize(("seven_bits", "largest"), [(False, 127), (True, 64)])
def test_seven_bits_where_eight_would_overflow(plain, seven_bits, largest):
    from onnx import numpy_helper

    model = rounded(plain, seven_bits)
    products = {node.input[1] for node in model.graph.node if node.op_type == "MatMulInteger"}
    weights = [numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name in products]
    assert {weight.dtype for weight in weights} == {np.dtype(np.int8)}
    assert largest - 1 <= max(np.abs(weight.astype(int)).max() for weight in weights) <= largest


def test_the_file_gives_what_the_form_gives(embedder, tmp_path, caplog):
    difference = export_model(embedder, tmp_path / "model.onnx", "onnx", noise(3, 48), "int8")
    assert 1e-4 < difference < 0.2
    exported = ExportedEmbedder(tmp_path / "model.onnx")
    assert (exported.precision, exported.encoded_in) == ("int8", "onnxruntime, int8, cpu")
    pictures = [np.random.default_rng(seed).integers(0, 256, (50 + seed, 60, 3), dtype=np.uint8) for seed in range(5)]
    np.testing.assert_array_equal(exported.encode(pictures), embedder.encode(pictures, precision="int8"))
    # onnxruntime's quantiser speaks through the root logger.
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


def test_what_computes_something_else_is_not_written(tmp_path):
    embedder = embedder_of(*PUMA)
    with torch.no_grad():
        # Beside a number so large that counts for nothing, int8 has no steps left for the others.
        for block in embedder.backbone.vit.blocks:
            block.mlp.fc1.bias[0] = 1e5
            block.mlp.fc2.weight[:, 0] = 0
    with pytest.raises(UserError, match=r"model\.onnx: not written, because its vectors differ"):
        export_model(embedder, tmp_path / "model.onnx", "onnx", noise(3, 48), "int8")
    assert list(tmp_path.iterdir()) == []


def test_refused(embedder, tmp_path, monkeypatch):
    with pytest.raises(UserError, match="--precision is 'int8', --format 'torch' has fp32 alone: use --format onnx"):
        export_model(embedder, tmp_path / "model.pt2", "torch", noise(3, 48), "int8")
    with pytest.raises(UserError, match="--precision is 'int4'; did you mean 'int8'"):
        export_model(embedder, tmp_path / "model.onnx", "onnx", noise(3, 48), "int4")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match="precision int8 needs the package onnxscript: pip install 'unimetric"):
        Embedder.encode(embedder_of("puma", "augreg"), pixels(1)[0, 0].numpy(), precision="int8")
