"""Rows whose vectors are moved by a map, and their agreement with the old rows."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unimetric.search.conditions import equals
from unimetric.search.rows import MAPPED, signatures
from unimetric.search.scoring import Vectors, vector_column, vectors_of
from unimetric.search.stores.base import Store
from unimetric.search.stores.lancedb import LanceStore
from unimetric.search.upgrade.maps import LARGEST, Map

MOVED = equals("fingerprint", MAPPED)
"""The condition on new rows that their vectors were moved by a map."""


@dataclass(frozen=True)
class Stores:
    """The two sets of vectors of an upgrade.

    Attributes:
        old: Every row, by the old model. It is searched until the new set is, and kept until the upgrade is finished.
        new: Rows by the new model; from the moment when it is searched, every row.
        fingerprint: The new model's, in each row that it embedded; a row that was moved has `MAPPED`.
    """

    old: LanceStore
    new: LanceStore
    fingerprint: str

    def embedded_ids(self) -> set[str]:
        """Return the ids of rows that the new model embedded."""
        return set(self.new.rows(["id"], equals("fingerprint", self.fingerprint))["id"].to_pylist())

    def pairs(self) -> tuple[pa.Table, Vectors, Vectors]:
        """Return at most `LARGEST` images that both models embedded: id, dataset and label, old and new vectors."""
        ids = sorted(self.embedded_ids())[:LARGEST]
        old, new = same_images(
            *(
                store.rows_of(ids, ["id", "dataset", "label", "vector", "content_hash"])
                for store in (self.old, self.new)
            )
        )
        return old.select(["id", "dataset", "label"]), vectors_of(old["vector"]), vectors_of(new["vector"])


def same_images(one: pa.Table, other: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Return the rows of both tables with the same id and content, in one order.

    A file that was replaced in between is not the same image.
    """
    places, others = places_of(one), places_of(other)
    same = sorted(places.keys() & others.keys())
    return tuple(
        rows.take(pa.array([at[key] for key in same], pa.int64())) for rows, at in ((one, places), (other, others))
    )


def places_of(rows: pa.Table) -> dict[tuple[str, str], int]:
    """Return the place of every row by its id and the hash of its content."""
    keys = zip(rows["id"].to_pylist(), rows["content_hash"].to_pylist(), strict=True)
    return {key: place for place, key in enumerate(keys)}


def columns_of(store: Store) -> list[str]:
    """Return all columns but vector and thumbnail."""
    return [name for name in store.column_names if name not in ("vector", "thumbnail")]


def with_columns(rows: pa.Table, **columns: Any) -> pa.Table:
    """Return rows with these columns, Arrow arrays, added or in the place of those of the same names."""
    rows = rows.drop_columns([name for name in columns if name in rows.column_names])
    for name, column in columns.items():
        rows = rows.append_column(name, column)
    return rows


def moved_rows(rows: pa.Table, vectors: Vectors) -> pa.Table:
    """Return rows with moved vectors [N, E], marked as such and without thumbnails, which the old rows have."""
    marks, thumbnails = pa.array([MAPPED] * len(rows), pa.string()), pa.nulls(len(rows), pa.binary())
    column = vector_column(np.asarray(vectors, np.float32))
    return with_columns(rows, fingerprint=marks, vector=column, thumbnail=thumbnails)


def copy_rows(stores: Stores, move: Map, *, is_searched: bool) -> None:
    """Make the new set agree with the old one: moved vectors for rows that it lacks, and nothing that was deleted.

    With ``is_searched`` the new set is searched already: its embedded rows are newer than the old ones, and are kept.
    """
    columns = columns_of(stores.old)
    seen: set[str] = set()
    stores.old.look()
    for block in stores.old.blocks([*columns, "vector"]):
        ids = block["id"].to_pylist()
        seen.update(ids)
        # Of a row that was moved, the hash is empty.
        present = signatures(stores.new.rows_of(ids, columns_of(stores.new)))
        wanted = signatures(block.drop_columns(["vector"]))
        outdated = [
            id
            for id in ids
            if id not in present or (present[id][1] != wanted[id][1] and not (is_searched and present[id][0]))
        ]
        # Whatever was deleted since stays deleted.
        alive = set(stores.old.rows_of(outdated, ["id"], newest=True)["id"].to_pylist())
        places = [place for place, id in enumerate(ids) if id in alive]
        if places:
            some = block.take(places)
            stores.new.merge(moved_rows(some, move(vectors_of(some["vector"]))))
    stores.new.look()
    listed = stores.new.rows(["id"], MOVED if is_searched else None)["id"].to_pylist()
    stores.new.delete_ids(sorted(set(listed) - seen))


def move_again(stores: Stores, move: Map) -> None:
    """Give every row that is not embedded yet the vector of a newer map."""
    pending = set(stores.new.rows(["id"], MOVED)["id"].to_pylist())
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
