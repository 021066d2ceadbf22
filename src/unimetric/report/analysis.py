"""A run's numbers with intervals, and the queries behind them: the most confident mistakes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.data.catalog import Item
from unimetric.errors import UserError
from unimetric.evaluation import Report, nearest_neighbours
from unimetric.evaluation.evaluate_split import distance_options, evaluate_vectors
from unimetric.evaluation.statistics import Floats, percentile_interval, resampled_means
from unimetric.formats.vectors import MeasuredVectors
from unimetric.report.collect import Measured


@dataclass(frozen=True)
class Score:
    """A share with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Neighbour:
    """A gallery item beside a query.

    Attributes:
        item: The image.
        similarity: Its cosine with the query, or minus its hyperbolic distance.
        right: True for the query's class.
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
    """A run's published numbers, and the neighbours of each query.

    Attributes:
        measured: The run.
        numbers: The metrics of ``metrics.json``.
        report: The metrics of the vectors, with those of each query.
    """

    measured: Measured
    numbers: Mapping[str, Any]
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
        """1 for each query whose nearest neighbour in the union is right, else 0, [Q]; NaN without a positive."""
        hits: Floats = self.report.per_query.unified.scores["recall@1"]
        return hits

    def scored(self, dataset: str | None = None) -> int:
        """Return the number of queries with a positive, of all datasets or of one."""
        counts = self.report.counts if dataset is None else self.report.counts.datasets[dataset]
        return counts.queries - counts.queries_without_positive

    def separate(self, dataset: str) -> Score:
        """Return the Recall@1 of a dataset among its own images."""
        return Score(
            self.numbers["separate"][dataset]["recall@1"], *self.numbers["intervals"]["separate"][dataset]["recall@1"]
        )

    def unified(self, dataset: str) -> Score:
        """Return the Recall@1 of a dataset's queries in the union."""
        values = self.report.per_query.by_dataset("unified")[dataset]
        values = values[~np.isnan(values)]
        # The seed and the dataset's number, as for the other intervals.
        intervals = self.report.intervals
        number = self.report.per_query.datasets.index(dataset)
        drawn = resampled_means(values[:, None], intervals.resamples, [intervals.seed, number])[:, 0]
        return Score(float(values.mean()), *percentile_interval(drawn, intervals.level))

    def total(self, part: str) -> Score:
        """Return the total Recall@1: "harmonic" or "unified"."""
        return Score(self.numbers[part]["recall@1"], *self.numbers["intervals"][part]["recall@1"])

    def gap(self, dataset: str) -> Score:
        """Return the unified gap of a dataset."""
        return Score(self.numbers["unified_gap"][dataset], *self.numbers["intervals"]["unified_gap"][dataset])

    def mistakes(self, dataset: str, count: int, neighbours: int) -> list[Mistake]:
        """Return at most ``count`` mistakes of a dataset in the union, the most similar wrong neighbour first."""
        wrong = self.wrong(dataset)
        nearest = self.report.per_query.unified.best_negative[wrong]
        rows = wrong[np.argsort(-nearest, kind="stable")[:count]]
        if not len(rows):
            return []
        query_ids, gallery_ids = self.vectors.identities()
        similarities, found = nearest_neighbours(
            self.vectors.query_vectors[rows],
            self.vectors.gallery_vectors,
            neighbours,
            query_ids=[query_ids[row] for row in rows],
            gallery_ids=gallery_ids,
            **distance_options(self.measured.geometry),
        )
        return [
            self._mistake(self.vectors.query[row], others, values)
            for row, others, values in zip(rows.tolist(), found.tolist(), similarities.tolist(), strict=True)
        ]

    def wrong(self, dataset: str) -> NDArray[np.int64]:
        """Return the rows of a dataset's queries whose nearest neighbour in the union is of another class."""
        per_query = self.report.per_query
        own = per_query.query_datasets == per_query.datasets.index(dataset)
        return np.flatnonzero(own & (self.hits == 0))

    def example(self, dataset: str, label: str, mistaken_for: str | None) -> tuple[Item, Item] | None:
        """Return a query of a class and its nearest neighbour in its dataset, of the class that it is mistaken for."""
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
            rows.setdefault((item.dataset, item.label), []).append(row)
        return rows

    def _mistake(self, query: Item, found: Sequence[int], similarities: Sequence[float]) -> Mistake:
        items = [(self.vectors.gallery[row], value) for row, value in zip(found, similarities, strict=True) if row >= 0]
        return Mistake(query, tuple(Neighbour(item, value, item.is_right_for(query)) for item, value in items))


def analyse(measured: Measured) -> Analysis:
    """Evaluate a run's vectors again, query by query.

    Raises:
        UserError: nothing can be measured, or the vectors do not give the Recall@1 that ``metrics.json`` holds.
    """
    metrics = measured.metrics
    ks = [int(name.removeprefix("recall@")) for name in metrics["unified"] if name.startswith("recall@")]
    try:
        report = evaluate_vectors(measured.vectors, measured.geometry, ks=ks or (1,))
    except UserError as error:
        raise UserError(f"{measured.folder}: its vectors cannot be measured ({error})") from error
    _check_same_measurement(measured, report)
    missing = sorted({*report.to_dict()} - {*metrics})
    if missing:
        raise UserError(
            f"{measured.folder / 'metrics.json'} lacks {', '.join(missing)}: write it again with: unimetric evaluate"
        )
    return Analysis(measured, metrics, report)


def _check_same_measurement(measured: Measured, report: Report) -> None:
    written, found = measured.metrics["unified"].get("recall@1"), report.unified["recall@1"]
    what = ""
    if set(measured.metrics["separate"]) != set(report.separate):
        what = "are of other datasets than its metrics.json"
    elif written is not None and abs(written - found) > 1e-9:
        what = f"give a Recall@1 of {found:.4f}, its metrics.json has {written:.4f}"
    if what:
        raise UserError(
            f"{measured.folder}: its vectors {what}; they are of different measurements: write both again with: "
            f"unimetric evaluate {measured.folder}"
        )
