"""`unimetric embed`: the file holds what `Embedder.encode` returns."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from toy_runs import unimetric
from unimetric import Embedder
from unimetric.data.sources.folder import read_images
from unimetric.errors import UserError
from unimetric.search import SearchIndex

FP32 = ["--device.precision", "fp32"]


def encode(run: Path, paths: list[Path]) -> np.ndarray:
    return Embedder.from_pretrained(run).encode(paths, precision="fp32")


@pytest.mark.parametrize("suffix", [".parquet", ".npz"])
def test_the_file_holds_what_encode_returns(suffix: str, run: Path, sources: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / f"vectors{suffix}"
    assert unimetric("embed", run, sources[0], f"two={sources[1]}", "--out", out, *FP32) == 0
    paths = [path for source in sources for path in sorted(source.glob("*/*.png"))]
    if suffix == ".npz":
        with np.load(out) as file:
            columns = {name: file[name] for name in file.files}
        vectors = columns.pop("vectors")
        columns = {name: values.tolist() for name, values in columns.items()}
    else:
        table = pq.read_table(out).to_pydict()
        vectors = np.array(table.pop("vector"), np.float32)
        columns = {f"{name}s": values for name, values in table.items()}
    assert columns["paths"] == [str(path) for path in paths]
    assert columns["labels"] == [path.parent.name for path in paths]
    assert columns["datasets"] == ["a"] * 40 + ["two"] * 30
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, encode(run, paths))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_form_is_said(
    precision: str, run: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--device.precision", precision, "--device.accelerator", "cpu"]
    assert unimetric("embed", run, sources[1] / "c0", "--out", tmp_path / "v.npz", *options) == 0
    assert f"(fused, {precision} products, cpu)" in "".join(capsys.readouterr())


def test_parquet_vectors_have_a_fixed_size(run: Path, sources: list[Path], tmp_path: Path) -> None:
    assert unimetric("embed", run, sources[0], "--out", tmp_path / "v.parquet", *FP32) == 0
    assert str(pq.read_schema(tmp_path / "v.parquet").field("vector").type) == "fixed_size_list<element: float>[16]"


def test_a_folder_of_images_without_class_folders(
    run: Path, sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flat = tmp_path / "holiday"
    flat.mkdir()
    for number, path in enumerate(sorted(sources[0].glob("*/*.png"))[:7]):
        shutil.copy(path, flat / f"{number}.png")
    (flat / "3.png").write_bytes(b"")
    (flat / "notes.txt").write_text("no image")
    assert unimetric("embed", run, flat, "--out", tmp_path / "v.npz", *FP32) == 0
    said = capsys.readouterr().err
    assert f"skipped {flat / '3.png'}: empty file" in said
    assert "6 vectors are in" in said
    assert "1 files were skipped" in said
    with np.load(tmp_path / "v.npz") as file:
        kept = [flat / f"{number}.png" for number in (0, 1, 2, 4, 5, 6)]
        assert file["paths"].tolist() == [str(path) for path in kept]
        assert set(file["labels"]) == {""}
        assert set(file["datasets"]) == {"holiday"}
        np.testing.assert_array_equal(file["vectors"], encode(run, kept))


def test_read_images_takes_every_image(sources: list[Path], tmp_path: Path) -> None:
    mixed = Path(shutil.copytree(sources[0], tmp_path / "mixed"))
    shutil.copy(mixed / "c0/0.png", mixed / "loose.png")
    (mixed / "also.png").symlink_to(mixed / "c1/1.png")  # the same image twice
    (dataset,) = read_images(mixed, "name")
    assert {item.path for item in dataset.items} == {*mixed.glob("c*/*.png"), mixed / "loose.png"}
    assert {item.label for item in dataset.items if item.path.parent == mixed} == {""}
    assert all(item.label == item.path.parent.name for item in dataset.items if item.path.parent != mixed)
    assert len(dataset.items) == 41


def test_read_images_beside_several_datasets(sources: list[Path], tmp_path: Path) -> None:
    for source in sources:
        shutil.copytree(source, tmp_path / "all" / source.name)
    shutil.copy(sources[0] / "c0/0.png", tmp_path / "all/loose.png")
    datasets = {dataset.name: dataset for dataset in read_images(tmp_path / "all")}
    assert {name: len(dataset.items) for name, dataset in datasets.items()} == {"a": 40, "b": 30, "all": 1}
    assert all("loose" not in str(path) for dataset in datasets.values() for path in dataset.ignored)


def test_read_images_refuses_a_folder_without_images(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no images in"):
        read_images(tmp_path)
    with pytest.raises(UserError, match="there is no folder"):
        read_images(tmp_path / "none")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["RUN", "A", "--out", "OUT/v.csv"], "name a .parquet or an .npz file"),
        (["RUN", "A", "--out", "OUT"], "name a .parquet or an .npz file"),
        (["A", "A", "--out", "OUT/v.npz"], "config.json does not exist"),
        (["RUN", "A/none", "--out", "OUT/v.npz"], "no file or folder"),
        (["RUN", "A", "--out", "OUT", "--shard", "1/1", "--cache", "A"], "--cache has no effect on shards"),
        (["RUN", "A", "--out", "OUT/v.npz", "--shard_rows", "8"], "--shard_rows has no effect on a single file"),
        (["RUN", "A", "--out", "OUT/v.npz", "--batch_size", "0"], "batch_size is 0"),
        (["RUN", "A", "A", "--out", "OUT/v.npz"], "give one of them another name"),
        (["RUN", "A", "--out", "A/c0/0.png/v.npz"], "choose another path"),
        (["RUN", "A", "--strict", "--out", "OUT/v.npz"], "bad.png"),
        (["RUN", "BAD", "--out", "OUT/v.npz"], "none of 1 images can be read"),
    ],
)
def test_refusals_write_nothing(
    arguments: list[str],
    words: str,
    run: Path,
    sources: list[Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = Path(shutil.copytree(sources[0], tmp_path / "a"))
    bad = tmp_path / "bad"
    bad.mkdir()
    for folder in (data / "c0", bad):
        (folder / "bad.png").write_bytes(b"\x89PNG\r\n")
    out = tmp_path / "out"
    for name, place in {"RUN": run, "OUT": out, "BAD": bad, "A": data}.items():
        arguments = [argument.replace(name, str(place)) for argument in arguments]
    assert unimetric("embed", *arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("unimetric: error: ")
    assert words in error
    assert not out.exists()


def test_a_backbone_from_a_file(run_on_a_file: tuple[Path, Path], sources: list[Path], tmp_path: Path) -> None:
    run, file = run_on_a_file
    paths = sorted(sources[0].glob("*/*.png"))
    expected = Embedder.from_pretrained(run, weights=file).encode(paths, precision="fp32")
    for number, command in enumerate([[run], [run / "model", "--weights", file]]):
        out = tmp_path / f"{number}.npz"
        assert unimetric("embed", command[0], sources[0], *command[1:], "--out", out, *FP32) == 0
        with np.load(out) as content:
            np.testing.assert_array_equal(content["vectors"], expected)


def test_objects_in_boxes_are_embedded_and_indexed_apart(run: Path, tmp_path: Path) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(tmp_path / "shelf.png")
    manifest = tmp_path / "m.csv"
    rows = "".join(f"shelf.png,{left},{left},0,15,20\n" for left in (0, 10, 20))
    manifest.write_text("path,label,x,y,width,height\n" + rows)
    assert unimetric("embed", run, manifest, "--out", tmp_path / "v.npz", "--device.accelerator", "cpu") == 0
    with np.load(tmp_path / "v.npz") as saved:
        assert len(np.unique(saved["vectors"], axis=0)) == 3
    assert unimetric("index", run, manifest, "--db", tmp_path / "v.db", "--device.accelerator", "cpu") == 0
    with SearchIndex.open(tmp_path / "v.db") as index:
        assert index.count() == 3
