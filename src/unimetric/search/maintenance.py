"""Maintenance of a database's approximate index: its kind, the time to rebuild it, and the rebuild itself."""

import threading
from contextlib import AbstractContextManager
from dataclasses import asdict
from typing import Any

from unimetric.errors import ArgumentError, UserError, nearest_names
from unimetric.search.effort import measure_efforts, partitions
from unimetric.search.errors import UnsupportedError
from unimetric.search.stores.base import Store

EXACT_BELOW = 50_000
"""With fewer rows, every query is compared with all of them."""

KINDS = ("auto", "ivf-pq", "hnsw", "none")
"""The names of indexes; ``auto`` is the one that the number of rows calls for."""

_FEWEST = 256
"""Rows that an index is trained on, at least."""


def kind_for(rows: int, approximate: str = "ivf-pq") -> str:
    """Return the index that a number of rows calls for.

    >>> kind_for(49_999), kind_for(1_000_000)
    ('none', 'ivf-pq')
    """
    return "none" if rows < EXACT_BELOW else approximate


class Maintenance:
    """Keeps the approximate index of one database; ``writing`` is held by all that this process writes.

    With ``exact_only`` there is none, as for the distance of a hyperbolic model.
    """

    def __init__(self, store: Store, writing: AbstractContextManager[Any], exact_only: bool) -> None:
        self._store = store
        self._writing = writing
        self._hyperbolic = exact_only
        self._exact_only = exact_only or store.about.get("vector_type", "float32") != "float32"
        self._thread: threading.Thread | None = None

    def build(self, kind: str = "auto") -> str:
        """Rebuild the index, measure its effort, and return its kind; see `SearchIndex.build_index`."""
        with self._writing:
            rows = self._store.count()
            chosen = self._checked(kind, rows)
            self._store.compact()
            name, efforts = None, []
            if chosen == "none":
                self._store.drop_index()
            else:
                parts = partitions(chosen, rows)
                name = self._store.make_index(chosen, parts)
                efforts = [asdict(entry) for entry in measure_efforts(self._store, chosen, parts)]
            record = {"kind": chosen, "rows": rows, "name": name, "efforts": efforts}
            self._store.write_about({**self._store.read_about(), "index": record})
            return chosen

    def optimise(self) -> None:
        """Merge small files, and make or refresh the index by the size of the database."""
        with self._writing:
            rows, record = self._store.count(), self._store.about["index"]
            grown = rows >= 4 * record["rows"]
            few = self._exact_only or rows < EXACT_BELOW
            # Rebuilding a graph each time takes too long, and "none" may be the user's choice.
            if few or (record["kind"] in ("none", "hnsw") and not grown):
                self._store.compact()
            else:
                # Rebuild, because after LanceDB's own refresh an IVF-PQ index takes nearly twice the time for every
                # search (measured with a million rows), and rebuilding takes seconds.
                self.build("auto" if grown else record["kind"])

    def run_if_due(self) -> bool:
        """`optimise` where a size was reached that calls for an index, or many rows are not in it yet."""
        if not self._is_due():
            return False
        self.optimise()
        return True

    def start_if_due(self) -> None:
        """Call `run_if_due` in a separate thread, so that adding an image does not wait for an index."""
        running = self._thread is not None and self._thread.is_alive()
        if not running and self._is_due():
            self._thread = threading.Thread(target=self.run_if_due, name="search-index")
            self._thread.start()

    def wait(self) -> None:
        """Wait for that thread."""
        if self._thread is not None:
            self._thread.join()

    def _is_due(self) -> bool:
        if self._exact_only:
            return False
        rows = self._store.count()
        if rows < EXACT_BELOW:
            return False
        index = self._store.index
        if index is None or index.name != self._store.about["index"]["name"]:
            return True
        return index.missing >= max(10_000, rows // 10)

    def _checked(self, kind: str, rows: int) -> str:
        if kind not in KINDS:
            raise ArgumentError(f"unknown kind of index {kind!r}; {nearest_names(kind, KINDS)}")
        if self._exact_only and kind not in ("auto", "none"):
            reason = "a hyperbolic model is" if self._hyperbolic else "vectors of another type than float32 are"
            raise UserError(f"index of kind {kind!r}: {reason} always searched exactly; use none")
        chosen = kind_for(rows, self._store.kinds[0]) if kind == "auto" else kind
        if chosen != "none" and chosen not in self._store.kinds:
            raise UnsupportedError(
                f"index of kind {kind!r}: this database supports {', '.join(self._store.kinds)} only"
            )
        if chosen != "none" and rows < _FEWEST:
            raise UserError(f"an index of kind {chosen} needs {_FEWEST} rows, the database has {rows}; use none")
        return "none" if self._exact_only else chosen
