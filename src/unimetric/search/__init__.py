"""Search in a database of embedded images: index, query, delete. Needs the extra ``unimetric[search]``.

- `index`: `SearchIndex`, the one object that everything else works through
- `items`: what goes in and what comes out
- `calibration`: match or no match, and how sure
- `filters`: conditions on the rows, typed by people
- `store`: the LanceDB tables
- `preparation`: from a file's bytes to its hash, pixels and thumbnail
- `approximate`, `effort`: which index, and how hard it is searched
- `hyperbolic`: search by hyperbolic distance
- `engine`: torch or an exported file for the queries
- `model`: what is recorded of the model, and how it is loaded
- `rows`: ids, metadata columns, and what has changed
- `writing`: embed and write, commit by commit
- `indexing`: whole folders and manifests, resumable
"""

from __future__ import annotations

from unimetric.search.index import SearchIndex
from unimetric.search.items import Added, ItemNotFoundError, Match, NewItem, Refused, StoredItem

__all__ = ["Added", "ItemNotFoundError", "Match", "NewItem", "Refused", "SearchIndex", "StoredItem"]
