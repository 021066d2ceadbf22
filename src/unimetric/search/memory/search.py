"""Search in memory: vectors and rows are read from the database once, then kept up with it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from unimetric.errors import UserError
from unimetric.formats.vectors import as_unicode
from unimetric.search.conditions import Condition
from unimetric.search.database_search import DatabaseSearch, NearestRows, VectorSearch
from unimetric.search.memory.building import build, state_of
from unimetric.search.memory.combining import Combined
from unimetric.search.memory.exact import Span, candidates
from unimetric.search.memory.files import MemoryFiles, Saved
from unimetric.search.memory.state import Selection, State, caught_up, folded, read_state, selected
from unimetric.search.scoring import Vectors, best_first, cosines
from unimetric.search.stores.base import Store
from unimetric.search.stores.lancedb import LanceStore
from unimetric.search.stores.lancedb_numbers import RowNumbers

log = logging.getLogger(__name__)

EXACT_ROWS = 100_000
"""Databases of up to so many rows are read into memory and searched exactly."""

LONGEST_TAIL = 20_000
"""Rows that were written after a graph was made; with more, it is extended."""

_PAUSE = 10.0
"""Seconds from one attempt to make the files to the next."""

_ATTEMPTS = 3
"""A condition is evaluated so often while another process writes, before the database is asked instead."""

_WALK_COST = 32
"""Rows that are compared exactly in the time in which a walk finds one candidate."""
_SPREAD = 1.3
"""Factor on the depth at which the k-th chosen row is expected."""

_Asked: TypeAlias = "tuple[State, Selection, int, bool, tuple[str, ...]]"
"""The rows, the chosen ones of them, k, True to compare with all of these, and the columns to return."""

_Ranked: TypeAlias = "tuple[NDArray[np.intp], list[float]]"
"""Places, and their scores."""


class MemorySearch(DatabaseSearch):
    """Search that answers from memory, and asks the database while the rows are not in memory.

    It never answers from an old version: with every search it reads what was written since. Databases of more than
    `EXACT_ROWS` have a graph in files beside them, which another thread makes and extends.
    """

    def __init__(self, store: Store, numbers: RowNumbers) -> None:
        super().__init__(store)
        self._numbers = numbers
        self._changing, self._evaluating = threading.Lock(), threading.Lock()
        self._state: State | None = None
        self._answers = Combined(_answers)
        self._asked = 0
        self._files = MemoryFiles(store.place)
        self._building: threading.Thread | None = None
        self._stopping = threading.Event()
        self._next_try = 0.0
        self._refused: int | None = None

    def close(self) -> None:
        """Release the rows; what was made of the files so far is kept."""
        self._stopping.set()
        if self._building is not None:
            self._building.join()
        self._state = None

    def prepare(self, columns: Sequence[str]) -> None:
        """Read the rows into memory; where their graph has to be made first, wait for it."""
        self._asked += 2
        if self._current(columns) is None and self._building is not None:
            self._building.join()
            self._current(columns)

    def nearest(
        self, vectors: Vectors, k: int, columns: Sequence[str], condition: Condition | None = None, exact: bool = False
    ) -> list[NearestRows]:
        self._asked += len(vectors)
        # Reading all rows for a single query would take longer than the query.
        if self._asked <= 1:
            return super().nearest(vectors, k, columns, condition, exact)
        for _ in range(_ATTEMPTS):
            state = self._current(columns)
            if state is None:
                break
            selection = state.selections.get(condition) or self._selected(state, condition)
            if selection is not None:
                return self._answers((state, selection, k, exact, tuple(columns)), vectors)
        return super().nearest(vectors, k, columns, condition, exact)

    def vectors_of(self, ids: Sequence[str], columns: Sequence[str] = ()) -> Vectors:
        state = self._current(columns) if self._asked else None
        if state is None:
            return super().vectors_of(ids, columns)
        return state.vectors_at(np.array([state.place_of(as_unicode(id)) for id in ids], np.intp))

    def _selected(self, state: State, condition: Condition | None) -> Selection | None:
        with self._evaluating:
            # Another thread may have evaluated it meanwhile.
            return state.selections.get(condition) or selected(state, self._numbers, condition)

    def _current(self, columns: Sequence[str]) -> State | None:
        """Return the rows of the present version; None where they are not in memory."""
        state = self._state
        if state is not None and state.version == self._store.version:
            return state
        with self._changing:
            state = self._state
            if state is not None:
                state = caught_up(state, self._store, self._numbers, columns, EXACT_ROWS)
            if state is None:
                state = self._read(columns)
            elif len(state.tail) > LONGEST_TAIL and state.graph is not None:
                self._start(columns)
            self._state = None if state is None else folded(state)
            return self._state

    def _read(self, columns: Sequence[str]) -> State | None:
        """Read rows from the database, or from the files of the present version; None if these have to be made."""
        if self._store.count() <= EXACT_ROWS:
            return read_state(self._store, self._numbers, columns)
        stamp = self._files.stamp
        # Checking files takes about a second, so the same ones are not loaded again.
        if stamp is not None and stamp != self._refused:
            state = self._usable(self._files.load(), columns)
            if state is not None:
                return state
            self._refused = stamp
        self._start(columns)
        return None

    def _usable(self, saved: Saved | None, columns: Sequence[str]) -> State | None:
        """Return the present rows from files; None if these hold too little, or of another database."""
        if saved is None or saved.counts is None or not self._numbers.came_from(saved.identity):
            return None
        # A version that does not exist, so that all changes are read.
        return caught_up(state_of(saved, -1), self._store, self._numbers, columns, EXACT_ROWS)

    def _start(self, columns: Sequence[str]) -> None:
        """Start to make the files in another thread, unless that is under way or failed a moment ago."""
        running = self._building is not None and self._building.is_alive()
        if not running and time.monotonic() >= self._next_try and not self._stopping.is_set():
            self._next_try = time.monotonic() + _PAUSE
            self._building = threading.Thread(target=self._build, args=(list(columns),), name="memory", daemon=True)
            self._building.start()

    def _build(self, columns: Sequence[str]) -> None:
        try:
            lock = self._files.lock()
            if lock is None:
                log.info("another process makes the vectors of %s", self._store.place)
                return
            try:
                saved = build(self._store, self._numbers, columns, self._files, self._stopping.is_set)
            finally:
                lock.release()
        except (OSError, UserError) as error:
            log.warning("vectors of %s are not kept in memory: %s", self._store.place, error)
            return
        with self._changing:
            self._state = self._usable(saved, columns) or self._state


def vector_search(store: Store) -> VectorSearch:
    """Return a search in memory, or one that asks the database if its engine does not number its rows."""
    numbers = store.numbers if isinstance(store, LanceStore) else None
    return DatabaseSearch(store) if numbers is None else MemorySearch(store, numbers)


def _answers(asked: _Asked, vectors: Vectors) -> list[NearestRows]:
    """Return the best rows for each vector [N, E], equal ones by id."""
    state, selection, k, exact, columns = asked
    ranked = _ranked(state, selection, vectors, k, exact)
    return [NearestRows(scores, state.values_at(places, columns)) for places, scores in ranked]


def _ranked(state: State, selection: Selection, vectors: Vectors, k: int, exact: bool) -> list[_Ranked]:
    if not selection.count:
        return [(np.empty(0, np.intp), []) for _ in vectors]
    found: list[NDArray[np.intp] | None] = [None] * len(vectors)
    if not exact and state.graph is not None:
        found = _walked(state, selection, vectors, k)
    pending = [place for place, places in enumerate(found) if places is None]
    if pending:
        spans = [
            Span(state.base.vectors, state.base.inverse, 0, selection.base_places),
            Span(state.tail.vectors, state.tail.inverse, len(state.base), selection.tail_places),
        ]
        best = candidates(vectors[pending], [span for span in spans if len(span.vectors)], k)
        for place, places in zip(pending, best, strict=True):
            found[place] = places
    return [
        _best(state, places, cosines(vector, state.vectors_at(places)), k)
        for vector, places in zip(vectors, found, strict=True)
        if places is not None
    ]


def _best(state: State, places: NDArray[np.intp], scores: NDArray[np.float64], k: int) -> _Ranked:
    order = (-scores).argsort(kind="stable")
    best = scores[order[: k + 1]].tolist()
    if len(set(best)) < len(best):
        order = best_first(scores, state.values_at(places, ["id"])["id"], k)
        best = scores[order].tolist()
    return places[order[:k]], best[:k]


def _walked(state: State, selection: Selection, vectors: Vectors, k: int) -> list[NDArray[np.intp] | None]:
    """Return for every query [Q, E] places among which are its nearest chosen rows; None where the exact way is needed.

    The counts of candidates were measured for the nearest 10, 30, 100, 300 and 1,000 rows. A walk with one of them is
    complete to that depth, whatever condition rows meet: if k of the rows that deep meet it, they are the nearest that
    do. Otherwise the next count is tried, and in the end the exact way. Where few rows meet the condition, comparing
    all of them is quicker.
    """
    # A condition that all rows meet has no effect.
    chosen = None if selection.count == len(state) and state.dead is None else selection.base
    share = 1.0 if chosen is None else selection.count / max(1, len(state))
    # The levels were measured without the query's own row.
    expected = k - 1 if chosen is None else k * _SPREAD / share
    near: list[NDArray[np.intp] | None] = [None] * len(vectors)
    pending = list(range(len(vectors)))
    for depth, count in state.levels:
        is_quicker = chosen is None or selection.count > _WALK_COST * count
        if state.graph is None or depth < expected or not is_quicker or not pending:
            continue
        asked = vectors if len(pending) == len(vectors) else vectors[pending]
        for place, found in zip(pending, state.graph.walk(asked, count), strict=True):
            near[place] = found if chosen is None else _complete(found, chosen, k, depth)
        pending = [place for place in pending if near[place] is None]
    if state.is_linked or len(pending) == len(vectors):
        return near
    return _with_unlinked(near, state, selection, vectors, k)


def _complete(found: NDArray[np.intp], chosen: NDArray[np.bool_], k: int, depth: int) -> NDArray[np.intp] | None:
    """Return the chosen ones of the places of a walk; None if fewer than k are within its depth."""
    hits = np.flatnonzero(chosen[found])
    return found[hits] if len(hits) >= k and hits[k - 1] < depth else None


def _with_unlinked(
    near: list[NDArray[np.intp] | None], state: State, selection: Selection, vectors: Vectors, k: int
) -> list[NDArray[np.intp] | None]:
    """Return the places of walks with candidates among the rows that no walk finds."""
    nodes = 0 if state.graph is None else len(state.graph)
    base, tail = state.base, state.tail
    spans = []
    if nodes < len(base):
        chosen = None if selection.base is None else np.flatnonzero(selection.base[nodes:])
        spans.append(Span(base.vectors[nodes:], base.inverse[nodes:], nodes, chosen))
    if len(tail):
        spans.append(Span(tail.vectors, tail.inverse, len(base), selection.tail_places))
    odd = state.odd_nodes
    if selection.base is not None:
        odd = odd[selection.base[odd]]
    far = candidates(vectors, spans, k) if spans else [np.empty(0, np.intp) for _ in vectors]
    return [None if one is None else np.concatenate([one, other, odd]) for one, other in zip(near, far, strict=True)]
