"""The interface of all ways to search the vectors of a database."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unimetric.search.conditions import Condition

ScoredRow: TypeAlias = "tuple[dict[str, Any], float]"
"""Some columns of a row, and its cosine with the query."""


class VectorSearch(Protocol):
    """A way to find the nearest rows of a database; threads may share it."""

    def nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        columns: Sequence[str],
        condition: Condition | None = None,
        exact: bool = False,
    ) -> list[list[ScoredRow]]:
        """Return for every vector [N, E] the k rows of the highest cosine, the highest first, equal ones by id.

        Args:
            vectors: Finite, none of them zero.
            k: Rows per vector, at most.
            columns: The columns to return.
            condition: The condition on rows; None for all.
            exact: Compare with every row that meets the condition.
        """

    def close(self) -> None:
        """Release memory and files."""
