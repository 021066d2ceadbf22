"""Search in a database of embedded images: index, query, delete. Needs the extra ``unimetric[search]``.

- `index`: `SearchIndex`, the object that everything else works through
- `query`: check and answer queries; `hyperbolic` compares by hyperbolic distance
- `writing`: embed and write, commit by commit; `indexing` does it for whole folders and manifests
- `maintenance`: the approximate index, searched with an `effort` that is measured
- `conditions`: conditions on the rows, as people write them
- `stores`: the engines that hold the rows
- `items`, `rows`: the items of a database, and their form in a table
- `preparation`: from a file's bytes to its hash, pixels and thumbnail
- `upgrade`: the change to another model while the database is searched
- `model`, `engine`: the model of a database, and how queries are embedded
- `calibration`: match or no match, and how sure; `calibrating` measures it on a database
- `guarantee`: sets of answers that hold a right one with a promised probability
- `errors`: typed errors
"""

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
