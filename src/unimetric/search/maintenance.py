"""Maintenance of a database's approximate index: its kind, the time to rebuild it, and the rebuild itself."""

import threading
from dataclasses import asdict

from unimetric.errors import ArgumentError, UserError, check_arguments, nearest_names
from unimetric.search.effort import EXACT_BELOW, measure_efforts, partitions
from unimetric.search.errors import UnsupportedError
from unimetric.search.query import Searcher
from unimetric.search.stores.base import Store

KINDS = ("auto", "ivf-pq", "hnsw", "none")
"""The names of indexes; ``auto`` is the one that the number of rows calls for."""

_FEWEST = 256
"""Rows that an index is trained on, at least."""


@check_arguments
class Maintained(Searcher):
    """Searches in a database whose files and approximate index it maintains.

    There is no such index for the distance of a hyperbolic model, nor for vectors of another type than float32.
    """

    def __init__(self, store: Store, false_match_rate: float | None = None) -> None:
        super().__init__(store, false_match_rate)
        self._exact_only = self._is_hyperbolic or store.about.get("vector_type", "float32") != "float32"
        self._writing = threading.RLock()
        """Held by all that this process writes."""
        self._maintaining: threading.Thread | None = None

    def close(self) -> None:
        """Release the files and the vectors in memory, once the approximate index that is being made is there."""
        if self._maintaining is not None:
            self._maintaining.join()
        super().close()

    def build_index(self, kind: str = "auto") -> str:
        """Rebuild the approximate index, and return its kind: ``ivf-pq``, ``hnsw``, or ``none``, which drops it.

        ``auto`` chooses by the number of rows.

        Raises:
            ArgumentError: unknown kind.
            UserError: too few rows for it, or a hyperbolic model.
        """
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
        """Merge small files, drop deleted rows, and make or refresh the index by the size of the database."""
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
                self.build_index("auto" if grown else record["kind"])

    def maintain(self) -> bool:
        """Run `optimise` if the database has grown to need an index, or many rows are not in it yet."""
        if not self._is_due():
            return False
        self.optimise()
        return True

    def _start_maintaining(self) -> None:
        """Call `maintain` in a separate thread, so that adding an image does not wait for an index."""
        running = self._maintaining is not None and self._maintaining.is_alive()
        if not running and self._is_due():
            self._maintaining = threading.Thread(target=self.maintain, name="search-index")
            self._maintaining.start()

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
            reason = "a hyperbolic model is" if self._is_hyperbolic else "vectors of another type than float32 are"
            raise UserError(f"index of kind {kind!r}: {reason} always searched exactly; use none")
        chosen = ("none" if rows < EXACT_BELOW else self._store.kinds[0]) if kind == "auto" else kind
        if chosen != "none" and chosen not in self._store.kinds:
            raise UnsupportedError(
                f"index of kind {kind!r}: this database supports {', '.join(self._store.kinds)} only"
            )
        if chosen != "none" and rows < _FEWEST:
            raise UserError(f"an index of kind {chosen} needs {_FEWEST} rows, the database has {rows}; use none")
        return "none" if self._exact_only else chosen
