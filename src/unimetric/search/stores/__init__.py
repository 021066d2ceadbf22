"""The engines that hold a search database, each a `Store`: LanceDB, in files and object storage, and Milvus."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from unimetric.search.stores.base import Store, is_milvus, location
from unimetric.search.stores.lancedb import LanceStore
from unimetric.search.stores.lancedb_coded import CodedStore
from unimetric.search.stores.live import check_live, place_of, read_live, root_of
from unimetric.search.stores.milvus import MilvusStore


def open_store(db: str | Path) -> Store:
    """Open a database that is there, by the vectors that are searched; a `DatabaseError` if it cannot be."""
    place = location(db)
    return MilvusStore.open(place) if is_milvus(place) else _guarded(open_place(live_place(place)))


def create_store(db: str | Path, about: dict[str, Any], vector_size: int) -> Store:
    """Open a database, or make an empty one with this record; a `UserError` if the folder holds other things."""
    place = location(db)
    if is_milvus(place):
        return MilvusStore.create(place, about, vector_size)
    return _guarded(create_place(live_place(place), about, vector_size))


def live_place(root: str) -> str:
    """Return the place of the vectors that a database is searched by."""
    return place_of(root, read_live(root).live)


def previous_store(place: str) -> LanceStore | None:
    """Return the old model's vectors during an upgrade; None without one, or where ``place`` is not searched itself."""
    root = root_of(place)
    live = read_live(root)
    if live.previous is None or place_of(root, live.live) != place:
        return None
    return open_place(place_of(root, live.previous))


def open_place(place: str) -> LanceStore:
    """Open the tables at a place, whether or not they are those of a database that are searched."""
    return _decoding(LanceStore.open(place))


def create_place(place: str, about: dict[str, Any], vector_size: int) -> LanceStore:
    """Open the tables at a place, or make them."""
    return _decoding(LanceStore.create(place, about, vector_size))


def _decoding(store: LanceStore) -> LanceStore:
    return store if store.about.get("vector_type", "float32") == "float32" else CodedStore.around(store)


def _guarded(store: LanceStore) -> LanceStore:
    store.before_change = partial(check_live, store.place)
    return store
