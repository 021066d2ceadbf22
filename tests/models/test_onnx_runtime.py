"""An exported file, run without torch, gives the vectors that the model gives; other files are refused."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from test_export import noise
from test_inference import embedder_of

from unimetric.errors import UserError
from unimetric.models.export import export_model
from unimetric.models.onnx_runtime import ExportedEmbedder
from unimetric.models.saving import model_fingerprint

SIZE = 48


@pytest.fixture(scope="module")
def embedder():
    embedder = embedder_of("puma", "augreg")
    embedder.compatible_with = ("an older one",)
    return embedder


@pytest.fixture(scope="module")
def file(embedder, tmp_path_factory):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    path = tmp_path_factory.mktemp("exported") / "model.onnx"
    export_model(embedder, path, "onnx", noise(3, SIZE))
    return path


@pytest.fixture(scope="module")
def exported(file):
    return ExportedEmbedder(file)


def picture(width, height, seed=0, channels=3):
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def changed(file, tmp_path, **metadata):
    """A copy of the file that says other things of itself; None leaves one out."""
    import onnx

    model = onnx.load(file)
    about = {entry.key: entry.value for entry in model.metadata_props}
    about |= {name: json.dumps(value) for name, value in metadata.items()}
    onnx.helper.set_model_props(model, {name: text for name, text in about.items() if text != "null"})
    path = tmp_path / "changed.onnx"
    onnx.save(model, path)
    return path


def test_what_it_says_of_itself(embedder, file, exported):
    assert exported.fingerprint == model_fingerprint(embedder.config())
    assert exported.compatible_with == ("an older one",)
    assert (exported.path, exported.image_size, exported.embedding_size) == (file, SIZE, 16)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 9))
def test_pixels_are_those_of_torch(embedder, exported, width, height, seed):
    image, transform = Image.fromarray(picture(width, height, seed)), embedder.transform
    np.testing.assert_array_equal(exported.crop(image), transform.crop(image).numpy())
    np.testing.assert_array_equal(exported.normalise(exported.crop(image)), transform(image).numpy())


def test_vectors_are_those_of_the_model(embedder, exported, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    images = [
        *(tmp_path / name for name in ("turned.jpg", "transparent.png", "deep.png", "thin.png")),
        Image.fromarray(picture(70, 50, 3)),
        picture(33, 80, 4)[:, :, 0],
        lambda: Image.fromarray(picture(50, 50, 5)),
    ]
    Image.fromarray(picture(90, 40)).save(images[0], exif=exif)
    Image.fromarray(picture(64, 64, 1, 4)).save(images[1])
    Image.fromarray(np.arange(65000, dtype=np.uint16)[:6000:2].reshape(50, 60) * 20).save(images[2])
    Image.fromarray(picture(700, 4, 2)).save(images[3])
    expected = embedder.encode(images, precision="fp32")
    alone = np.concatenate([exported.encode(image) for image in images])
    for batch_size in (1, 3, 32):
        found = exported.encode(images, batch_size=batch_size)
        np.testing.assert_array_equal(found, alone)
        assert found.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
        assert (found * expected).sum(axis=1).min() >= 0.9999
    # One image is no other's.
    assert (found @ expected.T - np.eye(len(images))).max() < 0.9999
    np.testing.assert_array_equal(exported.encode(images[0]), exported.encode([images[0]]))
    assert exported.encode([]).shape == (0, 16)


def test_an_image_that_cannot_be_read(exported, tmp_path):
    (tmp_path / "cut.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"cut\.png: damaged header"):
        exported.encode([picture(9, 9), tmp_path / "cut.png"])


@pytest.mark.parametrize(
    ("content", "words"),
    [(None, "cannot read .*: No such file"), (b"", "no ONNX file"), (b"\x08\x07\x12 nonsense", "no ONNX file")],
)
def test_no_file_of_ours(content, words, tmp_path):
    pytest.importorskip("onnxruntime")
    path = tmp_path / "model.onnx"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=words):
        ExportedEmbedder(path)


def test_a_file_that_is_cut_off(file, tmp_path):
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(UserError, match="damaged"):
        ExportedEmbedder(tmp_path / "cut.onnx")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"fingerprint": None}, "was not written by unimetric export"),
        ({"fingerprint": 7}, "was not written by unimetric export"),
        ({"image_size": 47}, "was not written by unimetric export"),
        ({"embedding_size": 17}, "was not written by unimetric export"),
        ({"mean": [0.5]}, "was not written by unimetric export"),
        ({"resize_shorter_side": 10**9}, "was not written by unimetric export"),
        ({"interpolation": "nearest"}, "was not written by unimetric export"),
        ({"format": 2}, "has format 2, this version of unimetric reads 1"),
    ],
)
def test_metadata_that_do_not_fit(metadata, words, file, tmp_path):
    with pytest.raises(UserError, match=words):
        ExportedEmbedder(changed(file, tmp_path, **metadata))


def test_onnxruntime_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match="needs the package onnxruntime, which is missing: pip install"):
        ExportedEmbedder(tmp_path / "model.onnx")
