"""Manifests of arbitrary cells and bytes: every row is accounted for, or one line names the file and the place."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from mutations import damaged, little_memory
from properties import examples
from unimetric.data.catalog import Dataset
from unimetric.data.labels import clean_label
from unimetric.data.sources.manifest import read_manifest
from unimetric.data.sources.metadata import read_metadata
from unimetric.data.sources.split_names import SPLIT_NAMES, split_role
from unimetric.errors import UserError

IMAGES = ["a.jpg", "b.jpg", "sub/c.jpg", " d .jpg", "quote\"'.jpg", "new\nline.jpg", "größe.jpg", "x,y.jpg"]

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
odd = st.sampled_from(
    [
        "",
        " ",
        "\0",
        "a\0b",
        "\ufeff",
        '"',
        '""',
        "\n",
        "\r",
        "\r\n",
        "=1+1",
        "..",
        ".",
        "/",
        "a" * 2000,
        "\u2028",
        "\x1b[2J",
    ]
)
path = st.one_of(
    st.sampled_from(IMAGES),
    st.sampled_from(
        ["./a.jpg", "sub/../b.jpg", "sub", "..", "../", "/etc/passwd", "/dev/zero", "no.jpg", "a.jpg/x", "\0"]
    ),
    odd,
    text,
)
label = st.one_of(st.sampled_from(["wren", "007", "tit"]), odd, text)
split = st.one_of(st.sampled_from([*SPLIT_NAMES, "", "TRAIN", " test ", "tset", "Training set"]), text)
row = st.tuples(path, label, label, split, label)
good_row = st.tuples(st.sampled_from(IMAGES), st.sampled_from("ab"), st.sampled_from("cd"), st.just("train"), label)
settled = settings(max_examples=examples(250), deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("manifests")
    (root / "sub").mkdir()
    for name in IMAGES:
        (root / name).touch()
    return root


def refusal(file: Path, error: UserError) -> str:
    sentence = str(error)
    assert sentence.isprintable(), sentence
    assert len(sentence) < 3000
    assert str(file) in sentence
    return sentence


def accounted(datasets: list[Dataset]) -> int:
    return sum(len(dataset.items) + len(dataset.ignored) for dataset in datasets)


def is_image(folder: Path, path: str) -> bool:
    """Return true if a path leads to a file, as written or as `locate_images` reads it besides."""
    try:
        spellings = [path, path.strip(), path.strip().replace("\\", "/")]
        return bool(path.strip()) and any((folder / spelling).is_file() for spelling in spellings)
    except (OSError, ValueError):
        return False


def is_split(text: str) -> bool:
    return not text.strip() or split_role(text) is not None


@settled
@given(rows=st.lists(st.one_of(good_row, row), min_size=1, max_size=6), order=st.permutations(range(5)))
def test_any_cells(folder: Path, rows: list[tuple[str, ...]], order: list[int]) -> None:
    """Written as CSV is; the right answer follows from the cells."""
    # Python 3.10 writes no zero bytes.
    assume(sys.version_info >= (3, 11) or not any("\0" in cell for cells in rows for cell in cells))
    names = ["path", "label", "dataset", "split", "further"]
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, quoting=csv.QUOTE_ALL)
    writer.writerows([[cells[place] for place in order] for cells in [tuple(names), *rows]])
    file = folder / "birds.csv"
    file.write_bytes(buffer.getvalue().encode())
    rows = [cells for cells in rows if any(cells)]
    good = [
        is_image(folder, cells[0]) and all(clean_label(cell) for cell in cells[1:3]) and is_split(cells[3])
        for cells in rows
    ]
    try:
        datasets = read_manifest(file)
    except UserError as error:
        sentence = refusal(file, error)
        if "is empty; give it one row" in sentence:
            assert not rows
            return
        place = re.search(r"row (\d+) \(line \d+\)", sentence)
        assert place is not None, sentence
        number = int(place[1]) - 1
        if "keep one of them" not in sentence:
            assert not good[number]
        else:
            assert all(good)
            assert len({cells[1] for cells in rows}) > 1 or len({split_role(cells[3]) for cells in rows}) > 1
        return
    assert all(good)
    assert accounted(datasets) == len(rows)
    found = {(item.label, item.dataset, item.role) for dataset in datasets for item in dataset.items}
    assert found <= {(clean_label(c[1]), clean_label(c[2]), split_role(c[3])) for c in rows}
    further = read_metadata(file).cells
    assert {(item.dataset, str(item.path)) for dataset in datasets for item in dataset.items} <= further.keys()


@settled
@given(content=st.one_of(st.binary(max_size=200), text.map(lambda value: ("path,label\n" + value).encode("utf-16"))))
@example(b"")
@example(b"\xef\xbb\xbf")
@example(b"\xef\xbb\xbf\xef\xbb\xbfpath,label\na.jpg,x\n")
@example(b"path,label\n\xff.jpg,x\n")
@example(b"path,label,path\na.jpg,x,b.jpg\n")
@example(b"path,label,x,x\na.jpg,x,1,2\n")
@example(b"path,label\na.jpg\n")
@example(b"path,label\na.jpg,x,y\n")
@example(b'path,label\n"a.jpg,x\n')
@example(b'path,label\n"a"b,x\n')
@example(b"path,label\n" + b"a" * 200_000 + b",x\n")
@example(b"path,label\n" + b"a/" * 2_000 + b",x\n")
@example(b",".join([b"column"] * 20_000) + b"\n")
@example(b"path,label," + b"z" * 100_000 + b"\na.jpg,x\n")
@example(b"path,label,n\na.jpg,x," + b"9" * 10_000 + b"\n")
def test_any_bytes(folder: Path, content: bytes) -> None:
    file = folder / "bytes.csv"
    file.write_bytes(content)
    try:
        datasets = read_manifest(file)
        read_metadata(file)
    except UserError as error:
        refusal(file, error)
        return
    read = csv.reader(io.StringIO(content.decode("utf-8-sig", "replace"), newline=""))
    assert accounted(datasets) == sum(any(map(str.strip, cells)) for cells in read) - 1


def test_damaged_bytes(folder: Path, seeds: Iterator[int]) -> None:
    whole = b"path,label,dataset,split\r\n" + b"".join(
        f'"{name}",{label},d,train\r\n'.encode()
        for name, label in [("a.jpg", "x"), ("x,y.jpg", "y"), ("new\nline.jpg", "z")]
    )
    file, outcomes = folder / "damaged.csv", Counter[bool]()
    with little_memory():
        for random in map(Random, seeds):
            for _ in range(100):
                content = damaged(whole, random)
                file.write_bytes(content)
                try:
                    datasets = read_manifest(file)
                except UserError as error:
                    refusal(file, error)
                    outcomes[False] += 1
                    continue
                text = content.decode("utf-8-sig", "replace")
                rows = [cells for cells in csv.reader(io.StringIO(text, newline="")) if any(map(str.strip, cells))]
                assert accounted(datasets) == len(rows) - 1
                outcomes[True] += 1
    assert outcomes[True] and outcomes[False]
