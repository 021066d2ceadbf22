"""``--size`` of every command: the same short vectors everywhere, recorded, and refused where they cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from toy_runs import make_images, one_thread, options_file, read_json, unimetric
from unimetric.formats.vectors import read_measured
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.stores import open_store

__all__ = ["one_thread"]

CPU = ("--device.accelerator", "cpu", "--device.precision", "fp32")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without nested sizes, which gets a rotation at its end; only to be read."""
    root = tmp_path_factory.mktemp("run")
    options = options_file(root / "options.yaml", training={"epochs": 1})
    assert unimetric("train", images, "--config", options, "--out", root / "run") == 0
    return root / "run"


def expected(run: Path, images: Path, size: int) -> dict[str, np.ndarray]:
    paths = sorted(images.glob("*/*.png"))
    vectors = Embedder.from_pretrained(run).encode(paths, precision="fp32", size=size)
    return dict(zip(map(str, paths), vectors, strict=True))


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for path, vector in found.items():
        np.testing.assert_array_equal(vector, wanted[path])


def test_training_ends_with_a_rotation_of_the_train_images(run: Path) -> None:
    config = read_json(run / "model/config.json")
    assert config["rotation"]["images"] == 20
    assert (run / "model/rotation.safetensors").is_file()


def test_a_rotation_beside_damaged_numbers_is_refused_in_one_line(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/metrics.json").write_text("{")
    assert unimetric("rotate", tmp_path / "run", images, "--out", tmp_path / "out", *CPU) == 2
    assert "metrics.json is not JSON" in capsys.readouterr().err


@pytest.mark.parametrize("shards", [False, True])
def test_embed(run: Path, images: Path, tmp_path: Path, shards: bool) -> None:
    out = tmp_path / ("shards" if shards else "vectors.parquet")
    more = ["--shard", "1/1"] if shards else []
    assert unimetric("embed", run, images, "--out", out, "--size", 5, *more, *CPU) == 0
    table = pq.read_table(out / "part-000000.parquet" if shards else out)
    paths = [str((Path.cwd() / path).resolve()) for path in table["path"].to_pylist()]
    found = dict(zip(paths, np.array(table["vector"].to_pylist(), np.float32), strict=True))
    assert_same(found, expected(run, images, 5))


def test_evaluate(run: Path, images: Path, tmp_path: Path) -> None:
    out = tmp_path / "measured"
    assert unimetric("evaluate", run, images, "--out", out, "--size", 5, *CPU) == 0
    model = read_json(out / "metrics.json")["model"]
    assert (model["embedding_size"], model["shortened_from"]) == (5, 16)
    measured = read_measured(out / "vectors.parquet")
    wanted = expected(run, images, 5)
    assert_same(
        {str(item.path): vector for item, vector in zip(measured.query, measured.query_vectors, strict=True)},
        {str(item.path): wanted[str(item.path)] for item in measured.query},
    )
    first = next(iter(wanted))
    assert unimetric("inspect", out, first, "--model", run, "--out", tmp_path / "page.png", *CPU) == 0


def test_index_search_and_again(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    db, first = tmp_path / "db", next(images.glob("*/*.png"))
    assert unimetric("index", run, images, "--db", db, "--size", 5, *CPU) == 0
    store = open_store(db)
    rows = store.rows(["path", "vector"])
    found = dict(zip(rows["path"].to_pylist(), np.array(rows["vector"].to_pylist(), np.float32), strict=True))
    assert_same(found, expected(run, images, 5))
    assert store.about["model"]["embedding_size"] == 5
    # The size is that of the database from now on.
    assert unimetric("index", run, images, "--db", db, *CPU) == 0
    capsys.readouterr()
    assert unimetric("search", db, first, "--json", "-k", 1, *CPU) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["matches"][0]["path"] == str(first)
    assert answer["matches"][0]["score"] == pytest.approx(1, abs=1e-6)
    assert unimetric("index", run, images, "--db", db, "--size", 6, *CPU) == 2
    assert "holds vectors of 5 numbers, not 6: leave --size out" in capsys.readouterr().err
    with SearchIndex.open(db) as index:
        assert (index.embedding_size, index.shortened_to) == (5, 5)


def test_shards_go_into_an_index_of_their_size(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unimetric("embed", run, images, "--out", tmp_path / "s", "--size", 5, "--shard", "1/1", *CPU) == 0
    assert unimetric("index", run, "--vectors", tmp_path / "s", "--db", tmp_path / "db", "--size", 5) == 0
    assert unimetric("index", run, images, "--db", tmp_path / "db", *CPU) == 0
    assert "0 rows written, 40 unchanged" in capsys.readouterr().err
    assert unimetric("index", run, "--vectors", tmp_path / "s", "--db", tmp_path / "whole") == 2
    assert "vectors of another model" in capsys.readouterr().err
    calibrate = ("--calibrate", images, "--batch_size", 7)
    assert unimetric("index", run, "--vectors", tmp_path / "s", "--db", tmp_path / "db", "--size", 5, *calibrate) == 0
    assert "Calibrated on 40 images" in capsys.readouterr().err


def test_export(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnxscript", reason="the extra `export` is not installed")
    assert unimetric("export", run, "--size", 5) == 0
    file = run / "model.5.onnx"
    try:
        assert unimetric("index", run, images, "--db", tmp_path / "db", "--size", 5, *CPU) == 0
        first = next(images.glob("*/*.png"))
        capsys.readouterr()
        assert unimetric("search", tmp_path / "db", first, "--json", "-k", 1) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)[0]["matches"][0]["path"] == str(first)
        assert f"Embedded by {file}" in printed.err
        assert unimetric("export", run, run / "model", "--size", 5, "--out", tmp_path / "both.onnx") == 2
        assert "for a single model" in capsys.readouterr().err
    finally:
        file.unlink()


def test_rotate(run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rotated"
    assert unimetric("rotate", run, images, "--out", out, *CPU) == 0
    assert read_json(out / "config.json")["rotation"]["images"] == 40
    paths = sorted(images.glob("*/*.png"))[:3]
    whole = [Embedder.from_pretrained(folder).encode(paths) for folder in (run, out)]
    np.testing.assert_array_equal(*whole)
    # In place, with the run's own train images: the rotation that training fitted.
    before = read_json(run / "model/config.json")
    assert unimetric("rotate", run, *CPU) == 0
    assert read_json(run / "model/config.json") == before
    assert unimetric("rotate", out, *CPU) == 2
    assert "no images are named" in capsys.readouterr().err
    assert unimetric("rotate", "vit_tiny_patch16_224", images) == 2
    assert "--out is missing" in capsys.readouterr().err


def test_an_index_of_another_rotation(
    run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert unimetric("rotate", run, next(images.glob("*")), "--out", tmp_path / "other", *CPU) == 0
    db = tmp_path / "db"
    assert unimetric("index", run, images, "--db", db, "--size", 5, *CPU) == 0
    capsys.readouterr()
    assert unimetric("index", tmp_path / "other", images, "--db", db, *CPU) == 2
    assert "another rotation" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["embed", "evaluate", "index", "export"])
def test_a_size_that_cannot_be(
    command: str, run: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--db", tmp_path / "db"] if command == "index" else ["--out", tmp_path / "out.parquet"]
    out = ["--out", tmp_path / "out.pt2", "--format", "torch"] if command == "export" else out
    sources = [] if command == "export" else [images]
    assert unimetric(command, run, *sources, *out, "--size", 17) == 2
    assert "--size is 17: the vectors of" in capsys.readouterr().err
    assert unimetric(command, run, *sources, *out, "--size", 0) == 2
