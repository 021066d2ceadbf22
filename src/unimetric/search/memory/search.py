"""Search in memory: vectors and rows are read from the database once, then kept up with it."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.search.conditions import Condition
from unimetric.search.database_search import DatabaseSearch
from unimetric.search.memory.base import ScoredRow, VectorSearch
from unimetric.search.memory.exact import Span, candidates
from unimetric.search.memory.state import Selection, Selections, State, caught_up, folded, read_state
from unimetric.search.scoring import best_first, cosines
from unimetric.search.stores.base import RowNumbers, Store

EXACT_ROWS = 100_000
"""Databases of up to so many rows are read into memory and searched exactly."""

_ATTEMPTS = 3
"""A condition is evaluated so often while another process writes, before the database is asked instead."""


class MemorySearch:
    """A `VectorSearch` that answers from memory, and as another one does where it cannot.

    It never answers from an old version: with every search it reads what was written since.

    Args:
        store: The database.
        numbers: Its row numbers.
        otherwise: Answers while the rows are not in memory.
    """

    def __init__(self, store: Store, numbers: RowNumbers, otherwise: VectorSearch) -> None:
        self._store = store
        self._numbers = numbers
        self._otherwise = otherwise
        self._changing = threading.Lock()
        self._state: State | None = None
        self._selections = Selections(numbers)
        self._asked = 0

    def close(self) -> None:
        """Release the rows."""
        self._state = None
        self._otherwise.close()

    def nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        columns: Sequence[str],
        condition: Condition | None = None,
        exact: bool = False,
    ) -> list[list[ScoredRow]]:
        """Return the k nearest rows to each vector [N, E]; see `VectorSearch.nearest`."""
        self._asked += len(vectors)
        # Reading all rows for a single query would take longer than the query.
        if self._asked <= 1:
            return self._otherwise.nearest(vectors, k, columns, condition, exact)
        for _ in range(_ATTEMPTS):
            state = self._current(columns)
            if state is None:
                break
            selection = self._select(state, condition)
            if selection is not None:
                return _answers(state, selection, vectors, k, columns)
        return self._otherwise.nearest(vectors, k, columns, condition, exact)

    def _current(self, columns: Sequence[str]) -> State | None:
        """Return the rows of the present version; None where they are not in memory."""
        state = self._state
        if state is not None and state.version == self._store.version:
            return state
        with self._changing:
            state = self._state
            if state is not None:
                state = caught_up(state, self._store, self._numbers, columns, EXACT_ROWS)
            if state is None and self._store.count() <= EXACT_ROWS:
                state = read_state(self._store, self._numbers, columns)
            self._state = None if state is None else folded(state)
            return self._state

    def _select(self, state: State, condition: Condition | None) -> Selection | None:
        """Return the rows that meet a condition; None if the database was changed meanwhile."""
        if condition is None:
            return self._selections.of(state, None)
        with self._changing:
            selection = self._selections.of(state, condition)
        return selection if self._numbers.version == state.version else None


def vector_search(store: Store) -> VectorSearch:
    """Return the way to search a database: in memory where its engine has row numbers, and in the database."""
    database = DatabaseSearch(store)
    return database if store.numbers is None else MemorySearch(store, store.numbers, database)


def _answers(
    state: State, selection: Selection, vectors: NDArray[np.float32], k: int, columns: Sequence[str]
) -> list[list[ScoredRow]]:
    if not selection.count:
        return [[] for _ in vectors]
    spans = [
        Span(state.base.vectors, state.base.inverse, 0, selection.base),
        Span(state.tail.vectors, state.tail.inverse, len(state.base), selection.tail),
    ]
    found = candidates(vectors, [span for span in spans if len(span.vectors)], k)
    return [ranked(state, query, places, k, columns) for query, places in zip(vectors, found, strict=True)]


def ranked(
    state: State, query: NDArray[np.float32], places: NDArray[np.intp], k: int, columns: Sequence[str]
) -> list[ScoredRow]:
    """Return the k best of some places with their columns, by their scores in float64, equal ones by id."""
    scores = cosines(query, state.vectors_at(places))
    order = np.argsort(-scores, kind="stable")
    border = scores[order[: k + 1]]
    if (border[1:] == border[:-1]).any():
        ids = [str(row["id"]) for row in _rows(state, places, ["id"])]
        order = best_first(scores, ids, k)
    order = order[:k]
    return list(zip(_rows(state, places[order], columns), scores[order].tolist(), strict=True))


def _rows(state: State, places: NDArray[np.intp], columns: Sequence[str]) -> list[dict[str, Any]]:
    early = places < len(state.base)
    if early.all():
        return state.base.take(places, columns)
    rows = iter(state.base.take(places[early], columns))
    late = iter(state.tail.take(places[~early] - len(state.base), columns))
    return [next(rows if first else late) for first in early.tolist()]
