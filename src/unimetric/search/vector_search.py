"""The interface of all ways to search the vectors of a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from unimetric.search.conditions import Condition
from unimetric.search.scoring import Vectors


@dataclass(frozen=True)
class NearestRows:
    """The rows nearest to one query, the nearest first, equally near ones by id.

    Scores are cosines, or minus the distances of a hyperbolic model; the values of the rows are by column.
    """

    scores: list[float]
    columns: Mapping[str, list[Any]]


class VectorSearch(Protocol):
    """A way to find the nearest rows of a database; threads may share it."""

    def nearest(
        self, vectors: Vectors, k: int, columns: Sequence[str], condition: Condition | None = None, exact: bool = False
    ) -> list[NearestRows]:
        """Return for every vector [N, E], finite and not zero, some columns of the k rows of the highest cosine.

        With ``exact`` it is compared with every row that meets the condition; there may be fewer than k.
        """

    def vectors_of(self, ids: Sequence[str], columns: Sequence[str]) -> Vectors:
        """Return the vectors [N, E] of some rows, or raise `ItemNotFoundError`; ``columns`` are those of searches."""

    def prepare(self, columns: Sequence[str]) -> None:
        """Read what searches need into memory; ``columns`` are those that they will return."""
        return

    def close(self) -> None:
        """Release memory and files, but not the database."""
        return
