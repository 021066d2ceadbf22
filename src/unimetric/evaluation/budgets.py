"""Bytes per image against Recall@1: the same vectors in fewer numbers and in coarser types."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from unimetric.data.catalog import Item
from unimetric.evaluation.evaluate_split import evaluate_vectors, have_positives
from unimetric.evaluation.labels import factorize
from unimetric.evaluation.neighbours import nearest_neighbours
from unimetric.evaluation.statistics import LEVEL, RESAMPLES, harmonic_means, percentile_interval, resampled_means
from unimetric.formats.stored_types import STORED_TYPES, StoredType, decode_vectors, encode_vectors, stored_bytes
from unimetric.formats.vectors import MeasuredVectors
from unimetric.geometry import Geometry, Sphere
from unimetric.models.sizes import Sizes

RESCORED = 50
"""Candidates by one bit a number that are compared again by their int8 copy."""

_SMALLEST = 16

Floats = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Budget:
    """A way to store vectors.

    Args:
        size: Numbers of a vector.
        type: Type of a number.
        rescored: The best candidates are compared again by an int8 copy.
    """

    size: int
    type: StoredType
    rescored: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return plain values; ``bytes`` are those that a search keeps at hand, ``copy_bytes`` those of the copy."""
        copy = stored_bytes("int8", self.size) if self.rescored else 0
        own = stored_bytes(self.type, self.size)
        return {"size": self.size, "type": self.type, "rescored": self.rescored, "bytes": own, "copy_bytes": copy}


def measure_budgets(vectors: MeasuredVectors, sizes: Sizes, geometry: Geometry) -> dict[str, Any] | None:
    """Measure Recall@1 for every size and type, and the thresholds of a match for every size.

    The gallery is stored, the queries are whole; without means to shorten vectors, only whole ones are measured.
    Gallery items of equal similarity are taken in the order of rows.

    ``points`` of the result has, for every budget, its bytes, the separate Recall@1 of each dataset, their harmonic
    mean, the unified one, and 95 % intervals of both from the same resamples as all other intervals; ``thresholds`` is
    by size. A hyperbolic model has neither: None.
    """
    if not isinstance(geometry, Sphere):
        return None
    full = vectors.query_vectors.shape[1]
    lengths = budget_sizes(full, sizes)
    task = _Task.of(vectors)
    budgets: list[Budget] = []
    hits: list[tuple[Floats, Floats]] = []
    thresholds: dict[str, Any] = {}
    for size in lengths:
        short = shortened_vectors(vectors, sizes, size)
        if size < full and all(side.any(axis=1).all() for side in (short.query_vectors, short.gallery_vectors)):
            thresholds[str(size)] = evaluate_vectors(short, geometry, ks=(1,)).to_dict()["thresholds"]
        for budget, found in _of_size(task, short, size):
            budgets.append(budget)
            hits.append(found)
    return {"rescored": RESCORED, "level": LEVEL, "points": task.points(budgets, hits), "thresholds": thresholds}


def budget_sizes(full: int, sizes: Sizes) -> list[int]:
    """Return the sizes to measure: powers of 2 from 16, trained sizes, and all numbers; the largest first.

    >>> budget_sizes(100, Sizes(nested=(10, 50)))
    [100, 64, 50, 32, 16, 10]
    """
    if not sizes.nested and sizes.rotation is None:
        return [full]
    powers = [2**power for power in range(16) if _SMALLEST <= 2**power < full]
    return sorted({*powers, *sizes.nested, full}, reverse=True)


def shortened_vectors(vectors: MeasuredVectors, sizes: Sizes, size: int) -> MeasuredVectors:
    """Return a measurement with shorter vectors."""
    query = sizes.shorten(vectors.query_vectors, size)
    same = vectors.gallery_vectors is vectors.query_vectors
    gallery = query if same else sizes.shorten(vectors.gallery_vectors, size)
    return MeasuredVectors(vectors.query, query, vectors.gallery, gallery)


def _of_size(task: "_Task", short: MeasuredVectors, size: int) -> Iterator[tuple[Budget, tuple[Floats, Floats]]]:
    queries, gallery = short.query_vectors, short.gallery_vectors
    stored: dict[str, Vectors] = {}
    for type in STORED_TYPES:
        stored[type] = decode_vectors(type, encode_vectors(type, gallery), size)
        yield Budget(size, type), task.hits(queries, stored[type])
    yield Budget(size, "bit", rescored=True), task.hits(queries, stored["bit"], stored["int8"])


@dataclass(frozen=True)
class _Task:
    """Queries and gallery by number: of the images, [Q] and [G], and of the datasets with these ``names``.

    ``scored`` is True for a query with another image of its class in the gallery, [Q].
    """

    query: tuple[Item, ...]
    gallery: tuple[Item, ...]
    query_ids: npt.NDArray[np.int64]
    gallery_ids: npt.NDArray[np.int64]
    query_datasets: npt.NDArray[np.int64]
    gallery_datasets: npt.NDArray[np.int64]
    names: tuple[str, ...]
    scored: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, vectors: MeasuredVectors) -> "_Task":
        sides = (vectors.query, vectors.gallery)
        (query_ids, gallery_ids), _ = factorize(*vectors.identities())
        (query_datasets, gallery_datasets), names = factorize(*([i.dataset for i in side] for side in sides))
        return cls(
            *sides,
            query_ids.numpy(),
            gallery_ids.numpy(),
            query_datasets.numpy(),
            gallery_datasets.numpy(),
            tuple(map(str, names)),
            np.array(have_positives(*sides)),
        )

    def hits(self, queries: Vectors, stored: Vectors, finer: Vectors | None = None) -> tuple[Floats, Floats]:
        """Return 1 where the nearest stored vector is of the query's class, else 0, [Q]: own gallery, and union."""
        everything = np.arange(len(queries)), np.arange(len(stored))
        unified = self._hits(queries, stored, finer, *everything)
        separate = np.zeros_like(unified)
        for number in range(len(self.names)):
            rows = np.flatnonzero(self.query_datasets == number), np.flatnonzero(self.gallery_datasets == number)
            if len(rows[0]) and len(rows[1]):
                separate[rows[0]] = self._hits(queries, stored, finer, *rows)
        return separate, unified

    def _hits(
        self,
        queries: Vectors,
        stored: Vectors,
        finer: Vectors | None,
        rows: npt.NDArray[np.int64],
        gallery_rows: npt.NDArray[np.int64],
    ) -> Floats:
        # A vector without direction, such as one with no kept numbers, has no neighbours and is nobody's neighbour.
        asked, gallery_rows = queries[rows].any(axis=1), gallery_rows[stored[gallery_rows].any(axis=1)]
        hits = np.zeros(len(rows))
        if not asked.any() or not len(gallery_rows):
            return hits
        rows = rows[asked]
        _, found = nearest_neighbours(
            queries[rows],
            stored[gallery_rows],
            1 if finer is None else RESCORED,
            query_ids=self.query_ids[rows].tolist(),
            gallery_ids=self.gallery_ids[gallery_rows].tolist(),
        )
        nearest = found.numpy()  # (Q, k), -1 where there is none
        if finer is not None:
            nearest = _rescored(queries[rows], finer[gallery_rows], nearest)
        hits[asked] = [
            place >= 0 and self.gallery[gallery_rows[place]].is_right_for(self.query[row])
            for row, place in zip(rows.tolist(), nearest[:, 0].tolist(), strict=True)
        ]
        return hits

    def points(self, budgets: Sequence[Budget], hits: Sequence[tuple[Floats, Floats]]) -> list[dict[str, Any]]:
        """Return the values and intervals of every budget, all from the same resamples."""
        columns = np.stack([part for pair in hits for part in pair], axis=1)  # (Q, 2 P)
        values: list[Floats] = []
        drawn: list[Floats] = []
        counts: list[int] = []
        names: list[str] = []
        for number, name in enumerate(self.names):
            rows = (self.query_datasets == number) & self.scored
            if not rows.any():
                continue
            names.append(name)
            counts.append(int(rows.sum()))
            values.append(columns[rows].mean(axis=0))
            drawn.append(resampled_means(columns[rows], RESAMPLES, [0, number]))  # (B, 2 P)
        weights = np.array(counts) / sum(counts)
        points = []
        for place, budget in enumerate(budgets):
            separate = np.stack([part[:, 2 * place] for part in drawn], axis=1)
            unified = np.stack([part[:, 2 * place + 1] for part in drawn], axis=1) @ weights
            own = np.array([value[2 * place] for value in values])
            points.append(
                budget.to_dict()
                | {
                    "separate": dict(zip(names, own.tolist(), strict=True)),
                    "harmonic": float(harmonic_means(own[None])[0]),
                    "unified": float(np.array([value[2 * place + 1] for value in values]) @ weights),
                    "intervals": {
                        "harmonic": list(percentile_interval(harmonic_means(separate))),
                        "unified": list(percentile_interval(unified)),
                    },
                }
            )
        return points


def _rescored(queries: Vectors, finer: Vectors, candidates: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the best of every query's candidates [Q, k] by finer vectors, [Q, 1]; -1 where there is none."""
    best = np.full((len(queries), 1), -1)
    for start in range(0, len(queries), 1024):
        rows = slice(start, start + 1024)
        vectors = F.normalize(torch.from_numpy(finer[candidates[rows]]).double(), dim=-1)  # (q, k, E)
        scores = (vectors @ torch.from_numpy(queries[rows]).double()[:, :, None])[:, :, 0].numpy()
        scores[candidates[rows] < 0] = -np.inf
        # Of equal ones, the lower gallery row.
        order = np.lexsort((candidates[rows], -scores), axis=1)[:, :1]
        best[rows] = np.take_along_axis(candidates[rows], order, axis=1)
    return best
