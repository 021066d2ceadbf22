"""Answers to queries: checks of the arguments, the nearest rows, and the confidence of an answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from unimetric.data.sources.metadata import Value
from unimetric.errors import ArgumentError, UserError, check_kind, nearest_names, shown
from unimetric.search.calibration import Calibration, strength_of
from unimetric.search.conditions import Condition, all_of, equals, is_one_of, parse_condition
from unimetric.search.database_search import nearest_hyperbolic
from unimetric.search.errors import NotCalibratedError
from unimetric.search.guarantee import Guarantee, SetLimit, find_sets, limit_of
from unimetric.search.items import Match, StoredItem, no_item
from unimetric.search.memory.search import MemorySearch, vector_search
from unimetric.search.rows import shown_values
from unimetric.search.scoring import Vectors, joined
from unimetric.search.sorting import Order, in_order
from unimetric.search.stores.base import COLUMNS, KINDS, PerVersion, Store, at_one_version
from unimetric.search.upgrade.both import both_vectors
from unimetric.search.vector_search import NearestRows, VectorSearch

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


_ALL_ROWS = Scope((), None)


class Searcher:
    """Answers queries to one database; threads may share it. Without a false-match rate, the recorded one counts."""

    def __init__(self, store: Store, false_match_rate: float | None) -> None:
        self._store = store
        recorded = store.about["calibration"]
        self._calibration = None if recorded is None else Calibration.from_dict(recorded)
        self._wanted_rate = false_match_rate
        if false_match_rate is not None and self._calibration is None:
            raise UserError(f"false_match_rate is {false_match_rate:g}: {store.place} has no calibrated thresholds")
        self.both = both_vectors(store)
        self._vectors: VectorSearch = self.both or vector_search(store)
        self._counts = PerVersion(store, self._count_datasets)
        # Without the content's hash, because each column takes time.
        self._answer_columns = PerVersion(
            store, lambda: tuple(name for name in self.row_columns if name != "content_hash")
        )
        self.threshold()

    def close(self) -> None:
        """Release the vectors in memory and the database."""
        self._vectors.close()
        self._store.close()

    def prepare(self) -> None:
        """Read the vectors into memory; see `SearchIndex.prepare`."""
        if self.both is not None:
            self.both.prepare()
        elif isinstance(self._vectors, MemorySearch) and not self.is_hyperbolic:
            self._vectors.prepare(self._answer_columns.get())

    @property
    def vector_size(self) -> int:
        """The numbers of a query: E, or E + D during an upgrade where both models answer."""
        return self._store.vector_size if self.both is None else self.both.vector_size

    @property
    def false_match_rate(self) -> float | None:
        """The rate that the threshold keeps; None for matches by their confidence."""
        rate = self._store.about["false_match_rate"] if self._wanted_rate is None else self._wanted_rate
        return None if rate is None else float(rate)

    @property
    def is_hyperbolic(self) -> bool:
        """True if rows are compared by hyperbolic distance."""
        return bool(self._store.about["model"]["geometry"]["name"] == "poincare")

    @property
    def row_columns(self) -> list[str]:
        """All columns but vector, thumbnail and fingerprint."""
        return [name for name in self._store.column_names if name not in ("vector", "thumbnail", "fingerprint")]

    def threshold(self, datasets: Sequence[str] | None = None) -> float | None:
        """Return the score from which an answer in these datasets is a match at the false-match rate.

        None without a rate or a calibration, and with too few queries for the rate.
        """
        rate = self.false_match_rate
        return None if self._calibration is None or rate is None else self._calibration.threshold(rate, datasets)

    def datasets(self) -> dict[str, int]:
        """Return the number of rows of each dataset, by name in alphabetical order."""
        return dict(self._counts.get())

    def _count_datasets(self) -> dict[str, int]:
        counted = pc.value_counts(self._store.rows(["dataset"])["dataset"]).to_pylist()
        return dict(sorted((entry["values"], entry["counts"]) for entry in counted))

    def scope(
        self, k: int, datasets: Sequence[str] | None, where: str | None, guarantee: float | Guarantee | None = None
    ) -> Scope:
        """Check the arguments of a search.

        Raises:
            ArgumentError: k is out of range, there is no such dataset, or ``where`` is combined with a guarantee.
            FilterError: ``where`` is not a condition on the columns.
            NotCalibratedError: the guarantee was not calibrated for these datasets.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
            raise ArgumentError(f"k is {k!r}: use 1 to {MAX_K}")
        if datasets is None and where is None and guarantee is None:
            return _ALL_ROWS
        listed = [datasets] if isinstance(datasets, str) else [] if datasets is None else list(datasets)
        for name in listed:
            check_kind("datasets", name, str, "the names of datasets")
        names = tuple(dict.fromkeys(listed))
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
        perfect = 0.0 if self.is_hyperbolic else 1.0
        return Scope(names, within, limit_of(self._calibration, promised, names, self.datasets(), perfect))

    def checked_vectors(self, vectors: Vectors) -> Vectors:
        """Return queries as float32 [N, E]; an `ArgumentError` for another shape or type, zero or infinite."""
        array = np.asarray(vectors)
        array = array[None] if array.ndim == 1 else array
        size = self.vector_size
        if array.ndim != 2 or array.shape[1] != size or array.dtype.kind != "f":
            raise ArgumentError(
                f"vectors are {array.dtype} {list(array.shape)}: give floats [N, {size}], as the database's model does"
            )
        array = array.astype(np.float32, copy=False)
        squares = np.add.reduce(np.square(array, dtype=np.float64), axis=1)
        least = -1.0 if self.is_hyperbolic else 0.0
        if not all(least < square < math.inf for square in squares.tolist()):
            raise ArgumentError("vectors hold a row that is not finite or zero: it has no neighbours; leave it out")
        return array

    def matches(self, vectors: Vectors, k: int, scope: Scope, exact: bool) -> list[list[Match]]:
        """Return the k most similar rows to each vector [N, E], or the set of each; the most similar first, equal ones
        by id."""
        if scope.limit is not None:
            everything = replace(scope, limit=None)
            return find_sets(lambda some, k: self.matches(some, k, everything, exact=True), vectors, scope.limit)
        return [self._matches(rows, scope) for rows in self._scored(vectors, k, scope.condition, exact)]

    def together(self, ids: Sequence[str], vectors: Vectors, k: int, scope: Scope, exact: bool) -> list[list[Match]]:
        """Return the rows that are most similar to some vectors [M, E] on average, without some items; one answer."""
        query, factor = joined(vectors, self._store.about["model"]["geometry"])
        # As many more, since each item is among its own best matches.
        (rows,) = self._scored(query, k + len(ids), scope.condition, exact)
        rows = NearestRows([score * factor for score in rows.scores], rows.columns)
        found = [match for match in self._matches(rows, scope) if match.id not in ids]
        return [sorted(found, key=lambda match: (-match.score, match.id))[:k]]

    def joint_query(self, vectors: Vectors | None, ids: Sequence[str]) -> Vectors:
        """Return vectors with those of some rows, [M, E]; an `ArgumentError` if there are none, or no such row."""
        parts = [] if vectors is None else [self.checked_vectors(vectors)]
        parts += [self._vectors.vectors_of(ids, self._answer_columns.get())] if ids else []
        if not sum(map(len, parts)):
            raise ArgumentError("nothing to search for is given; give vectors or ids")
        return np.concatenate(parts)

    def row(self, id: str, columns: Sequence[str]) -> pa.Table:
        """Return some columns of one row, or raise an `ItemNotFoundError`."""
        table = self._store.rows(columns, equals("id", id), limit=1)
        if not len(table):
            raise no_item(id)
        return table

    def sample(
        self,
        n: int,
        seed: int,
        datasets: Sequence[str] | None,
        where: str | None = None,
        order: Order | None = None,
        offset: int = 0,
    ) -> list[StoredItem]:
        """Return n distinct rows; see `SearchIndex.sample`."""
        if min(n, offset, seed) < 0:
            raise ArgumentError(f"n is {n}, offset {offset}, seed {seed}: use 0 or more")
        condition = self.scope(1, datasets, where).condition
        self.check_order(order)
        return at_one_version(self._store, lambda: self._sampled(n, seed, condition, order, offset))

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
        rows = self._store.rows_of(wanted, self.row_columns)
        places = {id: place for place, id in enumerate(rows["id"].to_pylist())}
        return [stored_item(rows.slice(places[id], 1)) for id in wanted if id in places]

    def check_order(self, order: Order | None) -> None:
        """Raise an `ArgumentError` for a column that is not there."""
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
        if self.is_hyperbolic:
            geometry = self._store.about["model"]["geometry"]
            find = partial(nearest_hyperbolic, self._store, geometry, vectors, k, columns, condition)
        else:
            find = partial(self._vectors.nearest, vectors, k, columns, condition, exact)
            if isinstance(self._vectors, MemorySearch):
                return find()
        return at_one_version(self._store, find)

    def _matches(self, rows: NearestRows, scope: Scope) -> list[Match]:
        columns, calibration, count = rows.columns, self._calibration, len(rows.scores)
        confidences: list[float | None] = [None] * count
        is_match: list[bool | None] = [None] * count
        if calibration is not None:
            evidence = list(map(calibration.evidence, rows.scores, columns["dataset"], columns["label"]))
            confidences = calibration.confidences(evidence, columns["dataset"])
        perfect = 0.0 if self.is_hyperbolic else 1.0
        words = [strength_of(score, perfect, found) for score, found in zip(rows.scores, confidences, strict=True)]
        if calibration is not None:
            threshold = self.threshold(scope.datasets)
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
                _metadata(columns, count),
                is_match,
                confidences,
                words,
                strict=True,
            )
        ]


def stored_item(row: pa.Table) -> StoredItem:
    """Return a table's only row, without its vector and thumbnail."""
    columns = row.to_pydict()
    values = {name: columns[name][0] for name in ("id", "dataset", "label", "path", "content_hash")}
    return StoredItem(**values, metadata=_metadata(columns, 1)[0])


def _metadata(columns: Mapping[str, list[Any]], count: int) -> list[dict[str, Value]]:
    """Return the metadata of each of some rows."""
    further = {name: shown_values(values) for name, values in columns.items() if name not in COLUMNS}
    if not further:
        return [{} for _ in range(count)]
    # Without `strict`, which takes a microsecond a row.
    return [dict(zip(further, values)) for values in zip(*further.values())]  # noqa: B905
