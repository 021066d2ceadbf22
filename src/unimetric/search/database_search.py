"""Ways to search the vectors of a database, and that of the database itself.

It is exact, also by hyperbolic distance, or by the approximate index with the measured effort.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from unimetric.search.conditions import Condition
from unimetric.search.effort import EXACT_BELOW, MeasuredEffort, chosen_effort, effort_under_condition, partitions
from unimetric.search.items import no_item
from unimetric.search.scoring import SPARE, Vectors, ball_of, best_first, cosines, rounding, vectors_of
from unimetric.search.stores.base import Effort, Store


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


class DatabaseSearch(VectorSearch):
    """Search that asks the database for every query."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def nearest(
        self, vectors: Vectors, k: int, columns: Sequence[str], condition: Condition | None = None, exact: bool = False
    ) -> list[NearestRows]:
        answers: dict[int, NearestRows] = {}
        effort = None if exact else self._effort(k, condition)
        pending, wanted = list(range(len(vectors))), k + max(SPARE, k // 8)
        while pending:
            part = None if effort is None else replace(effort, refine=max(1, math.ceil(effort.refine * k / wanted)))
            tables = self._tables(vectors[pending], wanted, [*columns, "vector"], condition, part)
            undecided = []
            for place, table in zip(pending, tables, strict=True):
                answer = _rescored(vectors[place], table, k)
                # Rows beyond the border may have the same score: look further.
                if len(table) == wanted and _may_be_tied(answer, table):
                    undecided.append(place)
                answers[place] = answer
            pending, wanted = undecided, 4 * wanted
        return [answers[place] for place in range(len(vectors))]

    def vectors_of(self, ids: Sequence[str], columns: Sequence[str] = ()) -> Vectors:
        rows = self._store.rows_of(ids, ["id", "vector"])
        if len(rows) < len(ids):
            present = set(rows["id"].to_pylist())
            raise no_item(next(id for id in ids if id not in present))
        return vectors_of(rows["vector"])

    def _tables(
        self, vectors: Vectors, k: int, columns: Sequence[str], condition: Condition | None, effort: Effort | None
    ) -> list[pa.Table]:
        found = self._store.nearest(vectors, k, columns, condition, effort)
        if condition is None or effort is None:
            return found
        # The rows that a condition selects may be far from a query, so the search of a graph widens until it finds
        # nothing new.
        pending = list(range(len(vectors)))
        while pending and (effort := self._wider(effort)) is not None:
            again = self._store.nearest(vectors[pending], k, columns, condition, effort)
            changed = []
            for place, table in zip(pending, again, strict=True):
                if not _same_distances(found[place], table) or len(table) < k:
                    changed.append(place)
                found[place] = table
            pending = changed
        return found

    def _effort(self, k: int, condition: Condition | None) -> Effort | None:
        """Return the effort for the index there is; None where the search is exact."""
        index = self._store.index
        if index is None:
            return None
        record = self._store.about["index"]
        if record["name"] != index.name:
            record = self._store.read_about()["index"]
        if record["name"] != index.name:
            # Another process is still measuring it.
            return None
        effort = chosen_effort([MeasuredEffort.from_dict(entry) for entry in record["efforts"]], k)
        if condition is None or effort is None:
            return effort
        if self._store.count(condition) < EXACT_BELOW:
            return None
        return effort_under_condition(effort, k, partitions(record["kind"], record["rows"]))

    def _wider(self, effort: Effort) -> Effort | None:
        """Return twice the effort for a graph; None if all its nodes may be kept, or for another index."""
        if not 0 < effort.candidates < self._store.about["index"]["rows"]:
            return None
        return replace(effort, candidates=2 * effort.candidates)


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
        rows = store.rows_of([id for _, id in sorted((-value, id) for id, value in score.items())], columns)
        answers.append(NearestRows([score[id] for id in rows["id"].to_pylist()], rows.to_pydict()))
    return answers


def _rescored(query: Vectors, table: pa.Table, k: int) -> NearestRows:
    if not len(table):
        return NearestRows([], table.drop_columns(["vector", "_distance"]).to_pydict())
    scores = cosines(query, vectors_of(table["vector"]))
    order = best_first(scores, table["id"].to_pylist(), k)
    rows = table.drop_columns(["vector", "_distance"]).take(pa.array(order))
    return NearestRows(scores[order].tolist(), rows.to_pydict())


def _may_be_tied(answer: NearestRows, table: pa.Table) -> bool:
    """Return True if a row that was not returned could have the score of the last row of the answer, or more."""
    size = table["vector"].type.list_size
    farthest = 1 - float(np.max(table["_distance"].to_numpy()))
    return answer.scores[-1] <= farthest + 2 * rounding(size)


def _same_distances(one: pa.Table, other: pa.Table) -> bool:
    if len(one) != len(other):
        return False
    return bool(np.allclose(np.sort(one["_distance"]), np.sort(other["_distance"]), rtol=0, atol=1e-6))
