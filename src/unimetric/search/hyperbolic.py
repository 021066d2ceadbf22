"""Search by hyperbolic distance, which the database does not have: every row is compared exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from unimetric.search.conditions import Condition
from unimetric.search.scoring import Vectors, ball_of, vectors_of
from unimetric.search.stores.base import Store
from unimetric.search.vector_search import NearestRows


def nearest_hyperbolic(
    store: Store, geometry: Mapping[str, Any], vectors: Vectors, k: int, columns: Sequence[str], where: Condition | None
) -> list[NearestRows]:
    """Return for every point [N, E] of the ball the k nearest rows, with minus their distances.

    ``geometry`` is from ``PoincareBall.to_dict``.
    """
    # torch takes seconds to load.
    import torch

    from unimetric.evaluation.neighbours import nearest_neighbours

    ball = ball_of(geometry)
    table = store.rows(["id", "vector"], where)
    if not len(table):
        return [NearestRows([], {name: [] for name in columns}) for _ in vectors]
    points = torch.from_numpy(vectors_of(table["vector"]).copy())
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
