"""Answers with a guarantee: one item of each class that the query may be of, the right class among them.

The sets and their probability are those of `unimetric.conformal`.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from unimetric.conformal import FLOOR_WEIGHT, LEVELS, queries_needed, set_limit
from unimetric.errors import ArgumentError
from unimetric.search.calibration import Calibration
from unimetric.search.errors import NotCalibratedError
from unimetric.search.items import Match
from unimetric.search.scoring import Vectors

MOST_ITEMS = 1000
"""Maximum number of items in a set."""
_MOST_ROWS = 30 * MOST_ITEMS
_CHANGED = 0.1
"""The share of rows by which a database may grow or shrink before its sets have to be calibrated again."""
_SLACK = 1e-6
"""Added to a limit for the rounding of float32 similarities."""

_AGAIN = "calibrate on labelled images that are not in the database: unimetric index --db DB --calibrate FOLDER"

Nearest = Callable[[Vectors, int], list[list[Match]]]
"""Vectors [N, E] and k to the k nearest rows of each, compared with every row in scope."""


@dataclass(frozen=True)
class Guarantee:
    """A promise about the set of answers to a query.

    Raises:
        ArgumentError: a number out of its range.
    """

    level: float
    """The probability, from 0.5 to below 1, that the set holds an item of the query's class."""
    delta: float | None = None
    """The accepted probability, between 0 and 1, that the calibration queries were so untypical that the level is not
    kept for further queries. None promises the level on average over calibration queries."""

    def __post_init__(self) -> None:
        if not _is_number(self.level) or not LEVELS[0] <= self.level < LEVELS[1]:
            raise ArgumentError(f"guarantee is {self.level!r}: use a probability from 0.5 to below 1, such as 0.95")
        if self.delta is not None and not (_is_number(self.delta) and 0 < self.delta < 1):
            raise ArgumentError(f"guarantee_delta is {self.delta!r}: use a probability between 0 and 1, such as 0.05")

    @classmethod
    def of(cls, level: float | Guarantee | None, delta: float | None = None) -> Guarantee | None:
        """Return the guarantee for a level; None without one."""
        if level is None and delta is not None:
            raise ArgumentError(f"guarantee_delta is {delta!r}: give guarantee as well, such as 0.95")
        return level if level is None or isinstance(level, Guarantee) else cls(level, delta)


@dataclass(frozen=True)
class SetLimit:
    """The largest shortfall of an item in a set, and the highest similarity that there can be."""

    shortfall: float
    perfect: float

    def lowest(self, best: float) -> float:
        """Return the lowest similarity in a set, given the highest one to the query."""
        return max(best - self.shortfall, self.perfect - self.shortfall / FLOOR_WEIGHT) - _SLACK


def limit_of(
    calibration: Calibration | None,
    guarantee: Guarantee,
    datasets: Sequence[str],
    rows: Mapping[str, int],
    perfect: float,
) -> SetLimit:
    """Return the limit of the sets of a search in some datasets, none for all, of a database with these rows in each.

    ``perfect`` is as in `SetLimit`: 1 for cosines, 0 for minus a distance. A `NotCalibratedError` if these datasets
    were not calibrated, with too few queries, or for another catalogue.
    """
    names = sorted(set(datasets) or rows)
    what = repr(names[0]) if len(names) == 1 else "the search in all datasets"
    sets = None
    if calibration is not None:
        measured = sorted(calibration.separate)
        if len(names) == 1 and names != measured:
            sets = calibration.separate.get(names[0], {}).get("sets")
        elif names == measured:
            sets = calibration.unified.get("sets")
        elif len(names) < len(rows):
            raise NotCalibratedError(
                f"guarantee is {guarantee.level:g}: it is calibrated for single datasets and for all together, not for "
                f"{len(names)} of {len(rows)}; search in one, or in all"
            )
        else:
            listed = ", ".join(measured) if len(measured) <= 20 else f"{len(measured)} datasets"
            what += f" (the calibration has {listed})"
    if sets is None:
        raise NotCalibratedError(f"guarantee is {guarantee.level:g}: it was not calibrated for {what}; {_AGAIN}")
    count = sum(rows.get(name, 0) for name in names)
    if abs(count - sets["gallery"]) > _CHANGED * sets["gallery"]:
        raise NotCalibratedError(
            f"guarantee is {guarantee.level:g}: it was calibrated for {what} with {sets['gallery']} rows, and "
            f"there are {count} now; {_AGAIN}"
        )
    limit = set_limit(sets["queries"], sets["ranks"], sets["shortfalls"], guarantee.level, guarantee.delta)
    if limit is None:
        needed = queries_needed(guarantee.level, guarantee.delta)
        with_delta = "" if guarantee.delta is None else f" with a delta of {guarantee.delta:g}"
        raise NotCalibratedError(
            f"guarantee is {guarantee.level:g}{with_delta}: that takes {needed} calibration queries, and {what} had "
            f"{sets['queries']}; lower it, or {_AGAIN}"
        )
    return SetLimit(limit, perfect)


def find_sets(nearest: Nearest, vectors: Vectors, limit: SetLimit) -> list[list[Match]]:
    """Return for every vector [N, E] its set: the most similar item of each class, the best first.

    An item without a label is a class of its own. A set of more than `MOST_ITEMS` items is an `ArgumentError`.
    """
    answers: list[list[Match]] = [[] for _ in vectors]
    pending, k = np.arange(len(vectors)), 64
    while len(pending):
        unfinished = []
        for place, found in zip(pending.tolist(), nearest(vectors[pending], k), strict=True):
            lowest = limit.lowest(found[0].score) if found else math.inf
            answers[place] = _one_of_each([match for match in found if match.score >= lowest])
            if len(found) == k and found[-1].score >= lowest:
                unfinished.append(place)
            if len(answers[place]) > MOST_ITEMS or (unfinished[-1:] == [place] and k >= _MOST_ROWS):
                raise ArgumentError(
                    f"guarantee: the set of query {place} has more than {MOST_ITEMS} items or {_MOST_ROWS} rows; lower "
                    "the guarantee, or search in one dataset"
                )
        pending, k = np.array(unfinished, dtype=np.int64), min(8 * k, _MOST_ROWS)
    return answers


def _one_of_each(matches: Sequence[Match]) -> list[Match]:
    """Return the first match of each class."""
    first: dict[tuple[str, str], Match] = {}
    for match in matches:
        first.setdefault((match.dataset, match.label or f"\0{match.id}"), match)
    return list(first.values())


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(value)
