from __future__ import annotations

import functools
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse
from benchmark_fixtures import inshop_lines, make_dogs, make_flowers102, touch, write
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.io import loadmat, savemat

from properties import examples
from unimetric.data.catalog import Item
from unimetric.data.sources import read_source
from unimetric.data.sources.benchmarks.listing import absent_images, readable_names
from unimetric.data.sources.benchmarks.mat_files import mat_numbers, read_mat
from unimetric.data.sources.benchmarks.text_tables import whole_number
from unimetric.errors import UserError


@given(st.dictionaries(st.integers(0, 20), st.sampled_from(["a", "a_b", "a b", "a (1)", "a (2)", "_", "1", "b"])))
def test_readable_names_are_never_alike(names: dict[int, str]) -> None:
    labels = readable_names(names)
    assert labels.keys() == names.keys()
    assert len(set(labels.values())) == len(labels)
    assert all(label.strip() and "_" not in label for label in labels.values())


@given(st.integers(-5, 15), st.sampled_from(["{}", "0{}", "{}.0", "+{}", "{}_0", "٣{}"]))
def test_whole_numbers_are_digits_within_their_range(number: int, form: str) -> None:
    text = form.format(number)
    if form in ("{}", "0{}") and 1 <= number <= 9:
        assert whole_number(text, "f", "class id", 1, 9) == number
    else:
        with pytest.raises(UserError, match=r"^f: the class id .* 1 to 9"):
            whole_number(text, "f", "class id", 1, 9)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.float64])
def test_matlab_numbers_of_any_type(kind: type) -> None:
    values = np.array([[1, 9]], dtype=kind)
    assert mat_numbers(Path("f"), values.reshape(-1), "label", 1, 9) == [1, 9]
    wrapped = np.empty(1, dtype=object)
    wrapped[0] = values[:, :1]
    assert mat_numbers(Path("f"), wrapped, "label", 1, 9) == [1]
    with pytest.raises(UserError, match=r"f, entry 2: the label 9 is out of range 1 to 8"):
        mat_numbers(Path("f"), values.reshape(-1), "label", 1, 8)


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_no_damage_to_a_packed_mat_file_gets_past_its_reader(data: st.DataObject) -> None:
    """A byte of the packed content changed, or the end cut off: refused in one line. MATLAB packs its files."""
    with tempfile.TemporaryDirectory() as root:
        made = data.draw(st.sampled_from([make_dogs, make_flowers102]))(Path(root))
        file = made.folder / made.annotations[0]
        savemat(file, {k: v for k, v in loadmat(file).items() if not k.startswith("__")}, do_compression=True)
        content = bytearray(file.read_bytes())
        if data.draw(st.booleans()):
            # The first variable's content begins behind the header and the variable's type and size.
            size = int.from_bytes(content[132:136], "little")
            content[data.draw(st.integers(136, 135 + size))] ^= data.draw(st.integers(1, 255))
        else:
            del content[data.draw(st.integers(0, len(content) - 1)) :]
        file.write_bytes(content)
        with pytest.raises(UserError) as error:
            read_source(str(made.folder))
        assert len(str(error.value).splitlines()) == 1
        assert str(file) in str(error.value)


MAT_VALUES: dict[str, Any] = {
    "numbers": np.arange(12.0).reshape(3, 4),
    "text": "a.jpg",
    "texts": np.array(["a", "bcd"], dtype=object),
    "nothing": np.zeros((1, 0)),
    "structure": {"class": 1, "fname": "a.jpg"},
    "structures": [{"class": number, "fname": "a.jpg", "inner": {"x": [1, 2]}} for number in range(5)],
    "sparse": scipy.sparse.coo_array(([1.0], ([3], [1])), (100_000, 3)),
    "truth": np.array([True, False]),
    "complex": np.array([1 + 2j, 3]),
    "sparse complex": scipy.sparse.coo_array(([1j], ([3], [1])), (100_000, 3)),
    "cells in cells": functools.reduce(lambda inner, _: np.array([inner, None], dtype=object)[:1], range(30), "a"),
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("kind", MAT_VALUES)
def test_arrays_of_every_kind_are_read(kind: str, packed: bool, tmp_path: Path) -> None:
    savemat(tmp_path / "a.mat", {"x": MAT_VALUES[kind]}, do_compression=packed)
    found, expected = read_mat(tmp_path / "a.mat", ["x"])["x"], loadmat(tmp_path / "a.mat")["x"]
    assert repr(found) == repr(np.asarray(expected))


@pytest.mark.parametrize("kind", ["numbers", "text", "texts", "structure", "structures", "truth"])
def test_an_array_that_is_larger_than_its_file_is_refused_before_it_takes_memory(kind: str, tmp_path: Path) -> None:
    file = tmp_path / "a.mat"
    savemat(file, {"x": MAT_VALUES[kind]})
    content = bytearray(file.read_bytes())
    # The header, the variable's own tag, its flags, and the tag of its dimensions; the first of these is made large.
    place = 128 + 8 + 16 + 8
    assert content[place - 8 : place - 4] == (5).to_bytes(4, sys.byteorder)
    content[place : place + 4] = (2**29).to_bytes(4, sys.byteorder)
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mat is not a readable .mat file .*an array of \d+ values is in \d+ bytes"):
        read_mat(file, ["x"])


@pytest.mark.parametrize("array_class", range(4, 16))
def test_arrays_in_an_array_of_numbers_or_text_are_refused(array_class: int, tmp_path: Path) -> None:
    """Fuzzing found a structure that claims to be a sparse array: scipy crashes the process."""
    file = tmp_path / "a.mat"
    savemat(file, {"x": MAT_VALUES["structure"]})
    content = bytearray(file.read_bytes())
    # The header, the variable's own tag and the tag of its flags; the first of these is the class.
    place = 128 + 8 + 8
    assert content[place : place + 2] == bytes([2, 0])
    content[place] = array_class
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"a\.mat is not a readable .mat file .*holds other arrays"):
        read_mat(file, ["x"])


def test_a_mat_file_without_its_last_bytes_is_refused(tmp_path: Path) -> None:
    """They are padding, so that scipy reads the file."""
    made = make_flowers102(tmp_path)
    file = made.folder / "imagelabels.mat"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"imagelabels.mat is not a readable .mat file .*ends 1 bytes too early"):
        read_source(str(made.folder))


@pytest.mark.parametrize(
    "text", [b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .", b"written by Octave", None]
)
def test_matlab_7_3_is_refused_with_the_remedy(text: bytes | None, tmp_path: Path) -> None:
    """An HDF5 file behind 512 bytes that begin like a header of MATLAB 5; or without them, as other programs write."""
    made = make_flowers102(tmp_path)
    header = b"" if text is None else (text.ljust(124) + b"\x00\x02IM").ljust(512, b"\0")
    (made.folder / "imagelabels.mat").write_bytes(header + b"\x89HDF\r\n\x1a\n" + bytes(88))
    with pytest.raises(
        UserError, match=r"imagelabels.mat is of MATLAB 7.3 \(HDF5\), .* save it as MATLAB 5, with save -v7"
    ):
        read_source(str(made.folder))


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=12),
    st.sets(st.integers(0, 11)),
)
def test_inshop_is_read_as_it_is_written(rows: list[tuple[int, bool]], gone: set[int]) -> None:
    """Odd items train, even ones are tested on; every image that is read is there."""
    expected = [
        (f"img/{i}.jpg", f"id_{n:08d}", "train" if n % 2 else ("query" if flag else "gallery"))
        for i, (n, flag) in enumerate(rows)
    ]
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        write(folder / "list_eval_partition.txt", inshop_lines(expected))
        touch(folder / path for i, (path, _, _) in enumerate(expected) if i not in gone)
        lacking = [i for i in range(len(expected)) if i in gone]
        if lacking:
            with pytest.raises(UserError):
                read_source(root)
            return
        [dataset] = read_source(root)
        read = [(item.path.relative_to(folder).as_posix(), item.label, item.role) for item in dataset.items]
        assert read == expected
        train = {item.label for item in dataset.items if item.role == "train"}
        assert train.isdisjoint(item.label for item in dataset.items if item.role != "train")


def test_absent_images_agree_with_a_look_at_every_file(tmp_path: Path) -> None:
    touch([tmp_path / "a/1.jpg", tmp_path / "a/2.jpg", tmp_path / "file"])
    (tmp_path / "a/folder.jpg").mkdir()
    (tmp_path / "a/link.jpg").symlink_to("1.jpg")
    (tmp_path / "a/broken.jpg").symlink_to("3.jpg")
    (tmp_path / "a/loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "b").symlink_to("a")
    names = ["1.jpg", "2.jpg", "3.jpg", "folder.jpg", "link.jpg", "broken.jpg", "loop.jpg", "nul\0.jpg"]
    paths = [tmp_path / folder / name for folder in ("a", "b", "c", "file") for name in names]

    def there(path: Path) -> bool:
        try:
            return os.path.isfile(path)  # noqa: PTH113 (Path.is_file raises on a link to itself in some versions)
        except (OSError, ValueError):
            return False

    absent = absent_images(Item(path, "x", "d") for path in paths)
    assert absent == [path for path in paths if not there(path)]
    assert len(absent) == len(paths) - 6


def test_each_folder_is_listed_once_and_no_image_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [tmp_path / folder / f"{i}.jpg" for i in range(20) for folder in "ab"]
    touch(paths)
    listed: list[str] = []
    scandir = os.scandir

    def count(folder: str) -> object:
        listed.append(folder)
        return scandir(folder)

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("an image was looked at")

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", count)
        patch.setattr(os, "stat", refuse)
        patch.setattr(os, "lstat", refuse)
        assert absent_images([Item(path, "x", "d") for path in paths]) == []
    assert listed == [str(tmp_path / "a"), str(tmp_path / "b")]
