"""Operations of a search index that concern the old vectors as well, while an upgrade keeps both."""

from __future__ import annotations

from collections.abc import Sequence

from unimetric.search.conditions import Condition
from unimetric.search.items import ItemNotFoundError
from unimetric.search.stores import previous_store
from unimetric.search.stores.base import Store


def delete_rows(store: Store, condition: Condition | None, ids: Sequence[str] | None) -> int:
    """Delete the rows with these ids, or all, that meet a condition; return their number.

    Args:
        store: The vectors that are searched.
        condition: The condition; with None, nothing is deleted but by id.
        ids: The only rows to delete.
    """
    previous = previous_store(store.place)
    deleted = 0
    # From the old vectors first: what they lack does not come back.
    for each in (store,) if previous is None else (previous, store):
        if ids is not None:
            deleted = each.delete_ids(list(dict.fromkeys(ids)), condition)
        elif condition is not None:
            deleted = each.delete(condition)
    return deleted


def thumbnail_before(store: Store, id: str) -> bytes:
    """Return the thumbnail of a row that was moved; the old row has it.

    Raises:
        ItemNotFoundError: there is none.
    """
    previous = previous_store(store.place)
    found = [] if previous is None else previous.rows_of([id], ["thumbnail"])["thumbnail"].to_pylist()
    if not found or found[0] is None:
        raise ItemNotFoundError(f"the item {id} has no thumbnail; index it again")
    return bytes(found[0])
