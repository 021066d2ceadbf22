"""Nothing is half-written, and what went wrong is said in one line."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from unimetric.errors import UserError
from unimetric.files import (
    cache_folder,
    check_writable,
    csv_text,
    make_folder,
    sha256_of_file,
    write_atomically,
    write_json,
    write_text,
)
from unimetric.training.tensors import save_tensors, write_tensors


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB with 32 KiB left and one file, ``old``."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(folder)]
    if mount is None or os.geteuid() != 0 or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small file system takes root and a kernel that allows it")
    (folder / "old").write_bytes(b"o" * 32768)
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


NUMBERS = np.random.default_rng(0).random(20_000)  # 160 kB
WRITERS = {
    "text": lambda path: path.write_text("x" * 100_000),
    "safetensors": lambda path: save_tensors(path, {"a": torch.from_numpy(NUMBERS)}),
    "parquet": lambda path: pq.write_table(pa.table({"a": NUMBERS}), path),
    "npz": lambda path: np.savez(path.open("wb"), a=NUMBERS),
}


@pytest.mark.parametrize("kind", list(WRITERS))
def test_full_disk(kind: str, full_disk: Path) -> None:
    with pytest.raises(UserError, match=rf"cannot write {full_disk / 'old'}: the disk is full; free some space"):
        write_atomically(full_disk / "old", WRITERS[kind])
    assert (full_disk / "old").read_bytes() == b"o" * 32768
    assert [path.name for path in full_disk.iterdir()] == ["old"]


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "x"), "the disk is full"),
        (OSError(errno.EDQUOT, "x"), "the disk quota is used up"),
        (OSError(errno.EROFS, "x"), "the file system is read-only"),
        (PermissionError(errno.EACCES, "x"), "no permission"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_failures_are_said_in_words_and_leave_the_old_file(error: Exception, words: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("half")
        raise error

    with pytest.raises(UserError, match=words) as caught:
        write_atomically(path, write)
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_safetensors_report_the_operating_systems_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library has one error type for everything: whether the disk refuses is asked by writing as much."""
    tensors = {"a": torch.zeros(1000)}

    def fails(*arguments: object, **options: object) -> None:
        raise SafetensorError("of any wording")

    monkeypatch.setattr("unimetric.training.tensors.save_file", fails)
    with pytest.raises(SafetensorError, match="of any wording"):
        write_tensors(tmp_path / "file", tensors)
    with pytest.raises(OSError, match="No space left") as caught:
        save_tensors(Path("/dev/full"), tensors)
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(UserError, match="No such file or directory"):
        write_tensors(tmp_path / "none" / "file", tensors)


def test_a_file_is_written_when_there_is_space_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors, calls = {"a": torch.arange(1000)}, []

    def fails_once(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == 1:
            raise SafetensorError("of any wording")
        save_file(*arguments, **options)

    monkeypatch.setattr("unimetric.training.tensors.save_file", fails_once)
    write_tensors(tmp_path / "file", tensors)
    assert torch.equal(load_file(tmp_path / "file")["a"], tensors["a"])


def test_a_mistake_of_the_writer_is_not_dressed_up(tmp_path: Path) -> None:
    def write(temporary: Path) -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        write_atomically(tmp_path / "file", write)
    assert list(tmp_path.iterdir()) == []


def test_the_target_is_never_seen_half_written(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("new")
        assert path.read_text() == "old"
        assert temporary.parent == path.parent  # renaming works within one file system only

    write_atomically(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o007])
def test_permissions_are_those_of_any_new_file(mask: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(mask)
    try:
        (tmp_path / "plain").touch()
        with monkeypatch.context() as patch:
            # For a moment, files of other threads would be writable for everybody.
            patch.setattr(os, "umask", lambda value: pytest.fail("the umask is that of all threads"))
            write_text(tmp_path / "ours", "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"cannot write {tmp_path / 'none/file'}: No such file"):
        write_text(tmp_path / "none/file", "x")


def test_a_folder_under_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file/a", tmp_path / "file/a/b"):
        for check in (make_folder, check_writable):
            with pytest.raises(UserError, match=f"{tmp_path / 'file'}.*choose another path"):
                check(path)


def test_checking_creates_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "a/b/c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_no_permission(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    for act in (
        lambda: make_folder(folder / "a"),
        lambda: write_text(folder / "a", ""),
        lambda: check_writable(folder),
    ):
        with pytest.raises(UserError, match="no permission; choose a folder that you may write to"):
            act()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(value=JSON)
def test_json_round_trip(value: object, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "value.json"
    if "\\ud" not in json.dumps(value):  # a lone surrogate is not text
        write_json(path, value)
        assert json.loads(path.read_text(encoding="utf-8")) == value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_json_without_numbers_that_json_lacks(value: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"a": value})
    assert list(tmp_path.iterdir()) == []


def test_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_of_file(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMETRIC_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("UNIMETRIC_CACHE")
    assert cache_folder() == Path("/xdg/unimetric")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/unimetric"


@pytest.mark.parametrize("label", ["red\rcar", "a\r\nb", "a,b", 'a "b"', "", " "])
def test_rows_of_csv_are_read_as_they_were_written(label: str) -> None:
    rows = [["path", "label"], ["a.png", label], [label, "b"]]
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == rows
