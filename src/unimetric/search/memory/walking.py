"""Candidates from a graph, under a condition as well; nothing where the exact way is safer or quicker."""

import numpy as np
from numpy.typing import NDArray

from unimetric.search.memory.exact import Span, candidates
from unimetric.search.memory.state import Selection, State
from unimetric.search.scoring import Vectors

_WALK_COST = 32
"""Rows that are compared exactly in the time in which a walk finds one candidate."""
_SPREAD = 1.3
"""Factor on the depth at which the k-th chosen row is expected."""


def walked(state: State, selection: Selection, vectors: Vectors, k: int) -> list[NDArray[np.intp] | None]:
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
