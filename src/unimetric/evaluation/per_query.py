"""Results of each query: the input of intervals, confusion, thresholds and comparisons of runs."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Protocol = Literal["separate", "unified"]


@dataclass(frozen=True, eq=False)
class QueryResults:
    """Results of Q queries under one protocol, in the order of the queries."""

    scores: dict[str, Floats]
    """"recall@1" and the other requested k, "map@r" (average precision at R), "r-precision", and "map" (average
    precision) if requested: each of shape [Q], from 0 to 1; NaN for a query without a positive."""
    nearest: Integers
    """The gallery row of the nearest neighbour, shape [Q]; -1 where there is none, or the query was not scored."""
    best_positive: Floats
    """The highest similarity (cosine, or minus the distance) to an item of the query's class, shape [Q]; NaN
    for none."""
    best_negative: Floats
    """The highest similarity to an item of another class, shape [Q]; NaN for none. The similarity of the nearest
    neighbour is the higher of the two."""


@dataclass(frozen=True, eq=False)
class PerQuery:
    """Everything that was measured, query by query. Instances compare by identity."""

    datasets: tuple[str, ...]
    """Names of K datasets."""
    classes: tuple[tuple[Hashable, Hashable], ...]
    """(dataset, label) of C classes."""
    query_datasets: Integers
    """The number of each query's dataset, shape [Q], from 0 to K - 1."""
    gallery_datasets: Integers
    """The number of each gallery item's dataset, shape [G]."""
    query_classes: Integers
    """The number of each query's class, shape [Q], from 0 to C - 1."""
    gallery_classes: Integers
    """The number of each gallery item's class, shape [G]."""
    separate: QueryResults
    """Results in the gallery of the query's dataset. Queries of a dataset without any positive are not scored."""
    unified: QueryResults
    """Results in the union of all galleries."""

    def by_dataset(self, protocol: Protocol, metric: str = "recall@1") -> dict[str, Floats]:
        """Return one metric of each dataset's queries, in their order, for `paired_bootstrap`.

        Args:
            protocol: "separate" or "unified".
            metric: One of the scores.

        Returns:
            For each dataset with queries, values of shape [its queries], NaN for those without a positive.

        Raises:
            KeyError: this metric was not measured.
        """
        results = self.separate if protocol == "separate" else self.unified
        values = results.scores[metric]
        parts = {name: values[self.query_datasets == number] for number, name in enumerate(self.datasets)}
        return {name: part for name, part in parts.items() if len(part)}

    def to_arrays(self) -> dict[str, npt.NDArray[Any]]:
        """Return everything as named arrays without pickled objects, for `numpy.savez_compressed`.

        Datasets and labels become their `str`. A score of the separate protocol is called, for instance,
        ``separate/recall@1``.
        """
        arrays: dict[str, npt.NDArray[Any]] = {
            "datasets": np.array(self.datasets, dtype=np.str_),
            "class_datasets": np.array([str(dataset) for dataset, _ in self.classes], dtype=np.str_),
            "class_labels": np.array([str(label) for _, label in self.classes], dtype=np.str_),
            "query_datasets": self.query_datasets,
            "gallery_datasets": self.gallery_datasets,
            "query_classes": self.query_classes,
            "gallery_classes": self.gallery_classes,
        }
        for protocol, results in (("separate", self.separate), ("unified", self.unified)):
            arrays |= {f"{protocol}/{name}": values for name, values in results.scores.items()}
            arrays |= {f"{protocol}/{name}": getattr(results, name) for name in _FOUND}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> "PerQuery":
        """Build from the arrays of `to_arrays`, such as an opened ``.npz`` file.

        Raises:
            KeyError: an array is missing.
        """
        labels = zip(arrays["class_datasets"].tolist(), arrays["class_labels"].tolist(), strict=True)
        sides = ("query_datasets", "gallery_datasets", "query_classes", "gallery_classes")
        return cls(
            datasets=tuple(arrays["datasets"].tolist()),
            classes=tuple(labels),
            **{name: arrays[name] for name in sides},
            separate=_results(arrays, "separate/"),
            unified=_results(arrays, "unified/"),
        )


_FOUND = ("nearest", "best_positive", "best_negative")


def _results(arrays: Mapping[str, npt.NDArray[Any]], prefix: str) -> QueryResults:
    own = {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}
    scores = {name: values for name, values in own.items() if name not in _FOUND}
    return QueryResults(scores, own["nearest"], own["best_positive"], own["best_negative"])
