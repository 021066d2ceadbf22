"""The engines that hold a search database: LanceDB, in files and object storage, and Milvus.

- `base`: the `Store` that an engine implements, and the code that all share
- `live`: which vectors of a database are searched, while and after it is upgraded to another model
- `lancedb`: a `Store` in LanceDB tables; `lancedb_tables` opens them, `lancedb_sql` prints conditions, `lancedb_errors`
  explains failures
- `lancedb_coded`: the same with vectors in other types than float32
- `milvus`: a `Store` in Milvus collections; `milvus_connection` connects, `milvus_expression` prints conditions
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimetric.search.stores.base import Store, is_milvus, location
from unimetric.search.stores.live import check_live, place_of, read_live, root_of

if TYPE_CHECKING:
    from unimetric.search.stores.lancedb import LanceStore


def open_store(db: str | Path) -> Store:
    """Open a database that is there, by the vectors that are searched.

    Raises:
        DatabaseMissingError: there is none.
        DatabaseError: it is damaged.
    """
    return _guarded(open_place(live_place(location(db))))


def create_store(db: str | Path, about: dict[str, Any], vector_size: int) -> Store:
    """Open a database, or make an empty one with this record.

    Raises:
        UserError: the folder holds other things.
        DatabaseError: it is damaged or cannot be written.
    """
    return _guarded(create_place(live_place(location(db)), about, vector_size))


def live_place(root: str) -> str:
    """Return the place of the vectors that a database is searched by."""
    return place_of(root, read_live(root).live)


def previous_store(place: str) -> Store | None:
    """Return the old model's vectors during an upgrade; None without one, or where ``place`` is not searched itself."""
    root = root_of(place)
    live = read_live(root)
    if live.previous is None or place_of(root, live.live) != place:
        return None
    return open_place(place_of(root, live.previous))


def open_place(place: str) -> Store:
    """Open the tables at a place, whether or not they are those of a database that are searched."""
    from unimetric.search.stores.lancedb import LanceStore
    from unimetric.search.stores.milvus import MilvusStore

    if is_milvus(place):
        return MilvusStore.open(place)
    return _decoding(LanceStore.open(place))


def create_place(place: str, about: dict[str, Any], vector_size: int) -> Store:
    """Open the tables at a place, or make them."""
    from unimetric.search.stores.lancedb import LanceStore
    from unimetric.search.stores.milvus import MilvusStore

    if is_milvus(place):
        return MilvusStore.create(place, about, vector_size)
    return _decoding(LanceStore.create(place, about, vector_size))


def _decoding(store: LanceStore) -> Store:
    from unimetric.search.stores.lancedb_coded import CodedStore

    return store if store.about.get("vector_type", "float32") == "float32" else CodedStore.around(store)


def _guarded(store: Store) -> Store:
    store.before_change = partial(check_live, store.place)
    return store
