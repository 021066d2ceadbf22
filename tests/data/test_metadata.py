"""Further columns of manifests, with their types."""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unimetric.data.sources import read_source, read_source_metadata
from unimetric.data.sources.metadata import Metadata


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.png", "b.png", "c.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    return tmp_path


def cells(source: str, column: str) -> list[object]:
    """A column's cells, for the items in their order."""
    found = read_source_metadata(source).cells
    (dataset,) = read_source(source)
    return [found[item.dataset, str(item.path)][column] for item in dataset.items]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (["1", "2.5", "-3e2"], [1, 2.5, -300]),
        (["1", "", " 3 "], [1, None, 3]),
        (["001", "2", "3"], ["001", "2", "3"]),
        (["1", "2", "n/a"], [1, 2, None]),
        (["1.", ".5", "NULL"], [1, 0.5, None]),
        (["true", "NaN", "FALSE"], [True, None, False]),
        (["x", "nan", "NA"], ["x", "nan", "NA"]),
        (["nan", "", "nan"], ["nan", None, "nan"]),
        (['"1,5"', "2", "3"], ["1,5", "2", "3"]),
        (["true", "False", ""], [True, False, None]),
        (["", "", ""], [None, None, None]),
        (["9007199254740993", "1", "2"], ["9007199254740993", "1", "2"]),
        (["nan", "1", "2"], [None, 1, 2]),
        (["-inf", "1", "2"], [None, 1, 2]),
        ([" a", '"b, c"', "é"], [" a", "b, c", "é"]),
    ],
)
def test_csv_columns(written: list[str], expected: list[object], folder: Path) -> None:
    lines = [f"{name}.png,l,{cell}" for name, cell in zip("abc", written, strict=True)]
    (folder / "m.csv").write_text("\n".join(["path,label,x", *lines]), encoding="utf-8-sig")
    found = cells(str(folder / "m.csv"), "x")
    assert found == expected
    assert [type(value) for value in found] == [type(value) for value in expected]


@pytest.mark.parametrize(
    ("written", "doubtful"),
    [
        (["1", "2.5", "1,5"], "row 3 (line 4) holds '1,5'"),
        (["1,5", "2,5", "nan"], "row 1 (line 2) holds '1,5'"),
        (["1,234.50", "1.234,50", "-1,5"], "row 1 (line 2) holds '1,234.50'"),
        (["1", "12 kg", "2"], "row 2 (line 3) holds '12 kg'"),
        (["1", "", "?"], None),
        (["007", "1", "2"], None),
        (["9007199254740993", "1", "2"], None),
        (["2024-01-02", "2024-01-03", "1"], None),
        (["red", "nan", "1"], None),
    ],
)
def test_text_that_is_mostly_numbers_is_noted(written: list[str], doubtful: str | None, folder: Path) -> None:
    lines = [f'{name}.png,l,"{cell}"' for name, cell in zip("abc", written, strict=True)]
    (folder / "m.csv").write_text("\n".join(["path,label,x", *lines]))
    names = [f"{name}.png" for name in "abc"]
    pq.write_table(pa.table({"path": names, "label": ["l"] * 3, "x": written}), folder / "m.parquet")
    for file in (folder / "m.csv", folder / "m.parquet"):
        notes = read_source_metadata(str(file)).notes
        place = doubtful if file.suffix == ".csv" else doubtful and re.sub(r" \(line .\)", "", doubtful)
        assert len(notes) == (doubtful is not None)
        assert all(f"{file}: the column 'x' is text: {place}; write numbers with a point" in note for note in notes)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, 3]), [1, None, 3]),
        (pa.array([1.5, float("nan"), None]), [1.5, None, None]),
        (pa.array(["x", "y", "x"]).dictionary_encode(), ["x", "y", "x"]),
        (pa.array([True, None, False]), [True, None, False]),
        (pa.array([date(2020, 2, 29), None, None]), [date(2020, 2, 29), None, None]),
        (pa.array([Decimal("1.25"), None, Decimal("3.00")]), [1.25, None, 3.0]),
        (pa.array([0, None, None], pa.timestamp("ns", "UTC")), [datetime(1970, 1, 1), None, None]),
        (pa.array([None, None, None]), [None, None, None]),
    ],
)
def test_parquet_columns(values: pa.Array, expected: list[object], folder: Path) -> None:
    paths = ["a.png", "b.png", "c.png"]
    pq.write_table(pa.table({"path": paths, "label": ["l"] * 3, "x": values}), folder / "m.parquet")
    assert cells(str(folder / "m.parquet"), "x") == expected


def test_names_of_datasets(folder: Path) -> None:
    (folder / "m.csv").write_text(
        "path,label,dataset,split,x\na.png,l,d,train,1\na.png,l,e,test,2\na.png,l,d,train,3\n"
    )
    path = str(folder / "a.png")
    assert read_source_metadata(str(folder / "m.csv")).cells == {("d", path): {"x": 1}, ("e", path): {"x": 2}}
    assert set(read_source_metadata(f"n={folder / 'm.csv'}").cells) == {("n/d", path), ("n/e", path)}
    assert {dataset.name for dataset in read_source(f"n={folder / 'm.csv'}")} == {"n/d", "n/e"}


def test_what_has_none(folder: Path) -> None:
    (folder / "m.csv").write_text("path,label\na.png,l\n")
    assert read_source_metadata(str(folder / "m.csv")) == Metadata({})
    assert read_source_metadata(str(folder)) == Metadata({})


def test_columns_that_cannot_be_used_are_left_out(folder: Path) -> None:
    (folder / "m.csv").write_text("path,label,,x,x,y\na.png,l,0,1,2,3\n")
    found = read_source_metadata(str(folder / "m.csv"))
    assert list(found.cells.values()) == [{"y": 3}]
    assert found.notes == (f"the manifest {folder / 'm.csv'}: the column 'x' is skipped: its name is there twice",)
    columns = {"path": ["a.png"], "label": ["l"], "x": [[1, 2]], "y": [2**60], "__index_level_0__": [7]}
    pq.write_table(pa.table(columns), folder / "m.parquet")
    found = read_source_metadata(str(folder / "m.parquet"))
    assert list(found.cells.values()) == [{"y": str(2**60)}]
    (note,) = found.notes
    assert "the column 'x' is skipped: its values are of type list<" in note
    (folder / "m.csv").write_bytes(b"path,label,y\na.png,l,Zaunk\xf6nig\n")
    assert list(read_source_metadata(str(folder / "m.csv")).cells.values()) == [{"y": "Zaunk\ufffdnig"}]
