"""The rows of one version of a database in memory, and the way to those of the next version.

A state is never changed. The rows that were written since it was read become its tail, those that were deleted are
masked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from unimetric.search.conditions import Condition
from unimetric.search.items import no_item
from unimetric.search.memory.blocks import Block, empty_block, joined, read_block
from unimetric.search.memory.graph import Graph
from unimetric.search.scoring import Vectors
from unimetric.search.stores.base import Store
from unimetric.search.stores.lancedb_numbers import RowNumbers

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")
_FOLDED = 1_000
"""Rows of a tail, at least, that are joined to the rows before them."""
_CONDITIONS = 32
"""Conditions whose rows are kept."""


@dataclass(frozen=True, eq=False)
class State:
    """The rows of one version.

    Attributes:
        version: The database's.
        base: Most rows. Its places come first, then those of the tail.
        dead: The places of ``base`` whose rows were deleted, bool [N]; None for none.
        alive: The number of the others.
        tail: Rows that were written later; all are there.
        graph: Over the first places of the base; None for an exact search.
        counts: From `measured_counts`.
        selections: From `selected`, by their conditions.
        met: For each condition that was evaluated, the places of ``base`` whose rows meet it, bool [N], the numbers of
            the tail then, and those of them that do. States of the same base share it: what holds for a number holds
            for good, since a row that is replaced has a new number.
    """

    version: int
    base: Block
    dead: NDArray[np.bool_] | None
    alive: int
    tail: Block
    graph: Graph | None = None
    counts: Mapping[int, int | None] = field(default_factory=dict)
    selections: dict[Condition | None, Selection] = field(default_factory=dict, init=False)
    met: dict[Condition, tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.alive + len(self.tail)

    @cached_property
    def odd_nodes(self) -> NDArray[np.intp]:
        """The places in the graph of vectors that no walk can find."""
        nodes = 0 if self.graph is None else len(self.graph)
        return self.base.odd_places[self.base.odd_places < nodes]

    @cached_property
    def is_linked(self) -> bool:
        """True if a walk can find every row."""
        linked = 0 if self.graph is None else len(self.graph)
        return linked == len(self.base) and not len(self.tail) and not len(self.odd_nodes)

    @cached_property
    def levels(self) -> list[tuple[int, int]]:
        """The measured depths of walks, ascending, with their numbers of candidates."""
        return sorted((depth, count) for depth, count in self.counts.items() if count is not None)

    @property
    def last(self) -> int:
        """The highest number."""
        return max(self.base.last, self.tail.last)

    def values_at(self, places: NDArray[np.intp], columns: Sequence[str]) -> dict[str, list[Any]]:
        """Return the values of places by column."""
        if not len(self.tail) or (early := places < len(self.base)).all():
            return self.base.values(places, columns)
        first, later = np.flatnonzero(early), np.flatnonzero(~early)
        order = np.argsort(np.concatenate([first, later])).tolist()
        head = self.base.values(places[first], columns)
        rest = self.tail.values(places[later] - len(self.base), columns)
        return {name: [(head[name] + rest[name])[place] for place in order] for name in columns}

    def place_of(self, id: str) -> int:
        """Return the place of the row of an id, or raise an `ItemNotFoundError`."""
        place = self.tail.place_of(id)
        if place is not None:
            return len(self.base) + place
        place = self.base.place_of(id)
        if place is None or (self.dead is not None and self.dead[place]):
            raise no_item(id)
        return place

    def vectors_at(self, places: NDArray[np.intp]) -> Vectors:
        """Return the vectors of places, [n, E]."""
        if not len(self.tail):
            return np.asarray(self.base.vectors[places])
        early = places < len(self.base)
        vectors = np.empty((len(places), self.base.vectors.shape[1]), np.float32)
        vectors[early] = self.base.vectors[places[early]]
        vectors[~early] = self.tail.vectors[places[~early] - len(self.base)]
        return vectors


@dataclass(frozen=True, eq=False)
class Selection:
    """The rows of a state that a search compares.

    Attributes:
        base: The chosen places of the base, bool [N]; None for all.
        tail: Those of the tail; None for all.
        count: Their number.
    """

    base: NDArray[np.bool_] | None
    tail: NDArray[np.bool_] | None
    count: int

    @property
    def base_places(self) -> NDArray[np.intp] | None:
        """The chosen places of the base, ascending; None for all."""
        if self.base is None:
            return None
        # Many places would take more memory than the time is worth.
        return self._few_places if self.count < len(self.base) // 4 else np.flatnonzero(self.base)

    @property
    def tail_places(self) -> NDArray[np.intp] | None:
        """The chosen places of the tail."""
        return None if self.tail is None else np.flatnonzero(self.tail)

    @cached_property
    def _few_places(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.base if self.base is not None else ())


def read_state(store: Store, numbers: RowNumbers, columns: Sequence[str]) -> State:
    """Read all rows into memory."""
    while True:
        version = numbers.version
        base = read_block(store, numbers, columns)
        if numbers.version == version:
            return State(version, base, None, len(base), empty_block(store, columns))


def caught_up(state: State, store: Store, numbers: RowNumbers, columns: Sequence[str], most: int) -> State | None:
    """Return the state of the database's version now, given an earlier one.

    None if rows were renumbered, or so many changed (``most`` in the tail) that they are better read anew.
    """
    while True:
        version = numbers.version
        if version == state.version:
            return state
        renewed = _step(state, version, store, numbers, columns, most)
        if numbers.version == version:
            return renewed


def _step(
    state: State, version: int, store: Store, numbers: RowNumbers, columns: Sequence[str], most: int
) -> State | None:
    if numbers.has_moved(state.base.numbers, state.tail.numbers):
        return None
    alive, dead = numbers.count(through=state.base.last), state.dead
    if not state.alive // 2 <= alive <= state.alive:
        return None
    if alive != state.alive:
        dead = ~state.base.mask(numbers.select(through=state.base.last))
    tail = state.tail
    if len(tail) and numbers.count(through=tail.last) - alive != len(tail):
        tail = tail.kept(tail.mask(numbers.select(above=state.base.last, through=tail.last)))
    if store.count() - alive - len(tail) > most:
        return None
    tail = joined(tail, read_block(store, numbers, columns, above=state.last))
    return replace(state, version=version, dead=dead, alive=alive, tail=tail)


def folded(state: State) -> State:
    """Return the same rows without a tail and without masked ones, if these have become many and there is no graph."""
    if state.graph is not None or len(state.tail) <= max(_FOLDED, len(state.base) // 4):
        return state
    base = state.base if state.dead is None else state.base.kept(~state.dead)
    base = joined(base, state.tail)
    tail = state.tail.kept(np.zeros(len(state.tail), bool))
    return replace(state, base=base, dead=None, alive=len(base), tail=tail, met={})


def selected(state: State, numbers: RowNumbers, condition: Condition | None) -> Selection | None:
    """Return the rows of a state that meet a condition; None if the database is of another version now.

    The database evaluates a condition once, and then for new rows alone. Not for several threads at once.
    """
    if condition is None:
        found = Selection(None if state.dead is None else ~state.dead, None, len(state))
    else:
        tail_numbers = state.tail.numbers
        if condition in state.met:
            base, known, met = state.met[condition]
            # Not above the last known one: a compaction may commit lower numbers later.
            new = np.setdiff1d(tail_numbers, known)
            if len(new):
                met = np.union1d(met, numbers.select(condition, above=int(new[0]) - 1))
        else:
            met = numbers.select(condition)
            base = state.base.mask(met)
        if numbers.version != state.version:
            return None
        tail = state.tail.mask(met)
        _keep(state.met, condition, (base, tail_numbers, tail_numbers[tail]))
        base = base if state.dead is None else base & ~state.dead
        found = Selection(base, tail, int(base.sum()) + int(tail.sum()))
    _keep(state.selections, condition, found)
    return found


def _keep(kept: dict[_Key, _Value], key: _Key, value: _Value) -> None:
    kept.pop(key, None)
    while len(kept) >= _CONDITIONS:
        del kept[next(iter(kept))]
    kept[key] = value
