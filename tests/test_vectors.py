"""The file of measured vectors: what goes in comes out, and what is no such file is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.formats.vectors import MeasuredVectors, read_measured, write_measured


def items(*names: str, dataset: str = "d") -> tuple[Item, ...]:
    return tuple(Item(Path(f"{name}.png"), f"label {name}", dataset) for name in names)


def vectors(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)


def test_images_that_are_query_and_gallery_are_written_once(tmp_path: Path) -> None:
    side, values = items("a", "b", "ü\n<x>"), vectors(3)
    write_measured(tmp_path / "vectors.parquet", MeasuredVectors(side, values, side, values))
    read = read_measured(tmp_path / "vectors.parquet")
    assert read.query == side
    assert read.gallery is read.query
    assert np.array_equal(read.query_vectors, values)
    assert [path.name for path in tmp_path.iterdir()] == ["vectors.parquet"]


def test_two_sides_keep_their_orders(tmp_path: Path) -> None:
    query, gallery = items("a", "b"), items("c", "b", "a", dataset="e")
    written = MeasuredVectors(query, vectors(2), gallery, vectors(3, seed=1))
    write_measured(tmp_path / "v.parquet", written)
    read = read_measured(tmp_path / "v.parquet")
    assert (read.query, read.gallery) == (query, gallery)
    assert np.array_equal(read.query_vectors, written.query_vectors)
    assert np.array_equal(read.gallery_vectors, written.gallery_vectors)
    assert read.datasets == ("d", "e")


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    side = (Item(Path("b\udcffd.png"), "l\udcfe", "d"),)
    write_measured(tmp_path / "v.parquet", MeasuredVectors(side, vectors(1), side, vectors(1)))
    read = read_measured(tmp_path / "v.parquet")
    assert read.gallery[0].path.name == "b\\udcffd.png"
    assert read.query[0].label == "l\\udcfe"


@pytest.mark.parametrize("content", [None, b"", b"no parquet", b"PAR1" * 20])
def test_what_is_no_such_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "vectors.parquet"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="unimetric evaluate") as caught:
        read_measured(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_vectors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    side, values = items("a"), np.array([[1.0, np.nan, 0.0]], np.float32)
    write_measured(tmp_path / "v.parquet", MeasuredVectors(side, values, side, values))
    with pytest.raises(UserError, match="not finite"):
        read_measured(tmp_path / "v.parquet")
