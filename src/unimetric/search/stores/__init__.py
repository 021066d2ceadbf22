"""The engines that hold a search database, one each: so far LanceDB alone.

- `base`: the `Store` that an engine implements, and the code that all share
- `lancedb`: a `Store` in LanceDB tables; `lancedb_tables` opens them, `lancedb_sql` prints conditions, `lancedb_errors`
  explains failures
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unimetric.search.stores.base import Store, location


def open_store(db: str | Path) -> Store:
    """Open a database that is there.

    Raises:
        DatabaseMissingError: there is none.
        DatabaseError: it is damaged.
    """
    from unimetric.search.stores.lancedb import LanceStore

    return LanceStore.open(location(db))


def create_store(db: str | Path, about: dict[str, Any], vector_size: int) -> Store:
    """Open a database, or make an empty one with this record.

    Raises:
        UserError: the folder holds other things.
        DatabaseError: it is damaged or cannot be written.
    """
    from unimetric.search.stores.lancedb import LanceStore

    return LanceStore.create(location(db), about, vector_size)
