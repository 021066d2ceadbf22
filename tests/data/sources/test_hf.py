"""Sets of Hugging Face ``datasets``, as the library itself writes them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from unimetric.data.images import decode_image
from unimetric.data.sources import read_source
from unimetric.errors import UserError

datasets = pytest.importorskip("datasets")
NAMES = ["wren", "tit", "robin"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNIMETRIC_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def made(rows: int = 6, first: int = 0, labels: list[Any] | None = None, **columns: Any) -> Any:
    """A set whose image i is grey of the value ``first`` + i, of the class i modulo 3."""
    pictures = [Image.new("L", (8, 6), first + row) for row in range(rows)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})
    for column, values in columns.items():
        features[column] = datasets.Value("string" if isinstance(values[0], str) else "int64")
    content = {"image": pictures, "label": labels or [row % 3 for row in range(rows)], **columns}
    return datasets.Dataset.from_dict(content, features=features)


def found(source: str, **options: Any) -> list[tuple[int, str, str | None]]:
    """The grey value, label and role of every item."""
    (dataset,) = read_source(source, **options)
    return [
        (int(np.asarray(decode_image(item.path))[0, 0, 0]), item.label, item.role) for item in dataset.items
    ]  # fmt: skip


EXPECTED = [(row, NAMES[row % 3], None) for row in range(6)]


def test_a_saved_set(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made().save_to_disk(tmp_path / "birds")
    source = f"hf:{tmp_path / 'birds'}"
    assert found(source) == EXPECTED
    (dataset,) = read_source(f"garden={source}")
    assert dataset.name == "garden"
    assert all(item.path.is_relative_to(cache) for item in dataset.items)
    # The images are written once: paths stay, so that an index finds them unchanged.
    before = {item.path: item.path.stat().st_mtime_ns for item in dataset.items}
    (again,) = read_source(source)
    assert {item.path: item.path.stat().st_mtime_ns for item in again.items} == before
    # Another content at the same place is another set.
    made(first=100).save_to_disk(tmp_path / "birds")
    assert [value for value, _, _ in found(source)] == [100, 101, 102, 103, 104, 105]


def test_splits_have_their_roles(tmp_path: Path) -> None:
    both = datasets.DatasetDict({"train": made(3), "validation": made(3, 10), "test": made(3, 20)})
    both.save_to_disk(tmp_path / "birds")
    roles = [role for _, _, role in found(f"hf:{tmp_path / 'birds'}")]
    assert roles == ["train"] * 3 + ["validation"] * 3 + ["test"] * 3
    assert {value for value, _, _ in found(f"hf:{tmp_path / 'birds'}?split=test,train")} == {0, 1, 2, 20, 21, 22}
    # One split alone is divided by its classes, whatever its name.
    assert found(f"hf:{tmp_path / 'birds'}?split=train") == EXPECTED[:3]
    with pytest.raises(UserError, match=r"has no split 'tests'; did you mean 'test'"):
        read_source(f"hf:{tmp_path / 'birds'}?split=tests")
    datasets.DatasetDict({"train": made(3), "extra": made(3)}).save_to_disk(tmp_path / "more")
    with pytest.raises(UserError, match=r"the split 'extra' is neither .*; choose with hf:.*more\?split=train"):
        read_source(f"hf:{tmp_path / 'more'}")


@pytest.mark.parametrize("layout", ["data/{}-00000-of-00001.parquet", "{}/0000.parquet", "{}.parquet"])
def test_folders_of_parquet_files(layout: str, tmp_path: Path) -> None:
    for split, first in (("train", 0), ("test", 10)):
        file = tmp_path / "set" / layout.format(split)
        file.parent.mkdir(parents=True, exist_ok=True)
        made(3, first).to_parquet(file)
    assert found(f"hf:{tmp_path / 'set'}") == [
        *((10 + row, NAMES[row], "test") for row in range(3)),
        *((row, NAMES[row], "train") for row in range(3)),
    ]


def test_columns_are_told_or_named(tmp_path: Path) -> None:
    rows = made(3, species=["a", "b", "c"], count=[1, 2, 3]).rename_column("image", "photo")
    rows.save_to_disk(tmp_path / "set")
    assert [label for _, label, _ in found(f"hf:{tmp_path / 'set'}")] == NAMES
    assert [label for _, label, _ in found(f"hf:{tmp_path / 'set'}?label=species")] == ["a", "b", "c"]
    assert [label for _, label, _ in found(f"hf:{tmp_path / 'set'}?image=photo&label=count")] == ["1", "2", "3"]
    with pytest.raises(UserError, match=r"has no column 'specie'; did you mean 'species'"):
        read_source(f"hf:{tmp_path / 'set'}?label=specie")
    with pytest.raises(UserError, match=r"unknown option 'labels'; did you mean 'label'"):
        read_source(f"hf:{tmp_path / 'set'}?labels=species")
    with pytest.raises(UserError, match=r"an option is there twice; write several splits as split=train,test"):
        read_source(f"hf:{tmp_path / 'set'}?split=train&split=test")
    two = rows.remove_columns("label").add_column("genus", ["x", "y", "z"])
    two.save_to_disk(tmp_path / "two")
    with pytest.raises(
        UserError, match=r"which column is the label\? there are 'species', 'genus'; write hf:.*\?label="
    ):
        read_source(f"hf:{tmp_path / 'two'}")


def test_a_label_column_of_another_name_is_noted(tmp_path: Path) -> None:
    """A caption is a text, too, and often the only one."""
    made(3).save_to_disk(tmp_path / "set")
    assert read_source(f"hf:{tmp_path / 'set'}")[0].notes == ()
    made(3).rename_column("label", "fine_label").save_to_disk(tmp_path / "fine")
    (note,) = read_source(f"hf:{tmp_path / 'fine'}")[0].notes
    assert note.endswith("fine: column 'fine_label' is read as the label")
    assert read_source(f"hf:{tmp_path / 'fine'}?label=fine_label")[0].notes == ()


def test_numbers_in_a_column_of_a_usual_name_are_labels(tmp_path: Path) -> None:
    """Parquet files that pandas wrote name no classes, and a caption beside them is no class."""
    content = [(tmp_path / f"{value}.png") for value in range(3)]
    for value, file in enumerate(content):
        Image.new("L", (2, 2), value).save(file)
    images = [{"bytes": file.read_bytes(), "path": file.name} for file in content]
    (tmp_path / "set").mkdir()
    for labels, expected in {(7, 8, 7): ["7", "8", "7"], (True, False, True): ["True", "False", "True"]}.items():
        columns = {"image": images, "caption": ["a", "b", "c"], "label": list(labels), "size": [1, 2, 3]}
        pq.write_table(pa.table(columns), tmp_path / "set/train.parquet")
        assert [label for _, label, _ in found(f"hf:{tmp_path / 'set'}")] == expected
    pq.write_table(pa.table({"image": images, "genus": [1, 2, 1]}), tmp_path / "set/train.parquet")
    with pytest.raises(UserError, match=r"which column is the label\? there are 'image', 'genus'; write hf:"):
        read_source(f"hf:{tmp_path / 'set'}")
    assert [label for _, label, _ in found(f"hf:{tmp_path / 'set'}?label=genus")] == ["1", "2", "1"]


def test_a_list_of_labels_is_several_labels(tmp_path: Path) -> None:
    rows = {"image": [Image.new("L", (2, 2), value) for value in range(3)], "labels": [[0, 2], [1], [2, 0]]}
    features = datasets.Features(
        {"image": datasets.Image(), "labels": datasets.Sequence(datasets.ClassLabel(names=NAMES))}
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "set")
    (dataset,) = read_source(f"hf:{tmp_path / 'set'}")
    assert [item.labels for item in dataset.items] == [("robin", "wren"), (), ("robin", "wren")]
    assert [item.label for item in dataset.items] == ["robin|wren", "tit", "robin|wren"]


def test_rows_without_label_or_image(tmp_path: Path) -> None:
    made(3, labels=[0, None, -1]).save_to_disk(tmp_path / "set")
    with pytest.raises(UserError, match=r"split 'all', row 1: it has no label"):
        read_source(f"hf:{tmp_path / 'set'}")
    assert [label for _, label, _ in found(f"hf:{tmp_path / 'set'}", classes=False)] == ["wren", "", ""]
    made(2).remove_columns("label").save_to_disk(tmp_path / "none")
    assert [label for _, label, _ in found(f"hf:{tmp_path / 'none'}", classes=False)] == ["", ""]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    holes = {"image": [Image.new("L", (2, 2)), None], "label": ["a", "b"]}
    datasets.Dataset.from_dict(holes, features=features).save_to_disk(tmp_path / "holes")
    (dataset,) = read_source(f"hf:{tmp_path / 'holes'}")
    assert (len(dataset.items), [entry.reason for entry in dataset.unusable]) == (1, ["the row has no image"])


def test_bad_places_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    made(2).save_to_disk(tmp_path / "cut")
    for file in (tmp_path / "cut").glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:50])
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/train.parquet").write_bytes(b"PAR1")
    for place, expected in {
        tmp_path / "empty": "is neither a folder of save_to_disk nor one with .parquet files",
        tmp_path / "cut": "datasets cannot read it",
        tmp_path / "bad": "train.parquet cannot be read",
        # The suite runs offline, and nothing of this name is in the library's cache.
        "nobody/nothing": "there is no folder nobody/nothing here, and datasets cannot read it",
    }.items():
        with pytest.raises(UserError, match=re.escape(expected)) as caught:
            read_source(f"hf:{place}")
        assert "\n" not in str(caught.value)


def test_without_the_library_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"needs the package datasets: pip install 'unimetric\[hf\]'"):
        read_source(f"hf:{tmp_path}")
