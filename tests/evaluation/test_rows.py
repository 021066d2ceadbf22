"""Vectors that are larger than the memory allowed are read part by part, and give the same results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from unimetric.errors import UserError
from unimetric.evaluation import evaluate, nearest_neighbours
from unimetric.evaluation import vectors as checks
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.rows import SelectedRows, StreamedRows, hold_or_stream

MEMORY = 40_000
"""Bytes: room for a few hundred of the rows below."""


class WatchedFile(np.memmap):  # type: ignore[type-arg]
    """A memory-mapped file that counts the rows that are read at a time."""

    counts: list[int]

    def __getitem__(self, rows: Any) -> Any:
        part = super().__getitem__(rows)
        if self.ndim == 2:
            self.counts.append(len(part))
        return np.asarray(part)


@pytest.fixture
def on_disk(tmp_path: Path) -> npt.NDArray[np.floating]:
    """A memory-mapped file of 1,200 vectors, some of them twice."""
    random = np.random.default_rng(0)
    vectors = random.standard_normal((1200, 12)).astype(np.float32)
    vectors /= 1 + np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[600:700] = vectors[:100]
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert isinstance(mapped, np.memmap)
    return mapped


def watched(file: npt.NDArray[np.floating]) -> WatchedFile:
    view = file.view(WatchedFile)
    view.counts = []
    return view


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "poincare"])
def test_neighbours_from_a_file_are_those_from_memory(distance: str, on_disk: npt.NDArray[np.floating]) -> None:
    held = nearest_neighbours(np.array(on_disk[:300]), np.array(on_disk), 7, distance=distance)
    gallery = watched(on_disk)
    streamed = nearest_neighbours(on_disk[:300], gallery, 7, distance=distance, memory=MEMORY)
    assert torch.equal(streamed[0], held[0])
    assert torch.equal(streamed[1], held[1])
    # All rows are checked and scaled first, and then never more at once than a quarter of the memory.
    assert gallery.counts.count(1200) <= 2
    read = [count for count in gallery.counts if count < 1200]
    assert sum(read) >= 1200
    assert max(read) <= MEMORY // 4 // (4 * 12)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_scores_from_a_file_are_those_from_memory(distance: str, on_disk: npt.NDArray[np.floating]) -> None:
    random = np.random.default_rng(1)
    labels = np.concatenate([np.arange(600) // 4, random.permutation(600) // 4])
    # Datasets take turns, so that the rows of one lie apart in the file.
    datasets = [f"dataset {number}" for number in random.integers(0, 3, 1200)]
    options: dict[str, Any] = {"ks": [1, 10], "distance": distance, "mean_average_precision": True, "resamples": 5}
    held = evaluate(np.array(on_disk), labels, datasets, **options)
    file = watched(on_disk)
    streamed = evaluate(file, labels, datasets, memory=MEMORY, gallery_tile=256, **options)
    assert streamed == held
    for protocol in ("separate", "unified"):
        one, other = (getattr(report.per_query, protocol) for report in (streamed, held))
        assert np.array_equal(one.nearest, other.nearest)
        assert np.array_equal(one.best_positive, other.best_positive, equal_nan=True)
        assert np.array_equal(one.best_negative, other.best_negative, equal_nan=True)
    # Once to check, and again for every part of the queries.
    assert sum(file.counts) > 2 * 1200


def test_what_fits_is_held_and_what_does_not_is_not(on_disk: npt.NDArray[np.floating]) -> None:
    distance = make_distance()
    size = on_disk.size * 4
    held, streamed = (hold_or_stream(on_disk, "vectors", distance, memory) for memory in (size, size - 1))
    assert isinstance(held, torch.Tensor)
    assert isinstance(streamed, StreamedRows)
    assert len(streamed) == len(held) == 1200
    numbers = torch.tensor([1100, 3, 3, 700])
    for rows in (slice(5, 9), slice(1190, 5000), slice(4, 4), numbers):
        assert torch.equal(streamed[rows], held[rows])
        assert torch.equal(SelectedRows(streamed, numbers)[:], held[numbers])
    as_tensor = hold_or_stream(torch.tensor(np.array(on_disk)), "vectors", distance, 1)
    assert torch.equal(as_tensor[numbers], held[numbers])


def test_memory_beyond_the_vectors_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory for tensors on the CPU does not grow with the file."""
    monkeypatch.setattr(checks, "BLOCK_NUMBERS", 2**14)
    peaks = []
    for rows in (4_000, 16_000):
        path = tmp_path / f"{rows}.npy"
        np.save(path, np.random.default_rng(rows).standard_normal((rows, 64)).astype(np.float32))
        vectors = np.load(path, mmap_mode="r")
        options: dict[str, Any] = {"memory": 2**19, "query_tile": 64, "gallery_tile": 512}
        with torch.profiler.profile(profile_memory=True) as profile:
            nearest_neighbours(vectors[:200], vectors, 3, **options)
        held, peak = 0, 0
        for event in profile.profiler.kineto_results.events():
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        peaks.append(peak)
    # The order of the gallery's rows and their places, two times 8 bytes each, some more while they are made.
    assert peaks[1] < peaks[0] + 12_000 * 64
    assert peaks[1] < 16_000 * 64 * 4 + 12_000 * 64


def test_the_first_bad_row_of_a_file_is_named(on_disk: npt.NDArray[np.floating]) -> None:
    vectors = np.array(on_disk)
    vectors[900, 3] = np.nan
    vectors[1100] = np.inf
    with pytest.raises(UserError, match="gallery: row 900, column 3 is nan"):
        nearest_neighbours(on_disk, vectors, 1, memory=MEMORY)
    vectors = np.array(on_disk)
    vectors[[1000, 800]] = 0
    with pytest.raises(UserError, match="queries: row 800 is all zeros"):
        nearest_neighbours(vectors, on_disk, 1, memory=MEMORY)
    # Where all that matters is the difference, zero is a point like any other.
    nearest_neighbours(vectors, on_disk, 1, memory=MEMORY, distance="euclidean")


@pytest.mark.parametrize("memory", [0, 1.5, "1 GB"])
def test_memory_is_a_number_of_bytes(memory: Any) -> None:
    with pytest.raises(UserError, match=r"memory: .*; give a whole number, at least 1"):
        nearest_neighbours(torch.eye(2), torch.eye(2), 1, memory=memory)


def test_any_memory_will_do() -> None:
    vectors = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    expected = nearest_neighbours(vectors, vectors, 3)
    found = nearest_neighbours(vectors, vectors, 3, memory=1)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
