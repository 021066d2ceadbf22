"""Searches in an open database: checks of the arguments, the nearest rows, and the confidence of an answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from unicodedata import normalize

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unimetric.errors import ArgumentError, UserError, check_arguments, check_kind, nearest_names, shown
from unimetric.search.calibration import Calibration, strength_of
from unimetric.search.columns import ColumnSummary, column_summaries
from unimetric.search.conditions import Condition, all_of, equals, is_one_of, parse_condition
from unimetric.search.copies import CopyFolder
from unimetric.search.database_search import NearestRows, VectorSearch, nearest_hyperbolic
from unimetric.search.errors import NotCalibratedError
from unimetric.search.guarantee import Guarantee, SetLimit, find_sets, limit_of
from unimetric.search.items import Match, StoredItem, no_item
from unimetric.search.memory.search import MemorySearch, vector_search
from unimetric.search.rows import metadata_of, stored_item
from unimetric.search.scoring import Vectors, joined
from unimetric.search.sorting import Order, in_order
from unimetric.search.stores.base import KINDS, PerVersion, Store, at_one_version
from unimetric.search.upgrade.both import both_vectors, thumbnail_before

MAX_K = 1000
"""Maximum number of answers to one query."""

_TEXT_COLUMNS = ("id", "dataset", "label", "path", "content_hash")


@dataclass(frozen=True)
class Scope:
    """The rows that a query searches: the only datasets, none for all, and a condition on rows.

    ``limit`` is that of sets with a guarantee; None for the nearest rows.
    """

    datasets: tuple[str, ...]
    condition: Condition | None
    limit: SetLimit | None = None


@check_arguments
class Searcher:
    """Searches in one database by vectors; without a false-match rate, the recorded one counts."""

    def __init__(self, store: Store, false_match_rate: float | None = None) -> None:
        self._store = store
        recorded = store.about["calibration"]
        self._calibration = None if recorded is None else Calibration.from_dict(recorded)
        self._wanted_rate = false_match_rate
        if false_match_rate is not None and self._calibration is None:
            raise UserError(f"false_match_rate is {false_match_rate:g}: {store.place} has no calibrated thresholds")
        self._both = both_vectors(store)
        self._vectors: VectorSearch = self._both or vector_search(store)
        # Functions of the store alone: an index that refers to itself would keep its memory after its end.
        self._counts = PerVersion(store, partial(_count_datasets, store))
        self._answer_columns = PerVersion(store, partial(_answer_columns, store))
        self._columns = PerVersion(store, partial(column_summaries, store))
        self._copies = CopyFolder(store)
        self.threshold_of()

    def close(self) -> None:
        """Release the vectors in memory and the database."""
        self._vectors.close()
        self._store.close()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model: its backbone, trained weights, input size and geometry, without any path."""
        return str(self._store.about["model"]["fingerprint"])

    @property
    def model(self) -> str:
        """The model's folder, as it was recorded."""
        return str(self._store.about["model"]["folder"])

    @property
    def embedding_size(self) -> int:
        """The length of a query's vector: E, or E + D during an upgrade where both models answer."""
        return self._store.vector_size if self._both is None else self._both.vector_size

    @property
    def shortened_to(self) -> int | None:
        """The length of a vector, if it is shorter than the model's own."""
        return self._store.about["model"].get("shortened_to")  # type: ignore[no-any-return]

    @property
    def metadata_columns(self) -> dict[str, str]:
        """The type of every metadata column by its name: text, number, boolean, date or time."""
        return self._store.metadata_columns

    @property
    def group_copies(self) -> bool:
        """True if searches fold copies of a picture by default, as recorded when indexing."""
        return self._copies.by_default

    @property
    def false_match_rate(self) -> float | None:
        """The calibrated share of searches for absent things that the threshold takes for matches, or None."""
        rate = self._store.about["false_match_rate"] if self._wanted_rate is None else self._wanted_rate
        return None if rate is None else float(rate)

    def threshold_of(self, datasets: Sequence[str] | None = None) -> float | None:
        """Return the score from which an answer in these datasets is a match at the false-match rate.

        A single dataset has its own if it was measured. None without a rate or a calibration, and with too few queries
        for the rate.
        """
        rate = self.false_match_rate
        if self._calibration is None or rate is None:
            return None
        return self._calibration.threshold(
            rate, None if datasets is None else list(map(self._present_dataset, datasets))
        )

    def columns(self) -> list[ColumnSummary]:
        """Return the range and the choices of every metadata column that a condition may name."""
        return self._columns.get()

    def datasets(self) -> dict[str, int]:
        """Return the number of rows of each dataset, by name in alphabetical order."""
        return dict(self._counts.get())

    def count(self, dataset: str | None = None) -> int:
        """Return the number of rows, of one dataset or of all."""
        return self._store.count(None if dataset is None else self._in_dataset(dataset))

    def item(self, id: str) -> StoredItem:
        """Return one row, or raise an `ItemNotFoundError`."""
        return stored_item(self._row(id, row_columns(self._store)))

    def thumbnail(self, id: str) -> bytes:
        """Return a JPEG of at most `THUMBNAIL_SIDE` pixels a side, without metadata, or raise `ItemNotFoundError`."""
        content = self._row(id, ["thumbnail"])["thumbnail"][0].as_py()
        return thumbnail_before(self._store, id) if content is None else bytes(content)

    def sample(
        self,
        n: int,
        seed: int = 0,
        datasets: Sequence[str] | None = None,
        *,
        where: str | None = None,
        order: Order | None = None,
        offset: int = 0,
    ) -> list[StoredItem]:
        """Return n distinct rows after the first ``offset``, fewer at the end; the same ones for the same seed.

        They meet the condition ``where``, and come in a random order or that of a column; errors are as in `search`.
        """
        if min(n, offset, seed) < 0:
            raise ArgumentError(f"n is {n}, offset {offset}, seed {seed}: use 0 or more")
        condition = self._scope(1, datasets, where).condition
        self._check_order(order)
        return at_one_version(self._store, lambda: self._sampled(n, seed, condition, order, offset))

    def prepare(self) -> None:
        """Read the vectors into memory now; where their graph has to be made first, wait for it."""
        if not self._is_hyperbolic:
            self._vectors.prepare(self._answer_columns.get())

    def check(
        self,
        k: int = 10,
        datasets: Sequence[str] | None = None,
        where: str | None = None,
        guarantee: float | Guarantee | None = None,
        order: Order | None = None,
    ) -> None:
        """Check the arguments of `search` as it does, and the column of an order, without searching."""
        self._scope(k, datasets, where, guarantee)
        self._check_order(order)

    def search_vectors(
        self,
        vectors: NDArray[np.float32],
        k: int = 10,
        *,
        datasets: Sequence[str] | None = None,
        where: str | None = None,
        exact: bool = False,
        guarantee: float | Guarantee | None = None,
        group_copies: bool | None = None,
    ) -> list[list[Match]]:
        """Search as `search` does, by vectors [N, E] or [E] of `embedder`."""
        vectors = self._checked_vectors(vectors)
        scope = self._scope(k, datasets, where, guarantee)
        find = partial(self._matches, scope=scope, exact=exact)
        return self._copies.nearest(find, vectors, k, group_copies if guarantee is None else False)

    def search_item(self, id: str, k: int = 10, **filters: Any) -> list[Match]:
        """Return the items most similar to an item of the database, without that item; see `search_together`."""
        return self.search_together(ids=[id], k=k, **filters)

    def search_together(
        self,
        vectors: NDArray[np.float32] | None = None,
        ids: Sequence[str] = (),
        k: int = 10,
        *,
        datasets: Sequence[str] | None = None,
        where: str | None = None,
        exact: bool = False,
        group_copies: bool | None = None,
    ) -> list[Match]:
        """Return the items most similar to several pictures at once, by the mean of their similarities.

        Args:
            vectors: Pictures, as vectors [M, E] of `embedder`.
            ids: Items of the database, which the answer leaves out; an `ItemNotFoundError` names a missing one.
            k: As in `search`, and so the further arguments.
        """
        scope = self._scope(k, datasets, where)
        parts = [] if vectors is None else [self._checked_vectors(vectors)]
        parts += [self._vectors.vectors_of(ids, self._answer_columns.get())] if ids else []
        if not sum(map(len, parts)):
            raise ArgumentError("nothing to search for is given; give vectors or ids")
        find = partial(self._together, ids, scope=scope, exact=exact)
        return self._copies.nearest(find, np.concatenate(parts), k, group_copies, together=True)[0]

    @property
    def _is_hyperbolic(self) -> bool:
        return bool(self._store.about["model"]["geometry"]["name"] == "poincare")

    def _present_dataset(self, name: str) -> str:
        """Return the name of a dataset as the database writes it, which may be in another Unicode form."""
        present = self._counts.get()
        forms = {} if name in present else {normalize("NFC", other): other for other in present}
        return forms.get(normalize("NFC", name), name)

    def _in_dataset(self, name: str) -> Condition:
        return equals("dataset", self._present_dataset(name))

    def _scope(
        self, k: int, datasets: Sequence[str] | None, where: str | None, guarantee: float | Guarantee | None = None
    ) -> Scope:
        """Check the arguments of a search; errors are those of `SearchIndex.search`."""
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
            raise ArgumentError(f"k is {k!r}: use 1 to {MAX_K}")
        listed = [datasets] if isinstance(datasets, str) else [] if datasets is None else list(datasets)
        for name in listed:
            check_kind("datasets", name, str, "the names of datasets")
        names = tuple(dict.fromkeys(map(self._present_dataset, listed)))
        within = None
        if names:
            present = self.datasets()
            for name in names:
                if name not in present:
                    raise ArgumentError(f"unknown dataset {name!r}; {nearest_names(name, present)}")
            within = is_one_of("dataset", names) if len(names) < len(present) else None
        check_kind("where", where, (str, type(None)), "a text")
        condition = None if where is None else parse_condition(where, self._named_columns)
        promised = Guarantee.of(guarantee)
        if promised is None:
            return Scope(names, all_of([within, condition]))
        if where is not None:
            raise ArgumentError("guarantee and where exclude each other: the right items may not meet the condition")
        if self._store.about.get("vector_type") == "bit":
            raise NotCalibratedError("guarantee: a search among vectors of one bit a number may miss the right item")
        # Another process may have calibrated again since this one opened the database.
        recorded = self._store.read_about()["calibration"]
        self._calibration = None if recorded is None else Calibration.from_dict(recorded)
        perfect = 0.0 if self._is_hyperbolic else 1.0
        return Scope(names, within, limit_of(self._calibration, promised, names, self.datasets(), perfect))

    def _checked_vectors(self, vectors: Vectors) -> Vectors:
        """Return queries as float32 [N, E]; an `ArgumentError` for another shape or type, zero or infinite."""
        array = np.asarray(vectors)
        array = array[None] if array.ndim == 1 else array
        size = self.embedding_size
        if array.ndim != 2 or array.shape[1] != size or array.dtype.kind != "f":
            raise ArgumentError(
                f"vectors are {array.dtype} {list(array.shape)}: give floats [N, {size}], as the database's model does"
            )
        array = array.astype(np.float32, copy=False)
        squares = np.add.reduce(np.square(array, dtype=np.float64), axis=1)
        least = -1.0 if self._is_hyperbolic else 0.0
        if not all(least < square < math.inf for square in squares.tolist()):
            raise ArgumentError("vectors hold a row that is not finite or zero: it has no neighbours; leave it out")
        return array

    def _matches(self, vectors: Vectors, k: int, scope: Scope, exact: bool) -> list[list[Match]]:
        """Return the k most similar rows to each vector [N, E], or the set of each; the most similar first, equal ones
        by id."""
        if scope.limit is not None:
            everything = replace(scope, limit=None)
            return find_sets(lambda some, k: self._matches(some, k, everything, exact=True), vectors, scope.limit)
        return [self._judged(rows, scope) for rows in self._scored(vectors, k, scope.condition, exact)]

    def _together(self, ids: Sequence[str], vectors: Vectors, k: int, scope: Scope, exact: bool) -> list[list[Match]]:
        """Return the rows that are most similar to some vectors [M, E] on average, without some items; one answer."""
        query, factor = joined(vectors, self._store.about["model"]["geometry"])
        # As many more, since each item is among its own best matches.
        (rows,) = self._scored(query, k + len(ids), scope.condition, exact)
        rows = NearestRows([score * factor for score in rows.scores], rows.columns)
        found = [match for match in self._judged(rows, scope) if match.id not in ids]
        return [sorted(found, key=lambda match: (-match.score, match.id))[:k]]

    def _row(self, id: str, columns: Sequence[str]) -> pa.Table:
        """Return some columns of one row, or raise an `ItemNotFoundError`."""
        table = self._store.rows(columns, equals("id", id), limit=1)
        if not len(table):
            raise no_item(id)
        return table

    def _sampled(
        self, n: int, seed: int, condition: Condition | None, order: Order | None, offset: int
    ) -> list[StoredItem]:
        if order is None:
            ids = sorted(self._store.rows(["id"], condition)["id"].to_pylist())
            wanted = [ids[place] for place in np.random.default_rng(seed).permutation(len(ids))[offset : offset + n]]
        else:
            table = self._store.rows(list(dict.fromkeys(["id", order.column])), condition)
            values = sorted(zip(table["id"].to_pylist(), table[order.column].to_pylist(), strict=True))
            ordered = in_order(values, lambda row: row[1], order.descending)
            wanted = [id for id, _ in ordered[offset : offset + n]]
        rows = self._store.rows_of(wanted, row_columns(self._store))
        return [stored_item(rows.slice(place, 1)) for place in range(len(rows))]

    def _check_order(self, order: Order | None) -> None:
        check_kind("order", order, (Order, type(None)), 'an Order, such as Order("price")')
        if order is not None and order.column not in self._named_columns:
            near = nearest_names(order.column, self._named_columns)
            raise ArgumentError(f"sort: no column {shown(order.column)}; {near}")

    @property
    def _named_columns(self) -> dict[str, str]:
        """The columns that conditions may name, with their kinds."""
        metadata = {name: kind for name, kind in self._store.metadata_columns.items() if kind in KINDS}
        return {**dict.fromkeys(_TEXT_COLUMNS, "text"), **metadata}

    def _scored(self, vectors: Vectors, k: int, condition: Condition | None, exact: bool) -> list[NearestRows]:
        columns = self._answer_columns.get()
        if self._is_hyperbolic:
            geometry = self._store.about["model"]["geometry"]
            find = partial(nearest_hyperbolic, self._store, geometry, vectors, k, columns, condition)
        else:
            find = partial(self._vectors.nearest, vectors, k, columns, condition, exact)
            if isinstance(self._vectors, MemorySearch):
                return find()
        return at_one_version(self._store, find)

    def _judged(self, rows: NearestRows, scope: Scope) -> list[Match]:
        columns, calibration, count = rows.columns, self._calibration, len(rows.scores)
        confidences: list[float | None] = [None] * count
        is_match: list[bool | None] = [None] * count
        if calibration is not None:
            evidence = list(map(calibration.evidence, rows.scores, columns["dataset"], columns["label"]))
            confidences = calibration.confidences(evidence, columns["dataset"])
        perfect = 0.0 if self._is_hyperbolic else 1.0
        words = [strength_of(score, perfect, found) for score, found in zip(rows.scores, confidences, strict=True)]
        if calibration is not None:
            threshold = self.threshold_of(scope.datasets)
            if self.false_match_rate is None:
                is_match = [
                    None if found is None else word != "weak" for word, found in zip(words, confidences, strict=True)
                ]
            elif threshold is not None:
                is_match = [value >= threshold for value in evidence]
        return [
            Match(*values)
            for values in zip(
                columns["id"],
                rows.scores,
                columns["dataset"],
                columns["label"],
                columns["path"],
                metadata_of(columns, count),
                is_match,
                confidences,
                words,
                strict=True,
            )
        ]


def row_columns(store: Store) -> list[str]:
    """Return all columns but vector, thumbnail and fingerprint."""
    return [name for name in store.column_names if name not in ("vector", "thumbnail", "fingerprint")]


def _answer_columns(store: Store) -> list[str]:
    # Without the content's hash, because each column takes time.
    return [name for name in row_columns(store) if name != "content_hash"]


def _count_datasets(store: Store) -> dict[str, int]:
    counted = pc.value_counts(store.rows(["dataset"])["dataset"]).to_pylist()
    return dict(sorted((entry["values"], entry["counts"]) for entry in counted))
