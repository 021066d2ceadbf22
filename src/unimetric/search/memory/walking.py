"""Candidates from a graph, under a condition as well; nothing where the exact way is safer or quicker."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from unimetric.search.memory.exact import Span, candidates
from unimetric.search.memory.graph import chosen_count
from unimetric.search.memory.state import Selection, State

_MOST_WALKED = 8_192
"""Maximum number of candidates of a walk."""
_WALK_COST = 32
"""Rows that are compared exactly in the time in which a walk finds one candidate."""
_WIDER = 6


def walked(state: State, selection: Selection, vectors: NDArray[np.float32], k: int) -> list[NDArray[np.intp] | None]:
    """Return for every query [Q, E] places among which are its nearest chosen rows; None where the exact way is needed.

    A walk is complete for the nearest rows, whatever condition they meet. So its candidates that meet a condition are
    the nearest that do, as far as they are in its nearer half: where k are not, the walk is repeated wider, then given
    up. Where few rows meet the condition, comparing all of them is quicker.
    """
    count = chosen_count(state.counts, k)
    if count is None or state.graph is None:
        return [None for _ in vectors]
    # A condition that all rows meet is none.
    chosen = None if selection.count == len(state) and state.dead is None else selection.base
    if chosen is not None:
        share = selection.count / max(1, len(state))
        count = max(count, math.ceil(3 * k / share) + 16)
        if count > _MOST_WALKED or selection.count <= _WALK_COST * count:
            return [None for _ in vectors]
    further = _unlinked(state, selection, vectors, k)
    return [
        None if near is None else np.concatenate([near, far])
        for near, far in zip((_walk(state, chosen, query, k, count) for query in vectors), further, strict=True)
    ]


def _walk(
    state: State, chosen: NDArray[np.bool_] | None, query: NDArray[np.float32], k: int, count: int
) -> NDArray[np.intp] | None:
    graph = state.graph
    if graph is None:
        return None
    while count <= _MOST_WALKED:
        places = graph.walk(query, min(count, len(graph)))
        if chosen is None:
            return places
        hits = np.flatnonzero(chosen[places])
        if len(hits) >= k and hits[k - 1] < len(places) / 2:
            return places[hits]
        if count >= len(graph):
            break
        count *= _WIDER
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
