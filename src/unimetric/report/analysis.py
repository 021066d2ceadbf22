"""What a run's numbers say, and the queries behind them: scores with intervals, and the most confident mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.evaluation import Report, nearest_neighbours
from unimetric.evaluation.bootstrap import Floats, percentile_interval, resampled_means
from unimetric.formats.vectors import MeasuredVectors
from unimetric.measure import distance_options, evaluate_vectors
from unimetric.report.collect import Measured

_PARTS = ("intervals", "unified_gap", "domain_confusion", "spread", "thresholds", "worst_classes")
"""What ``metrics.json`` of early versions lacks."""


@dataclass(frozen=True)
class Score:
    """A share with its 95 % interval, and how many queries it is a mean over."""

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
    """A run's published numbers, and what each query found.

    Attributes:
        measured: What was measured.
        numbers: The metrics of ``metrics.json``, completed by those of ``report`` where it lacks some.
        completed: The names of those.
        report: What the vectors give.
    """

    measured: Measured
    numbers: Mapping[str, Any]
    completed: tuple[str, ...]
    report: Report

    @property
    def vectors(self) -> MeasuredVectors:
        """Queries and gallery."""
        return self.measured.vectors

    @property
    def datasets(self) -> tuple[str, ...]:
        """The datasets with a query that has a positive."""
        return tuple(self.report.separate)

    @cached_property
    def hits(self) -> Floats:
        """Whether each query's nearest neighbour in the union is of its class, 1 or 0, [Q]; NaN without a positive."""
        hits: Floats = self.report.per_query.unified.scores["recall@1"]
        return hits

    def scored(self, dataset: str | None = None) -> int:
        """How many queries have a positive: all of them, or those of a dataset."""
        counts = self.report.counts if dataset is None else self.report.counts.datasets[dataset]
        return counts.queries - counts.queries_without_positive

    def separate(self, dataset: str) -> Score:
        """Recall@1 of a dataset among its own images."""
        value = self.numbers["separate"][dataset]["recall@1"]
        return _score(value, self.numbers["intervals"]["separate"][dataset]["recall@1"], self.scored(dataset))

    def unified(self, dataset: str) -> Score:
        """Recall@1 of a dataset's queries in the union."""
        values = self.report.per_query.by_dataset("unified")[dataset]
        values = values[~np.isnan(values)]
        # As its other intervals are drawn: by the seed and the number of the dataset.
        intervals = self.report.intervals
        number = self.report.per_query.datasets.index(dataset)
        drawn = resampled_means(values[:, None], intervals.resamples, [intervals.seed, number])[:, 0]
        return Score(float(values.mean()), *percentile_interval(drawn, intervals.level), len(values))

    def total(self, part: str) -> Score:
        """Recall@1 over all: "harmonic" or "unified"."""
        value = self.numbers[part]["recall@1"]
        return _score(value, self.numbers["intervals"][part]["recall@1"], self.scored())

    def gap(self, dataset: str) -> Score:
        """The unified gap of a dataset."""
        value = self.numbers["unified_gap"][dataset]
        return _score(value, self.numbers["intervals"]["unified_gap"][dataset], self.scored(dataset))

    def mistakes(self, dataset: str, count: int, neighbours: int) -> list[Mistake]:
        """A dataset's mistakes in the union, those whose wrong neighbour is most similar first.

        Args:
            dataset: Its name.
            count: At most so many mistakes.
            neighbours: At most so many neighbours beside each.
        """
        wrong = self.wrong(dataset)
        nearest = self.report.per_query.unified.best_negative[wrong]
        rows = wrong[np.argsort(-nearest, kind="stable")[:count]]
        if not len(rows):
            return []
        query_ids, gallery_ids = self._image_numbers
        similarities, found = nearest_neighbours(
            self.vectors.query_vectors[rows],
            self.vectors.gallery_vectors,
            neighbours,
            query_ids=query_ids[rows],
            gallery_ids=gallery_ids,
            **distance_options(self.measured.geometry),
        )
        return [
            self._mistake(self.vectors.query[row], others, values)
            for row, others, values in zip(rows.tolist(), found.tolist(), similarities.tolist(), strict=True)
        ]

    def wrong(self, dataset: str) -> NDArray[np.int64]:
        """The rows of a dataset's queries whose nearest neighbour in the union is of another class."""
        per_query = self.report.per_query
        own = per_query.query_datasets == per_query.datasets.index(dataset)
        return np.flatnonzero(own & (self.hits == 0))

    def example(self, dataset: str, label: str, mistaken_for: str | None) -> tuple[Item, Item] | None:
        """A query of a class, and its nearest neighbour in its dataset, which is of the class that it is taken for."""
        for row in self._of_class.get((dataset, label), []):
            number = int(self.report.per_query.separate.nearest[row])
            if number >= 0 and self.vectors.gallery[number].label == mistaken_for != label:
                return self.vectors.query[row], self.vectors.gallery[number]
        return None

    @cached_property
    def _of_class(self) -> dict[tuple[str, str], list[int]]:
        """The rows of each class's queries."""
        rows: dict[tuple[str, str], list[int]] = {}
        for row, item in enumerate(self.vectors.query):
            rows.setdefault(_class(item), []).append(row)
        return rows

    @cached_property
    def _image_numbers(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The same number for the same image, on both sides."""
        number: dict[tuple[str, str], int] = {}
        sides = [[number.setdefault(name, len(number)) for name in side] for side in self.vectors.identities()]
        return np.array(sides[0], dtype=np.int64), np.array(sides[1], dtype=np.int64)

    def _mistake(self, query: Item, found: Sequence[int], similarities: Sequence[float]) -> Mistake:
        items = [(self.vectors.gallery[row], value) for row, value in zip(found, similarities, strict=True) if row >= 0]
        return Mistake(query, tuple(Neighbour(item, value, _class(item) == _class(query)) for item, value in items))


def _score(value: float, interval: Sequence[float], queries: int) -> Score:
    low, high = interval
    return Score(value, low, high, queries)


def _class(item: Item) -> tuple[str, str]:
    return item.dataset, item.label


def analyse(measured: Measured) -> Analysis:
    """Evaluate a run's vectors again, and complete its numbers where they are of an early version.

    Raises:
        UserError: nothing can be measured, or the vectors do not give the Recall@1 that ``metrics.json`` holds.
    """
    metrics = measured.metrics
    ks = [int(name.removeprefix("recall@")) for name in metrics["unified"] if name.startswith("recall@")]
    try:
        report = evaluate_vectors(measured.vectors, measured.geometry, ks=ks or (1,))
    except UserError as error:
        raise UserError(f"{measured.folder}: its vectors cannot be measured ({error})") from error
    if not measured.embedded_again:
        _check_same_measurement(measured, report)
    found = report.to_dict()
    completed = tuple(name for name in _PARTS if name not in metrics)
    numbers = {name: metrics.get(name, found[name]) for name in found}
    if "recall@1" not in metrics["unified"]:
        # Early versions left it out where it was not asked for.
        completed = ("recall@1", *_PARTS)
        numbers = dict(found)
    return Analysis(measured, numbers, completed, report)


def _check_same_measurement(measured: Measured, report: Report) -> None:
    written, found = measured.metrics["unified"].get("recall@1"), report.unified["recall@1"]
    if (written is not None and abs(written - found) > 1e-9) or set(measured.metrics["separate"]) != set(
        report.separate
    ):
        what = "" if written is None else f" give a Recall@1 of {found:.4f}, its metrics.json says {written:.4f}"
        raise UserError(
            f"{measured.folder}: its vectors{what or ' are of other datasets than its metrics.json'}; they are of "
            f"different measurements: write both again with: unimetric evaluate {measured.folder}"
        )
