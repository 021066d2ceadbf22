"""Runs with nested sizes: what they record, and the vectors of each size."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from toy_runs import assert_same_run, make_images, one_thread, options_file, read_json, tensors, unimetric
from unimetric.models.embedder import Embedder

__all__ = ["one_thread"]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


def run(images: Path, out: Path, *arguments: object, **model: object) -> int:
    options = options_file(out.parent / f"{out.name}.yaml", model=model)
    return unimetric("train", images, "--config", options, "--out", out, *arguments)


@pytest.mark.parametrize("start", ["random", "discriminant"])
def test_a_run_records_its_sizes(images: Path, tmp_path: Path, start: str) -> None:
    started = ["--training.start", start]
    assert run(images, tmp_path / "one", *started, nested_sizes=[8, 4]) == 0
    config = read_json(tmp_path / "one/model/config.json")
    assert config["nested_sizes"] == [4, 8]
    assert config["rotation"]["images"] == 20
    state = tensors(tmp_path / "one/checkpoint.safetensors")
    assert {name for name in state if name.startswith("loss.")} == {
        "loss.whole.proxies",
        "loss.whole.t",
        "loss.parts.0.t",
        "loss.parts.1.t",
    }


def test_vectors_of_each_size_are_rotated(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "run", nested_sizes=[4, 8])
    embedder = Embedder.from_pretrained(tmp_path / "run")
    pictures = [Image.open(path) for path in sorted(images.glob("*/*.png"))[:3]]
    whole = embedder.encode(pictures)
    for size in (1, 4, 7, 8, 16):
        short = embedder.encode(pictures, size=size)
        turned = whole if size == 16 else whole @ embedder.sizes.rotation.matrix[:, :size]
        expected = turned / np.linalg.norm(turned, axis=1, keepdims=True)
        np.testing.assert_allclose(short, expected, atol=1e-7)
    np.testing.assert_array_equal(embedder.encode(pictures, size=16), whole)


def test_without_nested_sizes_nothing_changes(images: Path, tmp_path: Path) -> None:
    run(images, tmp_path / "plain")
    run(images, tmp_path / "empty", nested_sizes=[])
    assert_same_run(tmp_path / "plain", tmp_path / "empty")
    assert "nested_sizes" not in read_json(tmp_path / "plain/model/config.json")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"nested_sizes": [0]}, "--model.nested_sizes is [0]: use sizes from 1 to 16"),
        ({"nested_sizes": [17]}, "--model.nested_sizes is [17]: use sizes from 1 to 16"),
    ],
)
def test_sizes_out_of_range(
    images: Path, tmp_path: Path, model: dict[str, object], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "run", **model) == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--loss.name", "hyperbolic"], "works on 'poincare'"),
        (["--training.shard_proxies", "true"], "leave one of the two out"),
    ],
)
def test_options_that_exclude_nested_sizes(
    images: Path, tmp_path: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(images, tmp_path / "run", *arguments, nested_sizes=[4]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert "--model.nested_sizes is [4]" in error
