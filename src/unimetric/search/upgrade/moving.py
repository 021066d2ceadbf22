"""Rows whose vectors are moved by a map, and their agreement with the old rows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unimetric.search.conditions.tree import Column, Comparison, Condition, Constant
from unimetric.search.rows import MAPPED, signatures
from unimetric.search.scoring import vector_column, vectors_of
from unimetric.search.stores.base import Store
from unimetric.search.upgrade.maps import LARGEST, Map, Vectors


@dataclass(frozen=True)
class Stores:
    """The two sets of vectors of an upgrade.

    Attributes:
        old: Every row, by the old model. It is searched until the new set is, and kept until the upgrade is finished.
        new: Rows by the new model; from the moment when it is searched, every row.
        fingerprint: The new model's, in each row that it embedded; a row that was moved has `MAPPED`.
    """

    old: Store
    new: Store
    fingerprint: str

    @property
    def embedded(self) -> Condition:
        """The condition on new rows that the new model embedded them."""
        return Comparison("=", Column("fingerprint", "text"), Constant(self.fingerprint, "text"))

    def embedded_ids(self) -> set[str]:
        """Return the ids of rows that the new model embedded."""
        return set(self.new.rows(["id"], self.embedded)["id"].to_pylist())

    def pairs(self) -> tuple[list[str], Vectors, Vectors]:
        """Return ids, old vectors [P, D] and new ones [P, E] of at most `LARGEST` images that both models embedded."""
        ids = sorted(self.embedded_ids())[:LARGEST]
        old = _by_id(self.old.rows_of(ids, ["id", "vector", "content_hash"]))
        new = _by_id(self.new.rows_of(ids, ["id", "vector", "content_hash"]))
        # A file that was replaced in between is not the same image.
        same = [id for id in ids if id in old and id in new and old[id][1] == new[id][1]]
        vectors = [
            np.array([rows[id][0] for id in same], np.float32).reshape(len(same), size)
            for rows, size in ((old, self.old.vector_size), (new, self.new.vector_size))
        ]
        return same, vectors[0], vectors[1]


def columns_of(store: Store) -> list[str]:
    """Return all columns but vector and thumbnail."""
    return [name for name in store.column_names if name not in ("vector", "thumbnail")]


def moved_rows(rows: pa.Table, vectors: NDArray[np.float32]) -> pa.Table:
    """Return rows with moved vectors [N, E], marked as such and without thumbnails, which the old rows have."""
    table = rows.drop_columns([name for name in ("vector", "thumbnail", "fingerprint") if name in rows.column_names])
    table = table.append_column("fingerprint", pa.array([MAPPED] * len(rows), pa.string()))
    table = table.append_column("vector", vector_column(np.asarray(vectors, np.float32)))
    return table.append_column("thumbnail", pa.nulls(len(rows), pa.binary()))


def copy_rows(stores: Stores, move: Callable[[Vectors], Vectors], *, is_searched: bool) -> None:
    """Make the new set agree with the old one: moved vectors for rows that it lacks, and nothing that was deleted.

    Args:
        stores: Both sets.
        move: The map.
        is_searched: The new set is searched already: its embedded rows are newer than the old ones, and are kept.
    """
    columns = columns_of(stores.old)
    seen: set[str] = set()
    look(stores.old)
    for block in stores.old.blocks([*columns, "vector"]):
        ids = block["id"].to_pylist()
        seen.update(ids)
        present = signed(stores.new, ids)
        wanted = signatures(block.drop_columns(["vector"]))
        outdated = [
            id
            for id in ids
            if id not in present or (present[id][0] != wanted[id][1] and (not is_searched or present[id][1] == MAPPED))
        ]
        # Whatever was deleted since stays deleted.
        alive = set(stores.old.rows_of(outdated, ["id"], newest=True)["id"].to_pylist())
        places = [place for place, id in enumerate(ids) if id in alive]
        if places:
            some = block.take(places)
            stores.new.merge(moved_rows(some, move(vectors_of(some["vector"]))))
    look(stores.new)
    listed = stores.new.rows(["id"], not_embedded(stores) if is_searched else None)["id"].to_pylist()
    stores.new.delete_ids(sorted(set(listed) - seen))


def look(store: Store) -> None:
    """Look for commits of other processes, which are otherwise seen within seconds only."""
    store.rows_of([""], ["id"], newest=True)


def move_again(stores: Stores, move: Map) -> None:
    """Give every row that is not embedded yet the vector of a newer map."""
    pending = set(stores.new.rows(["id"], not_embedded(stores))["id"].to_pylist())
    columns = columns_of(stores.new)
    for block in stores.old.blocks(["id", "vector"]):
        places = [place for place, id in enumerate(block["id"].to_pylist()) if id in pending]
        if not places:
            continue
        some = block.take(places)
        moved = dict(zip(some["id"].to_pylist(), move(vectors_of(some["vector"])), strict=True))
        fresh = stores.new.rows_of(list(moved), columns)
        fresh = fresh.filter(pc.equal(fresh["fingerprint"], MAPPED))
        if len(fresh):
            vectors = np.array([moved[id] for id in fresh["id"].to_pylist()], np.float32)
            stores.new.merge(moved_rows(fresh, vectors), insert=False)


def not_embedded(stores: Stores) -> Condition:
    """Return the condition on new rows that they are moved."""
    return Comparison("=", Column("fingerprint", "text"), Constant(MAPPED, "text"))


def signed(store: Store, ids: Sequence[str]) -> dict[str, tuple[bytes, str]]:
    """Return `signature` and fingerprint of the rows with these ids."""
    rows = store.rows_of(ids, columns_of(store))
    fingerprints = rows["fingerprint"].to_pylist()
    signs = signatures(rows)
    return {id: (signs[id][1], fingerprints[place]) for place, id in enumerate(rows["id"].to_pylist())}


def _by_id(rows: pa.Table) -> dict[str, tuple[list[float], str]]:
    columns = [rows[name].to_pylist() for name in ("id", "vector", "content_hash")]
    return {id: (vector, content) for id, vector, content in zip(*columns, strict=True)}
