"""A graph of vectors in memory (HNSW, Malkov and Yashunin, TPAMI 2020), by usearch.

It holds each vector in a byte per number, and so finds candidates only; these are ranked by the stored vectors.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.cpu import available_cores
from unimetric.errors import UserError
from unimetric.search.memory.exact import Span, candidates
from unimetric.search.scoring import Vectors, cosines

CONNECTIVITY = 16
_EXPANSION = 100
"""Nodes that are kept while a node's neighbours are chosen."""
_ADDED = 1_000
"""Nodes that are added before a stop is noticed."""

_DEPTHS = {10: 512, 30: 128, 100: 64, 300: 32, 1000: 16}
"""The numbers of neighbours at which recall is measured, each with its number of queries."""
_AIM = 0.985
"""The recall to reach in the measurement: rows of the database are easier queries than new vectors."""
_COUNTS = tuple(dict.fromkeys(round(2 ** (step / 8)) for step in range(28, 97)))
"""Numbers of candidates to try, from 11 to 4096."""
_SEED = 0


class Graph:
    """A graph over the first vectors of a block, around an index of usearch; several threads may search."""

    def __init__(self, index: Any) -> None:
        self._index = index
        # An index has one set of buffers for each thread of its own, not of ours.
        self._searching = threading.Lock()
        self._threads = available_cores()

    @classmethod
    def new(cls, size: int) -> Graph:
        """Return an empty graph of vectors of this size."""
        index = _usearch().Index(
            ndim=size,
            # Of unit vectors; it takes less time than the cosine.
            metric="ip",
            dtype="i8",
            connectivity=CONNECTIVITY,
            expansion_add=_EXPANSION,
            expansion_search=_COUNTS[0],
            enable_key_lookups=False,
        )
        return cls(index)

    @classmethod
    def open(cls, file: Path, *, view: bool) -> Graph:
        """Open a file that `save` wrote; with ``view`` it is mapped into memory, and nothing can be added."""
        index = _usearch().Index.restore(str(file), view=view, enable_key_lookups=False)
        index.expansion_add, index.expansion_search = _EXPANSION, _COUNTS[0]
        return cls(index)

    def __len__(self) -> int:
        return len(self._index)

    def save(self, file: Path) -> None:
        """Write it to a file, or raise an `OSError`."""
        try:
            self._index.save(str(file))
        except RuntimeError as error:
            raise OSError(f"cannot write {file}: {error}") from error

    def extend(
        self, vectors: Vectors, inverse: NDArray[np.float32], is_stopped: Callable[[], bool] = lambda: False
    ) -> None:
        """Add the vectors [N, E] beyond those that it has, until it is stopped; ``inverse`` are their inverse lengths.

        A vector whose inverse length is infinite is added as another one: it cannot be found by a walk.
        """
        threads = max(1, available_cores() // 2)
        for start in range(len(self), len(vectors), _ADDED):
            if is_stopped():
                return
            scale = inverse[start : start + _ADDED, None]
            with np.errstate(invalid="ignore", over="ignore"):
                part = np.where(np.isinf(scale), np.float32(1), vectors[start : start + _ADDED] * scale)
            self._index.add(np.arange(start, start + len(part)), part, threads=threads)

    def walk(self, queries: Vectors, count: int) -> list[NDArray[np.intp]]:
        """Return the places of about the nearest vectors to each query [Q, E], the nearest first."""
        with self._searching:
            found = self._index.search(queries, min(count, len(self)), threads=min(len(queries), self._threads))
        if len(queries) == 1:
            return [found.keys.astype(np.intp)]
        keys = found.keys.astype(np.intp)
        return [row[:number] for row, number in zip(keys, found.counts.tolist(), strict=True)]


def measured_counts(
    graph: Graph, vectors: NDArray[np.float32], inverse: NDArray[np.float32], dead: NDArray[np.bool_] | None
) -> dict[int, int | None]:
    """Measure how many candidates a walk has to return for the k nearest vectors, for several k.

    Rows drawn with a fixed seed are searched exactly and by walks. The smallest count whose recall, less two standard
    errors, reaches 0.985 is returned for each k; None if there is none. So new queries find at least 0.98.
    """
    size = len(graph)
    alive = np.arange(size) if dead is None else np.flatnonzero(~dead[:size])
    sample = np.random.default_rng(_SEED).choice(alive, min(max(_DEPTHS.values()), len(alive)), replace=False)
    span = Span(vectors[:size], inverse[:size], 0, None if dead is None else alive)
    counts: dict[int, int | None] = {}
    for k, number in _DEPTHS.items():
        queries = np.asarray(vectors[sample[:number]])
        best = candidates(queries, [span], k + 1)
        borders = [_border(query, vectors, places, k) for query, places in zip(queries, best, strict=True)]
        counts[k] = None
        for count in (max(count, k + 1) for count in _COUNTS if count >= k // 2):
            shares = []
            for query, border, near in zip(queries, borders, graph.walk(queries, count), strict=True):
                found = cosines(query, vectors[_alive(near, dead)])
                # The row itself is found as well.
                shares.append(min(1.0, (int((found >= border).sum()) - 1) / k))
            if np.mean(shares) - 2 * np.std(shares) / math.sqrt(len(shares)) >= _AIM:
                counts[k] = count
                break
    return counts


def _border(query: Vectors, vectors: Vectors, places: NDArray[np.intp], k: int) -> float:
    scores = np.sort(cosines(query, vectors[places]))[::-1]
    return float(scores[min(k, len(scores) - 1)])


def _alive(places: NDArray[np.intp], dead: NDArray[np.bool_] | None) -> NDArray[np.intp]:
    return places if dead is None else places[~dead[places]]


def _usearch() -> Any:
    try:
        import usearch.index as package
    except ModuleNotFoundError as error:
        raise UserError(f"search needs {error.name}, which is missing; pip install 'unimetric[search]'") from error
    return package
