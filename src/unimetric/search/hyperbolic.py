"""Search by hyperbolic distance, which the database does not have: every row is compared exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.search.conditions import Condition
from unimetric.search.stores.base import Store
from unimetric.search.vector_search import NearestRows


def nearest_hyperbolic(
    store: Store,
    geometry: Mapping[str, Any],
    vectors: NDArray[np.float32],
    k: int,
    columns: Sequence[str],
    where: Condition | None,
) -> list[NearestRows]:
    """Return for every point [N, E] of the ball the nearest rows, with minus their distances.

    Args:
        store: The database.
        geometry: From ``PoincareBall.to_dict``.
        vectors: The queries.
        k: Rows per query, at most.
        columns: The columns to return.
        where: The condition on rows.
    """
    # torch takes seconds to load.
    import torch

    from unimetric.evaluation.neighbours import nearest_neighbours
    from unimetric.geometry import PoincareBall

    ball = PoincareBall(**{name: value for name, value in geometry.items() if name != "name"})
    table = store.rows(["id", "vector"], where)
    if not len(table):
        return [NearestRows([], {name: [] for name in columns}) for _ in vectors]
    flat = table["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    points = torch.from_numpy(flat.reshape(len(table), -1).copy())
    queries = torch.from_numpy(np.array(vectors))
    _, places = nearest_neighbours(queries, points, min(k, len(table)), distance="poincare", curvature=ball.curvature)
    answers = []
    for query, nearest in zip(queries, places.tolist(), strict=True):
        distances = ball.distances(query[None].double(), points[nearest].double())[0].tolist()
        score = {table["id"][place].as_py(): -value for place, value in zip(nearest, distances, strict=True)}
        rows = store.rows_of(list(score), columns)
        ids = rows["id"].to_pylist()
        order = sorted(range(len(ids)), key=lambda place: (-score[ids[place]], ids[place]))
        answers.append(NearestRows([score[ids[place]] for place in order], rows.take(order).to_pydict()))
    return answers
