"""Archives and tables of images: their names, and their labels in the form that manifests give them."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from toy_runs import make_images
from unimetric.bulk import reading
from unimetric.bulk.work_units import WorkUnit, plan
from unimetric.errors import UserError


def pack(file: Path, members: dict[str, bytes]) -> list[tuple[str, str]]:
    """Write an archive of these members in this order, and return the name and label of every image in it."""
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return [(s.path.partition("#")[2], s.label) for s in reading.sources(WorkUnit(0, "tar", "d", str(file)))]


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"a.jpg": b"", "a.cls": b"3\n"}, [("a.jpg", "3")]),
        ({"x.1/a.jpg": b"", "x.1/a.info.json": b'{"label": 3}'}, [("x.1/a.jpg", "3")]),
        ({"a.json": b'{"label": ["red", "big", null]}', "a.png": b""}, [("a.png", "big|red")]),
        ({"a.cls": "\ufeff Zaunko\u0308nig\u00a0\r\n".encode(), "a.png": b""}, [("a.png", "Zaunk\u00f6nig")]),
        ({"a.json": b'{"label": null}', "a.png": b""}, [("a.png", "")]),
        ({"a.left.jpg": b"", "a.right.jpg": b"", "a.cls": b"1"}, [("a.left.jpg", "1"), ("a.right.jpg", "1")]),
        # By the rule these are one sample; labels of other images are not theirs.
        (
            {"22.05.png": b"", "22.05.cls": b"1", "22.06.png": b"", "22.06.cls": b"2", "22.07.png": b""},
            [("22.05.png", "1"), ("22.06.png", "2"), ("22.07.png", "")],
        ),
        ({"._a.jpg": b"\0", "a.jpg": b"", "._a.cls": b"\0", "a.cls": b"1"}, [("a.jpg", "1")]),
        ({"a.jpg": b"", "b.jpg": b"", "a.json": b"{}", "b.json": b"{}"}, [("a.jpg", ""), ("b.jpg", "")]),
        (
            {"a.json": b'{"label": 3.0}', "a.png": b"", "b.json": b'{"label": NaN}', "b.png": b""},
            [("a.png", "3"), ("b.png", "")],
        ),
        ({"a.cls": "\u00a0Zaunko\u0308nig\n".encode(), "a.png": b""}, [("a.png", "Zaunk\u00f6nig")]),
    ],
)
def test_labels_in_a_tar(members: dict[str, bytes], expected: list[tuple[str, str]], tmp_path: Path) -> None:
    assert pack(tmp_path / "a.tar", members) == expected


def test_labels_apart_from_their_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a.tar: the label of a does not lie beside its image; pack .* --sort=name"):
        pack(tmp_path / "a.tar", {"a.jpg": b"", "b.jpg": b"", "a.cls": b"1", "b.cls": b"2"})


@pytest.mark.parametrize(
    ("labels", "datasets", "expected"),
    [
        ([7.0, None, float("nan"), 2.5], [1, 2, None, 3], [("7", "1"), ("", "2"), ("", "d"), ("2.5", "3")]),
        ([b"a", b"\xff"], [b"x", b""], [("a", "x"), ("\\xff", "d")]),
        (["a ", "o\u0308"], [" x", " "], [("a", "x"), ("\u00f6", "d")]),
        (pa.array([["b", "a", "b"], []]), pa.array(["x", None]).dictionary_encode(), [("a|b", "x"), ("", "d")]),
    ],
)
def test_labels_and_datasets_in_a_table(labels: Any, datasets: Any, expected: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"x"] * len(labels), "label": labels, "dataset": datasets}), file)
    found = list(reading.sources(WorkUnit(0, "table", "d", str(file))))
    assert [(source.label, source.dataset) for source in found] == expected
    assert [source.path for source in found] == [f"{file}#{row}" for row in range(len(found))]


def test_paths_in_a_table_are_text(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"image": [b"x"] * 3, "path": [b"a/1.jpg", b"\xff.jpg", None]}), file)
    found = list(reading.sources(WorkUnit(0, "table", "d", str(file))))
    assert [source.path for source in found] == ["a/1.jpg", "\\xff.jpg", f"{file}#2"]


def test_a_name_with_an_equals_sign_is_that_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "day=1").mkdir()
    pack(tmp_path / "day=1/a.tar", {"a.jpg": b""})
    pack(tmp_path / "k=a.tar", {"a.jpg": b""})
    sources = ["day=1/a.tar", "k=a.tar", "n=k=a.tar", "m=day=1/a.tar"]
    assert [(unit.dataset, unit.place) for unit in plan(sources, 10)] == [
        ("a", "day=1/a.tar"), ("k=a", "k=a.tar"), ("n", "k=a.tar"), ("m", "day=1/a.tar"),
    ]  # fmt: skip
    # With the name before it, too long for any file.
    long = "a" * 251 + ".tar"
    pack(tmp_path / long, {"a.jpg": b""})
    assert [(unit.dataset, unit.place) for unit in plan([f"birds={long}"], 10)] == [("birds", long)]


def test_a_missing_archive_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.tar"
    with pytest.raises(UserError, match=r"there is no file .*a\.tar; check the path"):
        plan([str(file)], 10)
    pack(file, {"a.jpg": b""})
    (unit,) = plan([str(file)], 10)
    file.unlink()
    with pytest.raises(UserError, match=r"there is no file .*a\.tar; check the path"):
        list(reading.sources(unit))


def test_a_folder_may_be_called_like_an_archive(tmp_path: Path) -> None:
    make_images(tmp_path / "birds.tar", classes=2, images=2)
    (unit,) = plan([str(tmp_path / "birds.tar")], 10)
    assert (unit.kind, len(unit.images)) == ("files", 4)
