"""Manifests as people have them: other separators, other words, doubtful labels, and paths that lead nowhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manifest_tables import IMAGES, four_images, read_csv, read_parquet

from unimetric.data.sources.manifest import parse_manifest, read_manifest
from unimetric.data.sources.metadata import read_metadata
from unimetric.errors import UserError

__all__ = ["four_images"]

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
        ("x,y,w,h", "x and y and w and h are not read"),
        ("x_center,y_center,width,height", "x_center and y_center and width and height are not read"),
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


def test_paths_in_another_form_of_unicode(tmp_path: Path) -> None:
    for name in ("n\u00e9/\u00fc.jpg", "nfd/u\u0308.jpg"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    (dataset,) = read_csv(tmp_path, "path,label\nne\u0301\\u\u0308.jpg,x\nnfd/\u00fc.jpg,y\n")
    assert [item.path for item in dataset.items] == [tmp_path / "n\u00e9/\u00fc.jpg", tmp_path / "nfd/u\u0308.jpg"]


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


@pytest.mark.parametrize(
    "folder", ["train/{0}/{1}/{2}", "images/{0}{1}{2}", "{0}{1}", "images/{0}", "images/{0}{1}/{2}{3}"]
)
def test_images_in_folders_of_their_first_characters(folder: str, tmp_path: Path) -> None:
    places = [tmp_path / folder.format(*name) / f"{name}.jpg" for name in ("14acf1", "9b07e2")]
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    (dataset,) = read_csv(tmp_path, "id,class\n14acf1,7\n9b07e2,8\n")
    assert [item.path for item in dataset.items] == places
    assert "are read from" in dataset.notes[-1]
    assert read_csv(tmp_path, "id,class\n14acf1,7\n")[0].items[0].path == places[0]
    with pytest.raises(UserError, match=r"names 1 missing images \(3 in all\)"):
        read_csv(tmp_path, "id,class\n14acf1,7\n9b07e2,8\n9b07e3,8\n")
    # One folder that holds all comes first.
    (tmp_path / "all").mkdir()
    copies = [tmp_path / "all" / place.name for place in places]
    for copy in copies:
        copy.touch()
    assert [item.path for item in read_csv(tmp_path, "id,class\n14acf1,7\n9b07e2,8\n")[0].items] == copies


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
