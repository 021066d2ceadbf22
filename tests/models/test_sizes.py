"""Shorter vectors: what they are, to the bit; what folders hold; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file
from toys import TINY, toy_embedder

from unimetric.errors import UserError
from unimetric.geometry import PoincareBall
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import Ensemble
from unimetric.models.saving import model_fingerprint, read_model_config, write_rotation
from unimetric.models.sizes import ROTATION, Rotation, Sizes, fit_rotation, sized_fingerprint

E = 16


def units(rows, width=E, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(rows, width)) @ np.diag(np.linspace(0.2, 2, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def pictures(count=5):
    random = np.random.default_rng(1)
    return [Image.fromarray(random.integers(0, 256, (40 + n, 60, 3), dtype=np.uint8)) for n in range(count)]


def saved(folder, sizes=None, method="linear", geometry="sphere"):
    torch.manual_seed(0)
    embedder = Embedder(make_backbone(TINY, weights="random", image_size=32), method, None, E, geometry).eval()
    embedder.sizes = sizes or Sizes()
    embedder.save_pretrained(folder)
    return folder


def test_a_rotation_is_orthogonal_and_orders_directions_by_what_they_keep():
    vectors = units(500)
    rotation = fit_rotation(vectors)
    np.testing.assert_allclose(rotation.matrix.T @ rotation.matrix, np.eye(E), atol=1e-6)
    energy = ((vectors @ rotation.matrix) ** 2).sum(axis=0)
    assert (np.diff(energy) <= 1e-3).all()
    # No map to s numbers keeps more of the inner products: the residual is that of the singular values.
    values = np.linalg.svd(vectors.astype(np.float64), compute_uv=False)
    kept = vectors @ rotation.matrix[:, :5]
    np.testing.assert_allclose((kept**2).sum(), (values[:5] ** 2).sum(), rtol=1e-5)
    assert rotation.images == 500


def test_a_rotation_does_not_depend_on_the_order_of_rows():
    vectors = units(200)
    one, other = fit_rotation(vectors), fit_rotation(vectors[::-1])
    np.testing.assert_allclose(one.matrix, other.matrix, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, E), rows=st.integers(1, 9), rotated=st.booleans())
def test_a_short_vector_depends_on_its_vector_alone(size, rows, rotated):
    vectors = units(9)
    sizes = Sizes(rotation=fit_rotation(vectors) if rotated else None)
    whole = sizes.shorten(vectors, size)
    assert whole.dtype == np.float32
    parts = [sizes.shorten(vectors[start : start + rows], size) for start in range(0, 9, rows)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    expected = vectors if size == E else vectors @ sizes.matrix(E, size)
    np.testing.assert_allclose(whole, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-6)
    assert sizes.shorten(vectors[:0], size).shape == (0, size)


def test_all_numbers_of_a_rotated_vector_have_the_cosines_of_the_vector():
    vectors = units(300)
    rotation = fit_rotation(vectors)
    turned = vectors @ rotation.matrix
    np.testing.assert_allclose(turned @ turned.T, vectors @ vectors.T, atol=1e-6)


@pytest.mark.parametrize("sizes", [Sizes(nested=(4, 8)), Sizes(rotation=fit_rotation(units(50)))])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_encode_gives_the_short_vector_of_the_whole_one_to_the_bit(sizes, precision, tmp_path):
    embedder = Embedder.from_pretrained(saved(tmp_path, sizes))
    assert embedder.sizes.nested == sizes.nested
    whole = embedder.encode(pictures(), precision=precision)
    for size in (1, 4, 15, E):
        expected = sizes.shorten(whole, size)
        assert expected.shape == (5, size)
        np.testing.assert_array_equal(embedder.encode(pictures(), precision=precision, size=size), expected)
        short = Embedder.from_pretrained(tmp_path, size=size)
        np.testing.assert_array_equal(short.encode(pictures(), precision=precision), expected)
        assert short.embedding_size == size
        assert short.encode([]).shape == (0, size)
    np.testing.assert_array_equal(embedder.encode(pictures(), precision=precision), whole)
    pixels = torch.stack([embedder.transform(image) for image in pictures()])
    with torch.no_grad():
        short = embedder.shortened(4)(pixels)
    np.testing.assert_allclose(short.numpy(), embedder.encode(pictures(), precision="fp32", size=4), atol=1e-4)


def test_a_shortened_model_follows_its_weights_and_is_shortened_again_from_the_whole():
    embedder = toy_embedder().eval()
    embedder.sizes = Sizes(nested=(8,))
    short = embedder.shortened(8)
    before = short.encode(pictures(), precision="fp32")
    assert embedder.shortened(8).shortened(E) is embedder
    with torch.no_grad():
        embedder.head.weight.mul_(-1)
        embedder.head.bias.mul_(-1)
    np.testing.assert_array_equal(short.encode(pictures(), precision="fp32"), -before)
    np.testing.assert_array_equal(short.shortened(4).encode(pictures()), embedder.encode(pictures(), size=4))
    with pytest.raises(UserError, match="save the whole model"):
        short.save_pretrained("anywhere")


def test_fingerprints(tmp_path):
    one, other = Sizes(rotation=fit_rotation(units(50))), Sizes(rotation=fit_rotation(units(50, seed=1)))
    plain = Embedder.from_pretrained(saved(tmp_path / "plain"))
    rotated = Embedder.from_pretrained(saved(tmp_path / "one", one))
    # Whole vectors do not depend on the rotation, short ones do.
    assert plain.fingerprint == rotated.fingerprint == model_fingerprint(plain.config())
    again = Embedder.from_pretrained(saved(tmp_path / "other", other))
    found = {embedder.shortened(size).fingerprint for embedder in (rotated, again) for size in (4, 8)}
    assert len(found | {plain.fingerprint}) == 5
    _, config = read_model_config(tmp_path / "one")
    assert sized_fingerprint(model_fingerprint(config), config, 4) == rotated.shortened(4).fingerprint
    rotated.compatible_with = (again.fingerprint,)
    assert rotated.shortened(4).compatible_with == (sized_fingerprint(again.fingerprint, config, 4),)


def test_a_rotation_that_is_added_to_a_folder(tmp_path):
    folder, config = read_model_config(saved(tmp_path))
    before = (folder / "README.md").read_bytes()
    rotation = fit_rotation(units(50))
    write_rotation(folder, config, rotation)
    assert (folder / "README.md").read_bytes() == before
    embedder = Embedder.from_pretrained(tmp_path)
    np.testing.assert_array_equal(embedder.sizes.rotation.matrix, rotation.matrix)
    assert embedder.sizes.rotation.images == 50


@pytest.mark.parametrize("size", [0, -1, E + 1])
def test_sizes_out_of_range(size, tmp_path):
    folder = saved(tmp_path, Sizes(nested=(8,)))
    with pytest.raises(UserError, match=rf"--size is {size}: the vectors of .* have 16 numbers; use 1 to 16"):
        Embedder.from_pretrained(folder, size=size)
    with pytest.raises(UserError, match="use 1 to 16"):
        Embedder.from_pretrained(folder).encode(pictures(), size=size)


def test_models_without_short_vectors(tmp_path):
    folder = saved(tmp_path / "plain")
    with pytest.raises(UserError, match=rf"no rotation; fit one with: unimetric rotate {folder}$"):
        Embedder.from_pretrained(folder, size=8)
    assert Embedder.from_pretrained(folder, size=E).embedding_size == E
    ball = saved(tmp_path / "ball", geometry=PoincareBall())
    with pytest.raises(UserError, match="hyperbolic model, whose vectors cannot be shortened"):
        Embedder.from_pretrained(ball, size=8)
    ensemble = Ensemble([Embedder.from_pretrained(folder)])
    with pytest.raises(UserError, match="only a single model"):
        ensemble.encode(pictures(), size=8)


@pytest.mark.parametrize("damage", ["missing", "cut", "other", "shape", "nonsense"])
def test_a_damaged_rotation_is_named(damage, tmp_path):
    folder = saved(tmp_path, Sizes(rotation=fit_rotation(units(50))))
    path = folder / ROTATION
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif damage == "nonsense":
        path.write_bytes(b"nonsense")
    else:
        width = E if damage == "other" else E - 1
        save_file({"rotation": np.eye(width, dtype=np.float32)}, path)
    with pytest.raises(UserError, match=rf"{path} .*unimetric rotate"):
        Embedder.from_pretrained(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("nested_sizes", value) for value in ([0], [E], ["8"], [True], 8, {"a": 1}, None)),
        *(("rotation", value) for value in ({}, [], {"sha256": "x", "images": 1}, {"sha256": "0" * 64})),
    ],
)
def test_a_damaged_configuration_is_named(key, value, tmp_path):
    folder = saved(tmp_path)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(UserError, match=key):
        Embedder.from_pretrained(folder)


def test_an_exported_file_has_short_vectors(tmp_path):
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    from unimetric.models.export import export_model
    from unimetric.models.onnx_runtime import ExportedEmbedder

    embedder = toy_embedder().eval()
    embedder.sizes = Sizes(rotation=fit_rotation(units(50)))
    short = embedder.shortened(6)
    pixels = torch.stack([torch.from_numpy(np.asarray(embedder.transform.crop(image))) for image in pictures()])
    export_model(short, tmp_path / "model.onnx", "onnx", pixels)
    exported = ExportedEmbedder(tmp_path / "model.onnx")
    assert (exported.embedding_size, exported.fingerprint) == (6, short.fingerprint)
    np.testing.assert_allclose(exported.encode(pictures()), short.encode(pictures(), precision="fp32"), atol=1e-5)


def test_a_rotation_of_directions_that_are_nothing():
    vectors = np.zeros((20, 4), np.float32)
    vectors[:, 1] = 1
    rotation = fit_rotation(vectors)
    np.testing.assert_allclose(rotation.matrix.T @ rotation.matrix, np.eye(4), atol=1e-6)
    assert abs(rotation.matrix[1, 0]) == 1
    np.testing.assert_array_equal(Sizes(rotation=rotation).shorten(vectors, 1), np.ones((20, 1)))
    # A vector without any part in the kept directions has no direction.
    other = replace(rotation, matrix=np.ascontiguousarray(rotation.matrix[:, ::-1]))
    np.testing.assert_array_equal(Sizes(rotation=Rotation(other.matrix, 20)).shorten(vectors, 1), np.zeros((20, 1)))
