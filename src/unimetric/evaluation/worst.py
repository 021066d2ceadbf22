"""The classes that are found worst."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

COUNT = 10
"""How many classes a report names for each dataset."""


@dataclass(frozen=True)
class ClassScore:
    """How one class is found."""

    class_number: int
    """Which class."""
    queries: int
    """Its queries with a positive."""
    recall_at_1: float
    """The share of them whose nearest neighbour is of this class, from 0 to 1."""
    map_at_r: float
    """The mean of their average precision at R, from 0 to 1."""
    mistaken_for: int | None
    """The class that their nearest neighbour is of most often where it is not of this one; None if it always is. Of
    equally frequent ones, the lowest number."""


def worst_classes(
    hits: Floats, average_precisions: Floats, classes: Integers, nearest_classes: Integers, count: int = COUNT
) -> list[ClassScore]:
    """The classes with the lowest Recall@1; of equals, those with the lower MAP@R, more queries, the lower number.

    Args:
        hits: Whether each query's nearest neighbour is right, shape [Q], 1 or 0; NaN for a query without a positive,
            which is left out.
        average_precisions: Average precision at R of each query, shape [Q].
        classes: The class of each query, shape [Q], numbers from 0.
        nearest_classes: The class of each query's nearest neighbour, shape [Q]; -1 where there is none.
        count: How many classes to name at most.

    >>> hits, classes = np.array([1.0, 0.0, 1.0, 1.0]), np.array([7, 7, 5, 5])
    >>> worst_classes(hits, hits, classes, np.array([7, 5, 5, 5]), count=1)
    [ClassScore(class_number=7, queries=2, recall_at_1=0.5, map_at_r=0.5, mistaken_for=5)]
    """
    scored = ~np.isnan(hits)
    numbers, places, queries = np.unique(classes[scored], return_inverse=True, return_counts=True)
    recalls = np.bincount(places, weights=hits[scored], minlength=len(numbers)) / queries
    precisions = np.bincount(places, weights=average_precisions[scored], minlength=len(numbers)) / queries
    worst = np.lexsort((numbers, -queries, precisions, recalls))[:count]
    return [
        ClassScore(
            int(numbers[i]),
            int(queries[i]),
            float(recalls[i]),
            float(precisions[i]),
            _most_frequent(nearest_classes[scored & (classes == numbers[i]) & (hits == 0) & (nearest_classes >= 0)]),
        )
        for i in worst
    ]


def _most_frequent(numbers: Integers) -> int | None:
    if not len(numbers):
        return None
    values, counts = np.unique(numbers, return_counts=True)
    return int(values[counts.argmax()])
