"""Images with several labels, from a manifest to the numbers: measured, but not trained on."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toy_runs import make_images, one_thread, options_file, read_json, unimetric
from unimetric.data.sources import read_source
from unimetric.data.splits import split_datasets
from unimetric.errors import UserError
from unimetric.evaluation.evaluate_split import check_positives
from unimetric.formats.vectors import read_measured
from unimetric.report.analysis import analyse
from unimetric.report.collect import read_run

__all__ = ["one_thread"]

ROWS = [("c0/0", "red|round"), ("c0/1", " round |red"), ("c1/0", "red"), ("c1/1", "blue|soft|"), ("c2/0", "soft")]


def manifest(folder: Path, rows: list[tuple[str, ...]], *more: str, column: str = "labels") -> Path:
    if not (folder / "c0").exists():
        make_images(folder, classes=3, images=2)
    with (folder / "set.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", column, *more])
        writer.writerows([f"{path}.png", *cells] for path, *cells in rows)
    return folder / "set.csv"


def test_a_column_called_labels_names_several(tmp_path: Path) -> None:
    (dataset,) = read_source(str(manifest(tmp_path, ROWS)))
    assert [item.labels for item in dataset.items] == [("red", "round"), ("red", "round"), (), ("blue", "soft"), ()]
    assert [item.label for item in dataset.items] == ["red|round", "red|round", "red", "blue|soft", "soft"]
    assert "3 images have several labels" in " ".join(dataset.notes)
    # In a column of another name, the text is one label.
    (dataset,) = read_source(str(manifest(tmp_path, ROWS, column="label")))
    assert not any(item.labels for item in dataset.items)
    # Rows of one image add up.
    long = [("c0/0", "red"), ("c0/1", "red"), ("c0/0", "round"), ("c0/0", "red")]
    (dataset,) = read_source(str(manifest(tmp_path, long)))
    assert [(item.path.name, item.all_labels) for item in dataset.items] == [
        ("0.png", ("red", "round")),
        ("1.png", ("red",)),
    ]
    assert dataset.ignored == ()
    with pytest.raises(UserError, match="labels 'red' and 'round'"):
        read_source(str(manifest(tmp_path, long, column="label")))
    with pytest.raises(UserError, match="the label is empty"):
        read_source(str(manifest(tmp_path, [("c0/0", "red"), ("c0/1", " | ")])))


@pytest.mark.parametrize("column", ["labels", "label"])
def test_lists_in_parquet_are_several_labels(column: str, tmp_path: Path) -> None:
    make_images(tmp_path, classes=1, images=3)
    lists = pa.array([["round", "red", None, " red"], ["a|b"], ["red"]])
    pq.write_table(pa.table({"path": [f"c0/{n}.png" for n in range(3)], column: lists}), tmp_path / "set.parquet")
    (dataset,) = read_source(str(tmp_path / "set.parquet"))
    assert [item.all_labels for item in dataset.items] == [("red", "round"), ("a|b",), ("red",)]
    numbers = pa.array([[1], [1, 2], [2]], pa.large_list(pa.int64()))
    pq.write_table(pa.table({"path": [f"c0/{n}.png" for n in range(3)], column: numbers}), tmp_path / "set.parquet")
    (dataset,) = read_source(str(tmp_path / "set.parquet"))
    assert [item.all_labels for item in dataset.items] == [("1",), ("1", "2"), ("2",)]


def test_other_separators_are_noted(tmp_path: Path) -> None:
    (dataset,) = read_source(str(manifest(tmp_path, [("c0/0", "red, round"), ("c0/1", "red, round")])))
    assert dataset.labels == ("red, round",)
    assert "every image has one label, since | separates several, not , or ;" in dataset.notes[-1]
    with pytest.raises(UserError, match=r"row 1 \(line 2\): the labels are .*; write several labels as a\|b"):
        read_source(str(manifest(tmp_path, [("c0/0", '["red", "round"]')])))


def test_they_are_measured_by_shared_labels(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = manifest(tmp_path, ROWS)
    out = tmp_path / "measured"
    arguments = ("--out", out, "--data.split", "test-only")
    assert unimetric("evaluate", run, file, *arguments) == 0
    metrics = read_json(out / "metrics.json")
    assert metrics["counts"]["queries_without_positive"] == 0
    measured = read_measured(out / "vectors.parquet")
    assert [item.labels for item in measured.query] == [("red", "round"), ("red", "round"), (), ("blue", "soft"), ()]
    # The page measures the vectors again, and marks neighbours that share a label as right.
    analysis = analyse(read_run(out))
    assert analysis.report.to_dict()["unified"] == metrics["unified"]
    first, third, last = measured.query[0], measured.query[2], measured.query[4]
    assert third.is_right_for(first)
    assert not last.is_right_for(first)
    assert unimetric("evaluate", run, file, *arguments, "--strict") == 0
    lonely = manifest(tmp_path, [*ROWS, ("c2/1", "alone|single")])
    capsys.readouterr()
    assert unimetric("evaluate", run, lonely, *arguments, "--strict") == 2
    assert "c2/1.png: the gallery holds no other image" in capsys.readouterr().err


def test_they_are_written_with_vectors(tmp_path: Path, run: Path) -> None:
    file = manifest(tmp_path, [*ROWS, ("c2/1", "soft")])
    assert unimetric("embed", run, file, "--out", tmp_path / "vectors.parquet") == 0
    table = pq.read_table(tmp_path / "vectors.parquet")
    assert table["label"].to_pylist() == ["red|round", "red|round", "red", "blue|soft", "soft", "soft"]
    assert table["labels"].to_pylist() == [
        ["red", "round"],
        ["red", "round"],
        ["red"],
        ["blue", "soft"],
        ["soft"],
        ["soft"],
    ]
    one_label = manifest(tmp_path, [(path, "a") for path, _ in ROWS])
    assert unimetric("embed", run, one_label, "--out", tmp_path / "vectors.parquet") == 0
    assert pq.read_schema(tmp_path / "vectors.parquet").names == ["path", "label", "dataset", "vector"]


def test_they_are_not_trained_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = manifest(tmp_path, ROWS)
    assert unimetric("train", file, "--out", tmp_path / "run", "--config", options_file(tmp_path / "options.yaml")) == 2
    said = capsys.readouterr().err
    assert "its images have several labels, so that they cannot be divided by classes" in said
    with_split = [(*row, "train" if number < 3 else "test") for number, row in enumerate([*ROWS, ("c2/1", "soft")])]
    manifest(tmp_path, with_split, "split")
    assert unimetric("train", file, "--out", tmp_path / "run", "--config", options_file(tmp_path / "options.yaml")) == 2
    said = capsys.readouterr().err
    assert "has 2 labels, and the losses need one class for each image" in said
    assert len([line for line in said.splitlines() if "error" in line]) == 1
    assert not (tmp_path / "run").exists()
    split = split_datasets(read_source(str(file)), strategy="test-only")
    check_positives(split.query, split.gallery, strict=True)
