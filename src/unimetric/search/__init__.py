"""Search in a database of embedded images: index, query, delete. Needs the extra ``unimetric[search]``."""

from unimetric.search.errors import (
    DatabaseError,
    DatabaseMissingError,
    FilterError,
    ModelMismatchError,
    NotCalibratedError,
)
from unimetric.search.guarantee import Guarantee
from unimetric.search.index import SearchIndex
from unimetric.search.items import Added, ItemNotFoundError, Match, NewItem, Refused, StoredItem

__all__ = [
    "Added",
    "DatabaseError",
    "DatabaseMissingError",
    "FilterError",
    "Guarantee",
    "ItemNotFoundError",
    "Match",
    "ModelMismatchError",
    "NewItem",
    "NotCalibratedError",
    "Refused",
    "SearchIndex",
    "StoredItem",
]
