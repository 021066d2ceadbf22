"""Making the files of vectors, rows and graph from a database, with what still holds of the files before."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from unimetric.search.memory.blocks import GONE, Block, places_by_id
from unimetric.search.memory.cells import column_of
from unimetric.search.memory.files import MemoryFiles, Saved, open_graph
from unimetric.search.memory.graph import Graph, measured_counts
from unimetric.search.memory.state import State, read_state
from unimetric.search.stores.base import Store
from unimetric.search.stores.lancedb_numbers import RowNumbers

_REUSED = 0.7
"""The share of a graph's nodes that have to hold for it to be used again."""
_KEPT = 10_000
"""Number of new nodes from which an interrupted graph is saved."""


def build(
    store: Store, numbers: RowNumbers, columns: Sequence[str], files: MemoryFiles, is_stopped: Callable[[], bool]
) -> Saved | None:
    """Read a database, make its graph or extend the one there is, and write the files.

    When it is stopped, the files hold a graph of a part of the rows, from which the next call goes on; None if it was
    stopped before there was much to keep. Errors are `DatabaseError` and `OSError`.
    """
    while True:
        identity = numbers.identity
        state = read_state(store, numbers, columns)
        if numbers.identity == identity:
            break
    before = files.load()
    again = None if before is None else reused(state.base, before)
    block, graph = again or (state.base, Graph.new(store.vector_size))
    del state, before, again
    known = len(graph)
    graph.extend(block.vectors, block.inverse, is_stopped)
    dead = dead_places(block)
    is_whole = len(graph) == len(block)
    if not is_whole and len(graph) - known < _KEPT:
        return None
    counts = measured_counts(graph, block.vectors, block.inverse, dead) if is_whole and not is_stopped() else None
    return files.save(identity, replace(block, by_id=places_by_id(block)), graph, counts)


def state_of(saved: Saved, version: int) -> State:
    """Return the state that files hold, as that of a version."""
    dead = dead_places(saved.block)
    alive = len(saved.block) - (0 if dead is None else int(dead.sum()))
    nothing = saved.block.kept(np.zeros(len(saved.block), np.bool_))
    return State(version, saved.block, dead, alive, nothing, saved.graph, saved.counts or {})


def dead_places(block: Block) -> NDArray[np.bool_] | None:
    """Return which places have no row any more, bool [N]; None if all have one."""
    dead = block.numbers == GONE
    return dead if dead.any() else None


def reused(fresh: Block, before: Saved) -> tuple[Block, Graph] | None:
    """Lay out the current rows by the nodes of the graph of earlier files, these first, and return that graph as well.

    Places of nodes whose row is gone, or has another vector now, keep the old vector and have the number `GONE`. None
    if too few nodes hold.
    """
    nodes = len(before.graph)
    if not nodes or before.block.vectors.shape[1] != fresh.vectors.shape[1]:
        return None
    ids = column_of(before.block.rows.slice(0, nodes), "id")
    found = pc.index_in(ids, value_set=fresh.rows.column("id")).to_numpy(zero_copy_only=False)
    places = np.where(np.isnan(found), GONE, found).astype(np.int64)
    for start in range(0, nodes, 1 << 16):
        part = places[start : start + (1 << 16)]
        old = before.block.vectors[start : start + len(part)]
        part[(fresh.vectors[part] != old).any(axis=1)] = GONE
    holds = places != GONE
    if holds.mean() < _REUSED:
        return None
    rest = np.setdiff1d(np.arange(len(fresh)), places[holds])
    order = np.concatenate([np.where(holds, places, 0), rest])
    block = fresh.taken(order)
    gone = np.flatnonzero(~holds)
    block.numbers[gone] = GONE
    block.vectors[gone] = before.block.vectors[gone]
    block.inverse[gone] = before.block.inverse[gone]
    return block, open_graph(before)
