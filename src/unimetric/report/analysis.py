"""Each query's nearest neighbours, and what they say: hits, intervals, confusion, and the most confident mistakes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.evaluation import nearest_neighbours
from unimetric.geometry import Geometry, PoincareBall
from unimetric.report.collect import Measured
from unimetric.report.statistics import (
    Floats,
    bootstrap_harmonic_means,
    bootstrap_means,
    domain_confusion,
    interval,
)
from unimetric.vectors import MeasuredVectors


@dataclass(frozen=True)
class Score:
    """A recall with its 95 % interval, each from 0 to 1, and how many queries it is a mean over."""

    value: float
    low: float
    high: float
    queries: int


@dataclass(frozen=True)
class Neighbour:
    """A gallery item beside a query.

    Attributes:
        item: The image.
        similarity: Its cosine with the query, or minus its hyperbolic distance.
        right: Whether it is of the query's class.
    """

    item: Item
    similarity: float
    right: bool


@dataclass(frozen=True)
class Mistake:
    """A query whose nearest neighbour is of another class, and its neighbours, nearest first."""

    query: Item
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True)
class Analysis:
    """The neighbours of every query that has a positive; the others are no part of any mean.

    Attributes:
        vectors: Queries and gallery.
        rows: Which queries have a positive, [P].
        similarities: Of those queries' nearest gallery items in the union, [P, k], nearest first.
        neighbours: Their gallery rows, [P, k]; -1 where there are fewer.
        separate_hits: Whether the nearest item of the query's own dataset is of its class, 0 or 1, [P].
        unified_hits: Whether the nearest item of the union is, 0 or 1, [P].
    """

    vectors: MeasuredVectors
    rows: NDArray[np.int64]
    similarities: Floats
    neighbours: NDArray[np.int64]
    separate_hits: Floats
    unified_hits: Floats

    @cached_property
    def queries(self) -> list[Item]:
        """The queries that have a positive, P of them."""
        return [self.vectors.query[row] for row in self.rows]

    @cached_property
    def datasets(self) -> tuple[str, ...]:
        """The datasets with a query that has a positive, in order of appearance."""
        present = {item.dataset for item in self.queries}
        return tuple(name for name in self.vectors.datasets if name in present)

    def of_dataset(self, values: Floats, name: str) -> Floats:
        """The values [P, ...] of a dataset's queries."""
        own: Floats = values[np.array([item.dataset == name for item in self.queries])]
        return own

    def scores(self) -> dict[str, dict[str, Score]]:
        """Recall@1 with intervals: ``separate`` and ``unified`` by dataset, and both and ``harmonic`` under "all"."""
        separate = {name: _score(self.of_dataset(self.separate_hits, name)) for name in self.datasets}
        unified = {name: _score(self.of_dataset(self.unified_hits, name)) for name in self.datasets}
        return {"separate": separate, "unified": unified, "all": self._summary()}

    def _summary(self) -> dict[str, Score]:
        groups = [self.of_dataset(self.separate_hits, name) for name in self.datasets]
        value = len(groups) / sum(1 / group.mean() for group in groups) if all(g.any() for g in groups) else 0.0
        harmonic = Score(value, *interval(bootstrap_harmonic_means(groups)), len(self.queries))
        return {"harmonic": harmonic, "unified": _score(self.unified_hits)}

    def confusion(self) -> tuple[tuple[str, ...], Floats, NDArray[np.int64]]:
        """All K datasets, the shares [K, K] of `domain_confusion`, and the queries of each row [K]."""
        names = self.vectors.datasets
        found = [self.vectors.gallery[row].dataset for row in self.neighbours[:, 0]]
        return names, *domain_confusion([item.dataset for item in self.queries], found, names)

    def mistakes(self, dataset: str, count: int) -> list[Mistake]:
        """A dataset's mistakes in the union, those whose wrong neighbour is most similar first, at most ``count``."""
        wrong = [row for row, item in enumerate(self.queries) if item.dataset == dataset and not self.unified_hits[row]]
        wrong.sort(key=lambda row: -self.similarities[row, 0])
        return [self.mistake(row) for row in wrong[:count]]

    def mistake(self, row: int) -> Mistake:
        """The query of a row of ``rows`` with its neighbours."""
        query = self.queries[row]
        found = [
            Neighbour(item := self.vectors.gallery[number], float(similarity), _class(item) == _class(query))
            for number, similarity in zip(self.neighbours[row], self.similarities[row], strict=True)
            if number >= 0
        ]
        return Mistake(query, tuple(found))


def _score(hits: Floats) -> Score:
    return Score(float(hits.mean()), *interval(bootstrap_means(hits)), len(hits))


def _class(item: Item) -> tuple[str, str]:
    return item.dataset, item.label


def analyse(measured: Measured, neighbours: int = 5) -> Analysis:
    """Find every query's neighbours, in the union and in its own dataset.

    Args:
        measured: What was measured.
        neighbours: How many to keep for each query.

    Raises:
        UserError: the vectors do not give the Recall@1 that ``metrics.json`` holds; they are of another measurement.
    """
    vectors, options = measured.vectors, distance_options(measured.geometry)
    query_ids, gallery_ids = _image_numbers(vectors)
    rows = _rows_with_a_positive(vectors, query_ids, gallery_ids)
    if not len(rows):
        raise UserError(f"{measured.folder}: no query has another image of its class; nothing can be shown")
    similarities, found = nearest_neighbours(
        vectors.query_vectors[rows],
        vectors.gallery_vectors,
        neighbours,
        query_ids=query_ids[rows],
        gallery_ids=gallery_ids,
        **options,
    )
    analysis = Analysis(
        vectors,
        rows,
        similarities.numpy(),
        found.numpy(),
        _separate_hits(vectors, rows, query_ids, gallery_ids, options),
        _hits(vectors, rows, found[:, 0].numpy()),
    )
    if not measured.embedded_again:
        _check_same_measurement(measured, analysis)
    return analysis


def distance_options(geometry: Geometry) -> dict[str, Any]:
    """What `nearest_neighbours` has to know of a geometry."""
    curvature = geometry.curvature if isinstance(geometry, PoincareBall) else PoincareBall.curvature
    return {"distance": geometry.distance, "curvature": curvature}


def _image_numbers(vectors: MeasuredVectors) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The same number for the same image, on both sides."""
    query, gallery = vectors.identities()
    number: dict[tuple[str, str], int] = {}
    numbers = [[number.setdefault(name, len(number)) for name in side] for side in (query, gallery)]
    return np.array(numbers[0], dtype=np.int64), np.array(numbers[1], dtype=np.int64)


def _rows_with_a_positive(
    vectors: MeasuredVectors, query_ids: NDArray[np.int64], gallery_ids: NDArray[np.int64]
) -> NDArray[np.int64]:
    members = Counter(_class(item) for item in vectors.gallery)
    searched = set(gallery_ids.tolist())
    positives = [
        members[_class(item)] - (number in searched)
        for item, number in zip(vectors.query, query_ids.tolist(), strict=True)
    ]
    return np.flatnonzero(np.array(positives) > 0)


def _separate_hits(
    vectors: MeasuredVectors,
    rows: NDArray[np.int64],
    query_ids: NDArray[np.int64],
    gallery_ids: NDArray[np.int64],
    options: dict[str, Any],
) -> Floats:
    query_datasets = np.array([vectors.query[row].dataset for row in rows], dtype=object)
    gallery_datasets = np.array([item.dataset for item in vectors.gallery], dtype=object)
    hits = np.zeros(len(rows))
    for name in dict.fromkeys(query_datasets):
        places, searched = np.flatnonzero(query_datasets == name), np.flatnonzero(gallery_datasets == name)
        own = rows[places]
        _, found = nearest_neighbours(
            vectors.query_vectors[own],
            vectors.gallery_vectors[searched],
            1,
            query_ids=query_ids[own],
            gallery_ids=gallery_ids[searched],
            **options,
        )
        hits[places] = _hits(vectors, own, searched[found[:, 0].numpy()])
    return hits


def _hits(vectors: MeasuredVectors, rows: NDArray[np.int64], found: NDArray[np.int64]) -> Floats:
    return np.array(
        [_class(vectors.query[row]) == _class(vectors.gallery[other]) for row, other in zip(rows, found, strict=True)],
        dtype=np.float64,
    )


def _check_same_measurement(measured: Measured, analysis: Analysis) -> None:
    written = measured.metrics["unified"].get("recall@1")
    found = float(analysis.unified_hits.mean())
    # Not every run measures Recall@1.
    if written is not None and abs(written - found) > 1e-9:
        raise UserError(
            f"{measured.folder}: its vectors give a Recall@1 of {found:.4f}, its metrics.json says {written:.4f}; they "
            f"are of different measurements: write both again with: unimetric evaluate {measured.folder}"
        )
