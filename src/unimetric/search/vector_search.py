"""The interface of all ways to search the vectors of a database."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unimetric.search.conditions import Condition


@dataclass(frozen=True)
class NearestRows:
    """The rows nearest to one query, the nearest first, equally near ones by id.

    Attributes:
        scores: Cosines with the query; minus the distance for a hyperbolic model.
        columns: The values of the rows, by column.
    """

    scores: list[float]
    columns: Mapping[str, list[Any]]


class VectorSearch(Protocol):
    """A way to find the nearest rows of a database; threads may share it."""

    def nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        columns: Sequence[str],
        condition: Condition | None = None,
        exact: bool = False,
    ) -> list[NearestRows]:
        """Return for every vector [N, E] the k rows of the highest cosine.

        Args:
            vectors: Finite, none of them zero.
            k: Rows per vector, at most.
            columns: The columns to return.
            condition: The condition on rows; None for all.
            exact: Compare with every row that meets the condition.
        """

    def vectors_of(self, ids: Sequence[str], columns: Sequence[str]) -> NDArray[np.float32]:
        """Return the vectors [N, E] of some rows.

        Args:
            ids: Their ids.
            columns: The columns that the searches return.

        Raises:
            ItemNotFoundError: there is no row of an id.
        """

    def close(self) -> None:
        """Release memory and files."""
