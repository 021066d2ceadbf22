from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from manifest_tables import IMAGES, four_images, labels, read_csv, read_parquet

from unimetric.data.labels import clean_label
from unimetric.data.sources.manifest import read_manifest
from unimetric.errors import UserError

__all__ = ["four_images"]


def test_one_dataset(tmp_path: Path) -> None:
    (dataset,) = read_csv(tmp_path, "label,path,who\nwren,sub/d.jpg,me\n007,a.jpg,\n")
    assert dataset.name == "birds"
    assert [(item.path, item.label, item.dataset, item.role) for item in dataset.items] == [
        (tmp_path / "sub/d.jpg", "wren", "birds", None),
        (tmp_path / "a.jpg", "007", "birds", None),
    ]
    assert read_csv(tmp_path, "path,label\na.jpg,x\n", "mine")[0].name == "mine"


def test_absolute_paths(tmp_path: Path) -> None:
    (dataset,) = read_csv(tmp_path, f"path,label\n{tmp_path / 'a.jpg'},x\n")
    assert dataset.items[0].path == tmp_path / "a.jpg"


def test_several_datasets_and_splits(tmp_path: Path) -> None:
    content = (
        "path,label,dataset,split\n"
        "a.jpg,1,z,Train\nb.jpg,2,é,\nc.jpg,1,z,VALID\nsub/d.jpg,1,z,gallery\nsub/d.jpg,1,z,query\na.jpg,1,é,\n"
    )
    datasets = read_csv(tmp_path, content)
    assert [dataset.name for dataset in datasets] == ["z", "é"]
    assert [item.role for item in datasets[0].items] == ["train", "validation", "gallery", "query"]
    assert [item.role for item in datasets[1].items] == [None, None]
    assert [dataset.name for dataset in read_csv(tmp_path, content, "mine")] == ["mine/z", "mine/é"]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_byte_order_mark_line_ends_and_blank_lines(newline: str, tmp_path: Path) -> None:
    text = newline.join(["path,label", "", 'a.jpg,"Zaunkönig, klein"', "", "b.jpg,x", "", ""])
    assert labels(read_csv(tmp_path, b"\xef\xbb\xbf" + text.encode())) == ["Zaunkönig, klein", "x"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])).filter(lambda t: t.strip()), min_size=1, max_size=3))
def test_labels_come_back_in_their_clean_form(tmp_path: Path, texts: list[str]) -> None:
    texts = [text.replace("\0", "") for text in texts]
    texts = [text if clean_label(text) else "x" for text in texts]
    file = tmp_path / "t.csv"
    with file.open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle, quoting=csv.QUOTE_ALL)
        writer.writerows([("path", "label"), *zip(IMAGES, texts, strict=False)])
    assert labels(read_manifest(file)) == [clean_label(text) for text in texts]
    pq.write_table(pa.table({"path": IMAGES[: len(texts)], "label": texts}), tmp_path / "t.pq")
    assert labels(read_manifest(tmp_path / "t.pq")) == [clean_label(text) for text in texts]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array(["007", "7"]), ["007", "7"]),
        (pa.array([7, 12], pa.int64()), ["7", "12"]),
        (pa.array([True, False]), ["True", "False"]),
        (pa.array([7, 255], pa.uint8()), ["7", "255"]),
        (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
        (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
    ],
)
def test_parquet_labels(values: Any, expected: list[str], tmp_path: Path) -> None:
    columns = {"path": ["a.jpg", "b.jpg"], "label": values, "split": [None, "test"], "size": [1.5, 2.5]}
    datasets = read_parquet(tmp_path, columns)
    assert labels(datasets) == expected
    assert [item.role for item in datasets[0].items] == [None, "test"]


def test_parquet_datasets_may_be_numbers(tmp_path: Path) -> None:
    columns = {"path": ["a.jpg", "b.jpg"], "label": ["x", "y"], "dataset": [2, 1]}
    assert [dataset.name for dataset in read_parquet(tmp_path, columns)] == ["1", "2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (
            {"path": ["a.jpg"], "label": [7.0]},
            "column 'label' holds values of type double; write them as text",
        ),
        ({"path": ["a.jpg"], "label": [[0.5]]}, "column 'label' holds values of type double"),
        ({"path": ["a.jpg", "b.jpg"], "labels": [["x"], []]}, "row 2: the label is empty"),
        ({"path": ["a.jpg"], "labels": ["['x', 'y']"]}, r"row 1: the labels are .*; write several labels as a\|b"),
        ({"path": [1.0], "label": ["x"]}, "column 'path' holds values of type double"),
        ({"path": [1], "label": ["x"]}, r"names 1 missing images \(1 in all\)"),
        ({"path": ["a.jpg"], "label": [b"x"]}, "column 'label' holds values of type binary"),
        ({"path": ["a.jpg", "b.jpg"], "label": ["x", None]}, "row 2: the label is empty"),
        ({"path": [None], "label": ["x"]}, "row 1: the path is empty"),
        ({"path": ["a.jpg"], "label": ["x"], "dataset": [" "]}, "row 1: the dataset is empty"),
        ({"path": ["a.jpg"], "kind": ["x"]}, "no column 'label', only 'path', 'kind'; add it"),
        (
            {"path": pa.array([], pa.string()), "label": pa.array([], pa.string())},
            "is empty; give it one row",
        ),
    ],
)
def test_bad_parquet(columns: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        read_parquet(tmp_path, columns)


@pytest.mark.parametrize("kept", [0, 4, 50, -1, -20])
def test_damaged_parquet(kept: int, tmp_path: Path) -> None:
    read_parquet(tmp_path, {"path": ["a.jpg"], "label": ["x"]})
    content = (tmp_path / "birds.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[:kept])
    with pytest.raises(UserError, match=r"cut.parquet is not a readable Parquet file") as caught:
        read_manifest(tmp_path / "cut.parquet")
    assert "\n" not in str(caught.value)


def test_parquet_pages_of_garbage(tmp_path: Path) -> None:
    read_parquet(tmp_path, {"path": ["a.jpg"] * 50, "label": ["x"] * 50})
    content = bytearray((tmp_path / "birds.parquet").read_bytes())
    content[4:60] = b"\xff" * 56
    (tmp_path / "birds.parquet").write_bytes(content)
    with pytest.raises(UserError, match=r"birds.parquet is not a readable Parquet file"):
        read_manifest(tmp_path / "birds.parquet")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "birds.csv is empty; give it one row per image"),
        ("path,label\n", "birds.csv is empty"),
        ("path,labell\na.jpg,x\n", "no column 'label', only 'path', 'labell'; rename 'labell'"),
        ("picture,klass\na.jpg,x\n", "no column 'path', only 'picture', 'klass'; add it"),
        (
            ",\na.jpg,x\n",
            "no column 'path', only 'a.jpg', 'x'; add it, rename another, or name the columns in the first row",
        ),
        ("image,file_name,label\na.jpg,a.jpg,x\n", "no column 'path', but 'image' and 'file_name'; rename one to path"),
        ("path,class,category\na.jpg,x,y\n", "no column 'label', but 'class' and 'category'; rename one to label"),
        ("path,label,path\na.jpg,x,b.jpg\n", "two columns 'path'; remove one"),
        ("path,label\na.jpg,x\nb.jpg, \n", r"row 2 \(line 3\): the label is empty"),
        ("path,label\n,x\n", r"row 1 \(line 2\): the path is empty"),
        ("path,label\na.jpg,x\nb.jpg,x,y\n", r"row 2 \(line 3\): 3 values for 2 columns; put values"),
        ("path,label\na.jpg\n", r"row 1 \(line 2\): 1 values for 2 columns"),
        ("path,x,label\na.jpg,x\n", r"row 1 \(line 2\): 2 values for 3 columns"),
        ('path,label\na.jpg,"two\nlines"\n\nb.jpg\n', r"row 2 \(line 5\)"),
        ('path,label\na.jpg,x\nb.jpg,"open\n', "damaged at line 3: unexpected end of data"),
        ('path,label\na.jpg,"x"y\n', "damaged at line 2"),
        (
            "path,label,split\na.jpg,x,trian\n",
            r"row 1 \(line 2\): unknown split 'trian'; did you mean 'train'",
        ),
        (
            b"path,label\na.jpg,x\nb.jpg,Zaunk\xf6nig\n",
            r"birds.csv is not UTF-8 \(line 3\); save it as UTF-8",
        ),
        ("path,label\na.jpg,x".encode("utf-16-le"), "is UTF-16, UTF-32 or no text; save it as UTF-8"),
        ("path,label\na.jpg,x".encode("utf-32"), "is UTF-16, UTF-32 or no text; save it as UTF-8"),
        (b"PAR1" + bytes(range(256)), r"is a Parquet file; call it \.parquet"),
        (b"PK\3\4" + bytes(range(256)), "is a spreadsheet or an archive, not CSV; save it as CSV"),
        ("path,label\na.jpg,x".encode("utf-16")[:-1], "is damaged UTF-16; save it as UTF-8"),
        (
            "path,label\nzzz.jpg,x\na.jpg,y\nsub,y\n",
            r"names 2 missing images \(3 in all\): .*zzz.jpg, .*sub; paths",
        ),
        ("path,label\na.jpg,x\nsub/../a.jpg,y\n", r"a.jpg.* has the labels 'x' and 'y'; keep one"),
        ("path,label,split\na.jpg,x,train\na.jpg,x,test\n", "a.jpg is in the splits train and test"),
    ],
)
def test_bad_csv(content: str | bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read_csv(tmp_path, content)
    assert "\n" not in str(caught.value)
    assert "birds" in str(caught.value)


def test_only_five_missing_files_are_listed(tmp_path: Path) -> None:
    rows = "".join(f"no{index}.jpg,x\n" for index in range(70))
    with pytest.raises(UserError, match=r"names 70 missing images \(71 in all\): .*no4.jpg, \.\.\.; ") as caught:
        read_csv(tmp_path, "path,label\na.jpg,x\n" + rows)
    assert "no5.jpg" not in str(caught.value)


def test_a_repeated_row_is_taken_once(tmp_path: Path) -> None:
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (dataset,) = read_csv(tmp_path, "path,label\na.jpg,x\nb.jpg,x\nlink.jpg,x\na.jpg,x\n")
    assert [item.path.name for item in dataset.items] == ["a.jpg", "b.jpg"]
    assert [path.name for path in dataset.ignored] == ["link.jpg", "a.jpg"]


def test_unreadable_manifests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no file .*absent.csv; check the path"):
        read_manifest(tmp_path / "absent.csv")
    with pytest.raises(UserError, match=r"sub: it is a folder"):
        read_manifest(tmp_path / "sub")
    with pytest.raises(UserError, match=r"a.jpg: its name must end in .csv or .tsv or .parquet or .pq"):
        read_manifest(tmp_path / "a.jpg")
    secret = tmp_path / "secret.csv"
    secret.write_text("path,label\na.jpg,x\n")
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("this user, root, may read everything")
    with pytest.raises(UserError, match=r"secret.csv: Permission denied"):
        read_manifest(secret)
