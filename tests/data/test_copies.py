"""Exact copies across a split."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from properties import examples
from unimetric.data.catalog import Item
from unimetric.data.copies import copy_notes, find_copies
from unimetric.data.splits import Split

# They differ in nothing, in length, in the first byte, and in the last one.
CONTENTS = [b"", b"a", b"aa", b"a" * 9000, b"b" + b"a" * 8999, b"a" * 8999 + b"b"]


def write(folder: Path, contents: list[bytes], name: str) -> list[Path]:
    paths = [folder / f"{name}{number}" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    return paths


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=examples(60))
@given(
    first=st.lists(st.sampled_from(CONTENTS), max_size=5),
    second=st.lists(st.sampled_from(CONTENTS), max_size=5),
    shared=st.lists(st.sampled_from(CONTENTS), max_size=3),
    same_path=st.booleans(),
)
def test_copies_are_those_of_equal_bytes(
    tmp_path: Path, first: list[bytes], second: list[bytes], shared: list[bytes], same_path: bool
) -> None:
    both = write(tmp_path, shared, "both")
    left, right = write(tmp_path, first, "left") + both, both + write(tmp_path, second, "right")
    expected = []
    for path in right:
        if content := path.read_bytes():
            copies = [other for other in left if other.read_bytes() == content and (same_path or other != path)]
            expected += [(copies[0], path)] if copies else []
    found = find_copies(left, right, same_path=same_path)
    assert list(found.pairs) == expected
    assert found.unreadable == {path: "empty file" for path in [*left, *right] if not path.read_bytes()}


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    (path,) = write(tmp_path, [b"a"], "left")
    found = find_copies([path, tmp_path / "absent"], [tmp_path])
    assert found.pairs == ()
    assert found.unreadable[tmp_path / "absent"] == "cannot be read (No such file or directory)"


def item(path: Path, label: str = "x", dataset: str = "d") -> Item:
    return Item(path, label, dataset)


def test_notes(tmp_path: Path) -> None:
    train, test = write(tmp_path, [b"1", b"2"], "train"), write(tmp_path, [b"3", b"2", b"3"], "test")
    tested = tuple(map(item, test))
    notes = copy_notes(Split(tuple(map(item, train)), (), tested, tested))
    assert notes == [
        f"1 test image is a copy (the first: {test[1]} of {train[1]}) of train images: "
        "results on them are not those of unseen images",
        f"2 query images are copies (the first: {test[0]} of {test[2]}) of other images in the gallery, "
        "which are found without any learning",
    ]


@pytest.mark.parametrize("role", ["train", "validation"])
def test_one_file_in_train_and_test(role: str, tmp_path: Path) -> None:
    paths = write(tmp_path, [b"1", b"2"], "image")
    learned, tested = (item(paths[0], dataset="a"),), (item(paths[0], dataset="b"), item(paths[1], dataset="b"))
    split = Split(learned, (), tested, tested) if role == "train" else Split((), learned, tested, tested)
    (note,) = copy_notes(split)
    assert note.startswith("1 test image is a copy")
    assert copy_notes(Split((item(paths[1]),), (), (item(paths[0]),), (item(paths[0]),))) == []
