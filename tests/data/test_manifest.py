from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unimetric.data.catalog import Dataset
from unimetric.data.labels import clean_label
from unimetric.data.sources.manifest import parse_manifest, read_manifest
from unimetric.data.sources.metadata import read_metadata
from unimetric.errors import UserError

IMAGES = ("a.jpg", "b.jpg", "c.jpg", "sub/d.jpg")


@pytest.fixture(autouse=True)
def _images(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    for name in IMAGES:
        (tmp_path / name).touch()


def read_csv(tmp_path: Path, content: str | bytes, name: str | None = None) -> list[Dataset]:
    file = tmp_path / "birds.csv"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_manifest(file, name)


def read_parquet(tmp_path: Path, columns: dict[str, Any]) -> list[Dataset]:
    file = tmp_path / "birds.parquet"
    pq.write_table(pa.table(columns), file)
    return read_manifest(file)


def labels(datasets: Sequence[Dataset]) -> list[str]:
    return [item.label for dataset in datasets for item in dataset.items]


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
        (",\na.jpg,x\n", "no column 'path', only 'a.jpg', 'x'; add it, or name the columns in the first row"),
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


ROWS = [("a.jpg", "x"), ("b.jpg", "y")]


@pytest.mark.parametrize(
    "content",
    [
        "path,label,\na.jpg,x,\nb.jpg,y,\n",
        "path,label\na.jpg,x,\nb.jpg,y,,\n",
        ",path,label\n0,a.jpg,x\n1,b.jpg,y\n",
        "Unnamed: 0,path,label\n0,a.jpg,x\n1,b.jpg,y\n",
        "path,label,note\na.jpg,x\nb.jpg,y,seen\n",
        "path,label\na.jpg,x\n,\nb.jpg,y\n,,\n",
        "path,label,note,note\na.jpg,x,1,2\nb.jpg,y,,\n",
        "path,label,note\na.jpg,x," + "z" * 300_000 + "\nb.jpg,y,\n",
        b"path,label,caf\xe9\na.jpg,x,Zaunk\xf6nig\nb.jpg,y,\n",
        "Path , LABEL\na.jpg,x\nb.jpg,y\n",
        "path, label\na.jpg, x\nb.jpg, y\n",
        "path;label\na.jpg;x\nb.jpg;y\n",
        "path\tlabel\r\na.jpg\tx\r\nb.jpg\ty\r\n",
        "path|label\na.jpg|x\nb.jpg|y\n",
        "sep=;\r\npath;label\r\na.jpg;x\r\nb.jpg;y\r\n",
        '"path";"label"\n"a.jpg";"x"\n"b.jpg";"y"\n',
        'path, "label"\n"a.jpg", "x"\nb.jpg,  y\n',
        "path,label\ra.jpg,x\rb.jpg,y\r",
        "sep=;\rpath;label\ra.jpg;x\rb.jpg;y\r",
        '"sep=|"\npath|label\na.jpg|x\nb.jpg|y\n',
        " \n\u00a0,\npath,label\na.jpg,x\n  \nb.jpg,y\n\t\n",
        "\ufeffpath\tlabel\r\na.jpg\tx\r\nb.jpg\ty\r\n".encode("utf-16-le"),
        "\ufeffpath;label\r\na.jpg;x\r\nb.jpg;y\r\n".encode("utf-16-be"),
        "file_name,label\na.jpg,x\nb.jpg,y\n",
        "image_id,class\na.jpg,x\nb.jpg,y\n",
        "id,filename,category\n0,a.jpg,x\n1,b.jpg,y\n",
        "image,label,path\n0,x,a.jpg\n0,y,b.jpg\n",
        "path,label\n.\\a.jpg,x\n b.jpg,y\n",
    ],
)
def test_tables_as_people_have_them(content: str | bytes, tmp_path: Path) -> None:
    """Every reader takes them, and sees the same rows."""
    (dataset,) = read_csv(tmp_path, content)
    assert [(item.path.name, item.label) for item in dataset.items] == ROWS
    metadata = read_metadata(tmp_path / "birds.csv")
    assert {(dataset.name, str(item.path)) for item in dataset.items} >= metadata.cells.keys()
    parsed = parse_manifest("s3://bucket/birds.csv", (tmp_path / "birds.csv").read_bytes())
    assert (list(parsed.labels), set(parsed.datasets)) == (["x", "y"], {"birds"})


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_a_table_without_labels_may_have_any_separator(separator: str, tmp_path: Path) -> None:
    file = tmp_path / "birds.csv"
    file.write_text("\n".join(separator.join(row) for row in (("path", "price"), ("a.jpg", "1"), ("b.jpg", "2"))))
    (tmp_path / "a.jpg").touch()
    (tmp_path / "b.jpg").touch()
    (dataset,) = read_manifest(file, classes=False)
    assert [item.path.name for item in dataset.items] == ["a.jpg", "b.jpg"]
    assert {tuple(cells.items()) for cells in read_metadata(file).cells.values()} == {
        (("price", 1.0),),
        (("price", 2.0),),
    }


def test_only_other_names_of_columns_are_noted(tmp_path: Path) -> None:
    assert read_csv(tmp_path, "path,label,class\na.jpg,x,y\n")[0].notes == ()
    file = tmp_path / "birds.csv"
    assert read_csv(tmp_path, "image_id,class\na.jpg,x\n")[0].notes == (
        f"the manifest {file}: column 'image_id' is read as 'path'",
        f"the manifest {file}: column 'class' is read as 'label'",
    )
    for column in ("subset", "spilt"):
        (note,) = read_csv(tmp_path, f"path,label,{column}\na.jpg,x,test\n")[0].notes
        assert (
            note == f"the manifest {file}: column {column!r} is not read; if it divides train from test, call it split"
        )


@pytest.mark.parametrize(
    ("texts", "roles"),
    [
        (["train", "Training", "TRAIN ", "train_set", "training data", "trainval"], "train"),
        (["val", "VALID", "validation", "dev", "Development set"], "validation"),
        (["test", "Testing", "test-set", "testset", "eval", "Evaluation", "holdout", "Hold-out set"], "test"),
        (["query", "Queries", "probe"], "query"),
        (["gallery", "Gallery images", "database"], "gallery"),
    ],
)
def test_names_of_splits(texts: list[str], roles: str, tmp_path: Path) -> None:
    for text in texts:
        (dataset,) = read_csv(tmp_path, f"path,label,split\na.jpg,x,{text}\n")
        assert dataset.items[0].role == roles


def test_labels_of_one_class_written_in_several_ways(tmp_path: Path) -> None:
    content = "path,label\na.jpg,Zaunk\u00f6nig\nb.jpg,Zaunko\u0308nig\nc.jpg,\u00a0Zaunk\u00f6nig \nsub/d.jpg,wren\n"
    (dataset,) = read_csv(tmp_path, content)
    assert dataset.labels == ("Zaunk\u00f6nig", "wren")
    (note,) = dataset.notes
    assert note.startswith(r"dataset 'birds': 'Zaunko\u0308nig' and 'Zaunk\xf6nig' and '\xa0Zaunk\xf6nig ': one")
    assert note.endswith("one class each, since only outer white space or Unicode form differs")
    (same,) = read_parquet(
        tmp_path,
        {"path": list(IMAGES), "label": ["wren", "wren ", "\u00a0wren", "\ufeffwren"], "dataset": ["d", " d"] * 2},
    )
    assert (same.name, same.labels) == ("d", ("wren",))


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ("wren", "Wren", "'Wren' and 'wren': classes with nearly the same name; write them alike if they are one"),
        ("0", "0.0", "'0' and '0.0': classes with nearly the same name"),
        ("1", "01", "'01' and '1': classes with nearly the same name"),
        ("wren", "nan", "'nan': classes named as missing values are written; remove their rows if they are"),
        ("x", "None", "'None': classes named as missing values"),
        ("x", "na", "'na': classes named as missing values"),
        ("['x']", "x", r"\"\['x'\]\": lists in one cell are one class each; for several labels"),
        ("istanbul", "\u0130stanbul", "'istanbul' and .* classes with nearly the same name"),
        ("x", "x\u200f", "'x' and .* classes with nearly the same name"),
        ("so\u00adfa", "sofa", "'sofa' and .* classes with nearly the same name"),
        (
            "1.0",
            "2.0",
            r"2 labels are whole numbers written with a point \('1.0', ...\): they are not the class '1' of",
        ),
    ],
)
def test_doubtful_labels_are_noted_and_kept(first: str, second: str, message: str, tmp_path: Path) -> None:
    (from_csv,) = read_csv(tmp_path, f"path,label\na.jpg,{first}\nb.jpg,{second}\n")
    (from_parquet,) = read_parquet(tmp_path, {"path": ["a.jpg", "b.jpg"], "label": [first, second]})
    for dataset in (from_csv, from_parquet):
        assert dataset.labels == tuple(sorted((first, second)))
        assert re.search(f"^dataset 'birds': {message}", dataset.notes[0])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("xmin,ymin,xmax,ymax", "xmin and ymin and xmax and ymax are not read, whole pictures are; to cut objects out"),
        ("x_1,x_2,Y_1,y_2", "x_1 and y_1 and x_2 and y_2 are not read"),
        ("bbox", "bbox are not read"),
        (
            "split,is_query,is_gallery",
            "is_query and is_gallery are not read; write query or gallery in the",
        ),
        ("is_train", "column 'is_train' is not read"),
    ],
)
def test_columns_that_would_change_the_result_are_named(columns: str, message: str, tmp_path: Path) -> None:
    cells = "".join(",test" if name == "split" else ",1" for name in columns.split(","))
    (note,) = read_csv(tmp_path, f"path,label,{columns}\na.jpg,x{cells}\n")[0].notes
    assert message in note


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            "https://example.org/a.jpg",
            "missing images .*: https://example.org/a.jpg; download the images and write their",
        ),
        ("file:///data/a.jpg", "write paths without file://"),
        ("sub", "this is a folder; write a row for each"),
        ("B.JPG", "there is .*/b.jpg: write the path as the file is named"),
        ("SUB/D.Jpg", "there is .*/sub/d.jpg: write"),
        ("/sub/d.jpg", "there is .*/sub/d.jpg: write"),
        ("'sub/d.jpg'", "there is .*/sub/d.jpg: write"),
        ("sub%2fd.jpg", "there is .*/sub/d.jpg: write"),
        ("C:\\\\data\\\\a.jpg", "write paths with / instead of"),
        ("no\\\\where.jpg", "write paths with / instead of"),
        ("~/nowhere.jpg", "paths are relative to"),
        ("nowhere.jpg", "paths are relative to"),
    ],
)
def test_paths_that_lead_nowhere(path: str, message: str, tmp_path: Path) -> None:
    for rows in (f"{path},x\n", f"a.jpg,x\n{path},x\n"):
        with pytest.raises(UserError, match=message) as caught:
            read_csv(tmp_path, f"path,label\n{rows}")
        assert "\n" not in str(caught.value)


def test_paths_of_other_systems_and_of_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (dataset,) = read_csv(tmp_path, "path,label\nsub\\d.jpg,x\n~/a.jpg,x\n b.jpg ,x\n")
    assert [item.path for item in dataset.items] == [tmp_path / "sub/d.jpg", tmp_path / "a.jpg", tmp_path / "b.jpg"]
    (tmp_path / " b.jpg").touch()
    assert read_csv(tmp_path, "path,label\n b.jpg,x\n")[0].items[0].path == tmp_path / " b.jpg"


def test_images_named_without_ending_or_folder(tmp_path: Path) -> None:
    for name in ("train/01.jpg", "train/02.png", "test/03.jpg", "train/01.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for names in (["01", "02"], ["01.jpg", "02.png"], ["01", "02.png"]):
        (dataset,) = read_csv(tmp_path, f"image_id,class\n{names[0]},x\n{names[1]},y\n")
        assert [item.path for item in dataset.items] == [tmp_path / "train/01.jpg", tmp_path / "train/02.png"]
        assert dataset.notes[-1].endswith(
            f"names images without their endings or folder: they are read from {tmp_path / 'train'}"
        )
    (dataset,) = read_csv(tmp_path, "path,label\na,x\nsub/d,y\n")
    assert [item.path for item in dataset.items] == [tmp_path / "a.jpg", tmp_path / "sub/d.jpg"]


def test_names_of_columns_in_camel_case(tmp_path: Path) -> None:
    (dataset,) = read_csv(tmp_path, "ImageId,ClassName,ClassID\na,x,1\nb,y,2\n")
    assert [(item.path.name, item.label) for item in dataset.items] == [("a.jpg", "x"), ("b.jpg", "y")]


def test_images_without_ending_that_may_be_several(tmp_path: Path) -> None:
    for name in ("train/01.jpg", "test/01.jpg", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    for rows in ("01,x\n", "01,x\n02,x\n"):
        with pytest.raises(UserError, match=r"and 1 of them are in .*/test as in .*/train; write the folder into"):
            read_csv(tmp_path, f"id,label\n{rows}")
    (tmp_path / "train.csv").write_text("id,label\n01,x\n")
    (dataset,) = read_manifest(tmp_path / "train.csv")
    assert [item.path for item in dataset.items] == [tmp_path / "train/01.jpg"]
    with pytest.raises(UserError, match="missing images"):
        read_csv(tmp_path, "id,label\na,x\n")
    with pytest.raises(UserError, match=r"names 1 missing images \(2 in all\)"):
        read_csv(tmp_path, "id,label\nb.jpg,x\n01,x\n")
