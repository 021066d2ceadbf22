"""Candidates from a graph, under a condition as well; nothing where the exact way is safer or quicker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimetric.search.memory.exact import Span, candidates
from unimetric.search.memory.graph import Graph
from unimetric.search.memory.state import Selection, State

_WALK_COST = 32
"""Rows that are compared exactly in the time in which a walk finds one candidate."""
_SPREAD = 1.3
"""Factor on the depth at which the k-th chosen row is expected."""


def walked(state: State, selection: Selection, vectors: NDArray[np.float32], k: int) -> list[NDArray[np.intp] | None]:
    """Return for every query [Q, E] places among which are its nearest chosen rows; None where the exact way is needed.

    The counts of candidates were measured for the nearest 10, 100 and 1,000 rows. A walk with one of them is complete
    to that depth, whatever condition rows meet: if k of the rows that deep meet it, they are the nearest that do.
    Otherwise the next count is tried, and in the end the exact way. Where few rows meet the condition, comparing all of
    them is quicker.
    """
    # A condition that all rows meet is none.
    chosen = None if selection.count == len(state) and state.dead is None else selection.base
    share = 1.0 if chosen is None else selection.count / max(1, len(state))
    # They were measured for so many rows beside the query's own.
    expected = k - 1 if chosen is None else k * _SPREAD / share
    levels = [
        (depth, count)
        for depth, count in sorted(state.counts.items())
        if count is not None and depth >= expected and (chosen is None or selection.count > _WALK_COST * count)
    ]
    if not levels or state.graph is None:
        return [None for _ in vectors]
    further = _unlinked(state, selection, vectors, k)
    graph = state.graph
    return [
        None if near is None else np.concatenate([near, far])
        for near, far in zip((_walk(graph, chosen, query, k, levels) for query in vectors), further, strict=True)
    ]


def _walk(
    graph: Graph,
    chosen: NDArray[np.bool_] | None,
    query: NDArray[np.float32],
    k: int,
    levels: Sequence[tuple[int, int]],
) -> NDArray[np.intp] | None:
    for depth, count in levels:
        places = graph.walk(query, min(count, len(graph)))
        if chosen is None:
            return places
        hits = np.flatnonzero(chosen[places])
        if len(hits) >= k and hits[k - 1] < depth:
            return places[hits]
    return None


def _unlinked(state: State, selection: Selection, vectors: NDArray[np.float32], k: int) -> list[NDArray[np.intp]]:
    """Return candidates among the rows that are in no graph."""
    nodes = 0 if state.graph is None else len(state.graph)
    base, tail = state.base, state.tail
    spans = []
    if nodes < len(base):
        chosen = None if selection.base is None else selection.base[nodes:]
        spans.append(Span(base.vectors[nodes:], base.inverse[nodes:], nodes, chosen))
    if len(tail):
        spans.append(Span(tail.vectors, tail.inverse, len(base), selection.tail))
    odd = base.odd_places[base.odd_places < nodes]
    if selection.base is not None:
        odd = odd[selection.base[odd]]
    found = candidates(vectors, spans, k) if spans else [np.empty(0, np.intp) for _ in vectors]
    return [np.concatenate([places, odd]) if len(odd) else places for places in found]
