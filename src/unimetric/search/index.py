"""`SearchIndex`: a database of embedded images, and the model that its vectors come from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from unimetric.data.sources.metadata import Value
from unimetric.errors import ArgumentError, UserError, nearest_names, shown
from unimetric.search import approximate
from unimetric.search.calibration import Calibration
from unimetric.search.filters import all_of, checked, is_one_of, text
from unimetric.search.hyperbolic import nearest_hyperbolic
from unimetric.search.items import Added, ItemNotFoundError, Match, NewItem, StoredItem
from unimetric.search.model import check_embedder, check_same_model, describe, load_embedder
from unimetric.search.rows import (
    NamedItem,
    metadata_kinds,
    named,
    shown_metadata,
    signatures,
    stored_path,
)
from unimetric.search.store import COLUMNS, Store, location
from unimetric.search.writing import ONCE, CommitRule, Progress, Writer

if TYPE_CHECKING:
    from unimetric.config import DeviceConfig
    from unimetric.data.decoding import ImageLike
    from unimetric.models.embedder import Embedder

MAX_K = 1000
"""Answers to one query, at most."""


class SearchIndex:
    """Images of one or more datasets that are searched by an image, a vector, or one of themselves.

    Several threads may search at once; writing is for one process at a time. Use it in a ``with`` block, or `close` it.
    """

    def __init__(
        self,
        store: Store,
        embedder: Embedder | None = None,
        model: str | Path | None = None,
        weights: str | Path | None = None,
        device: DeviceConfig | None = None,
        false_match_rate: float | None = None,
    ) -> None:
        self._store = store
        self._model_place, self._weights, self._device = model, weights, device
        self._embedder = embedder
        self._loading = threading.Lock()
        self._adding = threading.RLock()
        self._maintenance: threading.Thread | None = None
        self._counts: tuple[int, dict[str, int]] | None = None
        self._understood: set[tuple[str, ...]] = set()
        recorded = self._about["calibration"]
        self._calibration = None if recorded is None else Calibration.from_dict(recorded)
        self._wanted_rate = false_match_rate
        if false_match_rate is not None and self._calibration is None:
            raise UserError(f"false_match_rate is {false_match_rate:g}: {store.place} has no calibrated thresholds")
        self.threshold_of()
        if embedder is not None:
            check_embedder(store, embedder)

    @classmethod
    def open(
        cls,
        db: str | Path,
        *,
        embedder: Embedder | None = None,
        model: str | Path | None = None,
        weights: str | Path | None = None,
        device: DeviceConfig | None = None,
        false_match_rate: float | None = None,
    ) -> SearchIndex:
        """Open a database that `create` or ``unimetric index`` made. No model is loaded before it is needed.

        Args:
            db: A local folder, or an object-storage URI (``s3://``, ``gs://``, ``az://``).
            embedder: The model, where it is loaded already.
            model: The model's folder, where it is not the recorded one.
            weights: The file of the backbone's weights, as for `Embedder.from_pretrained`.
            device: Where to compute.
            false_match_rate: What the threshold is to keep; by default what was recorded when indexing.

        Raises:
            UserError: no database, a damaged one, or the model is not that of its vectors.
        """
        store = Store.open(location(db))
        return cls(store, embedder, model, weights, device, false_match_rate)

    @classmethod
    def create(
        cls,
        db: str | Path,
        model: str | Path,
        *,
        embedder: Embedder | None = None,
        weights: str | Path | None = None,
        device: DeviceConfig | None = None,
        metrics: str | Path | None = None,
        false_match_rate: float | None = None,
    ) -> SearchIndex:
        """Open a database for writing with a model; it is made if it is missing.

        Args:
            db: A local folder, or an object-storage URI.
            model: A run folder or a model folder; recorded with its fingerprint.
            embedder: The same model, where it is loaded already.
            weights: The file of the backbone's weights.
            device: Where to compute.
            metrics: A ``metrics.json``, or the folder that holds it, with calibrated thresholds; by default that of
                the run folder.
            false_match_rate: What the threshold is to keep, one of `FALSE_MATCH_RATES`; by default 0.01.

        Raises:
            UserError: the database holds another model's vectors, is damaged, or cannot be written.
        """
        about = describe(model, weights, metrics, false_match_rate)
        store = Store.create(location(db), about, about["model"]["embedding_size"])
        check_same_model(store, about, str(model))
        # The model may lie elsewhere by now, and be measured anew; what was said before and is not now stays.
        renewed = {**store.about, "model": about["model"]}
        if about["calibration"] is not None:
            renewed["calibration"] = about["calibration"]
        if false_match_rate is not None:
            renewed["false_match_rate"] = false_match_rate
        if renewed != store.about:
            store.write_about(renewed)
        return cls(store, embedder, None, None, device, None)

    def close(self) -> None:
        """Let go of the files. What was added is on the disk already."""
        if self._maintenance is not None:
            self._maintenance.join()
        self._store.close()

    def __enter__(self) -> SearchIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model: its backbone, what was learned, input size and geometry; no path is in it."""
        return str(self._about["model"]["fingerprint"])

    @property
    def model(self) -> str:
        """The model's folder, as it was recorded."""
        return str(self._about["model"]["folder"])

    @property
    def embedding_size(self) -> int:
        """E."""
        return int(self._about["model"]["embedding_size"])

    @property
    def embedder(self) -> Embedder:
        """The model; loaded when it is first asked for, by one thread while others wait.

        Raises:
            UserError: its folder is missing or damaged, or holds another model than the one of the vectors.
        """
        with self._loading:
            if self._embedder is None:
                self._embedder = load_embedder(self._store, self._model_place, self._weights, self._device)
            return self._embedder

    @property
    def metadata_columns(self) -> dict[str, str]:
        """The type of every metadata column by its name: text, integer, number, boolean, date or time."""
        return self._store.metadata_columns

    @property
    def threshold(self) -> float | None:
        """The score from which an answer in all datasets together is a match; None without a calibration."""
        return self.threshold_of()

    def threshold_of(self, datasets: Sequence[str] | None = None) -> float | None:
        """The threshold for a search in these datasets: of one dataset its own, where it was calibrated."""
        return None if self._calibration is None else self._calibration.threshold(self.false_match_rate, datasets)

    @property
    def false_match_rate(self) -> float:
        """The share of searches for something absent that the threshold lets pass, as calibrated."""
        return float(self._about["false_match_rate"] if self._wanted_rate is None else self._wanted_rate)

    def search(
        self,
        images: Sequence[ImageLike] | ImageLike,
        k: int = 10,
        *,
        datasets: Sequence[str] | None = None,
        where: str | None = None,
        exact: bool = False,
    ) -> list[list[Match]]:
        """The k most similar items to each image.

        Args:
            images: Paths, PIL images or arrays, or a single one.
            k: From 1 to `MAX_K`; fewer answers come where fewer rows qualify.
            datasets: Names of the only datasets to search in.
            where: A condition on the columns in SQL, such as ``price < 20 AND label != 'hat'``.
            exact: Compare with every row, whatever approximate index there is.

        Returns:
            For every image its matches, the most similar first; equally similar ones by id.

        Raises:
            UserError: an image cannot be read, an unknown dataset, or a condition that does not hold together.
        """
        vectors = self.embedder.encode(images, precision=self._precision)
        return self.search_vectors(vectors, k, datasets=datasets, where=where, exact=exact)

    def check(self, k: int = 10, datasets: Sequence[str] | None = None, where: str | None = None) -> None:
        """Find out before the work whether `search` would refuse these arguments.

        Raises:
            UserError: it would.
        """
        _check_k(k)
        self._condition(datasets, where)

    def search_vectors(
        self,
        vectors: NDArray[np.float32],
        k: int = 10,
        *,
        datasets: Sequence[str] | None = None,
        where: str | None = None,
        exact: bool = False,
    ) -> list[list[Match]]:
        """As `search`, for vectors [N, E] (or one, [E]) that `embedder` gave."""
        vectors = self._checked_vectors(vectors)
        _check_k(k)
        names, condition = self._condition(datasets, where)
        return self._matches(vectors, k, names, condition, exact)

    def search_item(
        self,
        id: str,
        k: int = 10,
        *,
        datasets: Sequence[str] | None = None,
        where: str | None = None,
        exact: bool = False,
    ) -> list[Match]:
        """More like this: as `search` for an item of the database, which is itself left out.

        Raises:
            ItemNotFoundError: no such item.
        """
        _check_k(k)
        names, condition = self._condition(datasets, where)
        vector = self._one(id, ["id", "vector"])["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        (matches,) = self._matches(vector[None], k, names, all_of([condition, f"id != {text(id)}"]), exact)
        return matches

    def add(self, items: Iterable[NewItem], *, batch_size: int = 32) -> Added:
        """Embed and write items; those of a known dataset and path replace what was there. All or nothing is written.

        Images that cannot be read are left out and named.

        Raises:
            UserError: an empty dataset name, or metadata that does not fit the columns there are.
        """
        with self._adding:
            tasks = named(items)
            # Of two that lead to the same place, the later one.
            distinct = list({task.id: task for task in tasks}.values())
            kinds = metadata_kinds((task.item for task in distinct), self.metadata_columns)
            known = signatures(self._store.rows_of([task.id for task in distinct], self._row_columns))
            progress = self.write(distinct, kinds, known, batch_size=batch_size, rule=ONCE)
        if progress.written:
            self._maintain_soon()
        ids = tuple(None if task.id in progress.refused_ids else task.id for task in tasks)
        return Added(ids, progress.written, progress.unchanged, tuple(progress.refused))

    def delete(
        self, *, ids: Sequence[str] | None = None, dataset: str | None = None, path: str | Path | None = None
    ) -> int:
        """Delete the rows that meet all that is given, and return how many they were.

        Args:
            ids: Items.
            dataset: A dataset's name.
            path: A file, or a folder with all that lies below it; or a URI.

        Raises:
            UserError: nothing is given.
        """
        if ids is None and dataset is None and path is None:
            raise ArgumentError("nothing to delete is named; give ids, dataset or path")
        conditions = [
            None if dataset is None else f"dataset = {text(dataset)}",
            None if path is None else _at_or_below(stored_path(path)),
        ]
        with self._adding:
            if ids is not None:
                return self._store.delete_ids(list(dict.fromkeys(ids)), all_of(conditions))
            return self._store.delete(str(all_of(conditions)))

    def count(self, dataset: str | None = None) -> int:
        """How many rows there are."""
        return self._store.count(None if dataset is None else f"dataset = {text(dataset)}")

    def datasets(self) -> dict[str, int]:
        """How many rows each dataset has, by name in alphabetical order."""
        version = self._store.version
        cached = self._counts
        if cached is None or cached[0] != version:
            counted = pc.value_counts(self._store.rows(["dataset"])["dataset"]).to_pylist()
            cached = version, {entry["values"]: entry["counts"] for entry in counted}
            self._counts = cached
        return dict(sorted(cached[1].items()))

    def item(self, id: str) -> StoredItem:
        """One row.

        Raises:
            ItemNotFoundError: no such item.
        """
        return self._stored(self._one(id, self._row_columns).to_pylist()[0])

    def thumbnail(self, id: str) -> bytes:
        """A JPEG of the image, upright, of at most `THUMBNAIL_SIDE` pixels a side, and nothing else of the file in it.

        Raises:
            ItemNotFoundError: no such item.
        """
        content = self._one(id, ["id", "thumbnail"])["thumbnail"][0].as_py()
        if content is None:
            raise ItemNotFoundError(f"the item {id} has no thumbnail; index it again")
        return bytes(content)

    def sample(self, n: int, seed: int = 0) -> list[StoredItem]:
        """n different rows, or all where there are fewer; with the same rows and seed, the same ones."""
        if n < 0:
            raise ArgumentError(f"n is {n}: use 0 or more")
        ids = self._store.rows(["id"])["id"]
        ids = ids.take(pc.sort_indices(ids))
        chosen = np.random.default_rng(seed).choice(len(ids), min(n, len(ids)), replace=False)
        wanted = [ids[int(place)].as_py() for place in chosen]
        rows = {row["id"]: row for row in self._store.rows_of(wanted, self._row_columns).to_pylist()}
        return [self._stored(rows[id]) for id in wanted if id in rows]

    def optimise(self) -> None:
        """Merge small files, drop what was deleted, and bring the index up to date: by size it is made or refreshed."""
        with self._adding:
            rows, index = self.count(), self._about["index"]
            grown = rows >= 4 * index["rows"]
            few = self._is_hyperbolic or rows < approximate.EXACT_BELOW
            # A graph takes too long to be made anew each time, and "none" may have been somebody's choice.
            if few or (index["kind"] in ("none", "hnsw") and not grown):
                self._store.compact()
            else:
                # Made anew, because LanceDB's own refresh leaves an IVF-PQ index that takes nearly twice the time for
                # every search (measured with a million rows), and to make one takes seconds.
                self.build_index("auto" if grown else index["kind"])

    def build_index(self, kind: str = "auto") -> str:
        """Make the approximate index anew, and return its kind.

        Args:
            kind: ``ivf-pq``, ``hnsw``, ``none`` to drop it, or ``auto`` for what the number of rows calls for.

        Raises:
            UserError: unknown kind, or too few rows for it.
        """
        with self._adding:
            rows = self.count()
            chosen = approximate.checked_kind(kind, rows)
            if self._is_hyperbolic and kind not in ("auto", "none"):
                raise UserError(f"the index is {kind!r}: a hyperbolic model is searched exactly only; use none")
            chosen = "none" if self._is_hyperbolic else chosen
            self._store.compact()
            if chosen == "none":
                self._store.drop_index("vector")
            else:
                approximate.make(self._store, chosen, rows)
            self._store.write_about({**self._about, "index": {"kind": chosen, "rows": rows}})
            return chosen

    def signature_rows(self, where: str) -> pa.Table:
        """The columns that tell changed rows from unchanged ones, of the rows that meet a condition."""
        return self._store.rows(self._row_columns, where)

    def merge(self, rows: pa.Table) -> None:
        """Write rows as `rows_table` makes them, in one commit: new ones, and in place of those of the same ids."""
        with self._adding:
            self._store.merge(rows)

    def write(
        self,
        items: Sequence[NamedItem],
        kinds: Mapping[str, str],
        known: Mapping[str, tuple[str, bytes]],
        *,
        batch_size: int = 32,
        rule: CommitRule,
        strict: bool = False,
        on_commit: Callable[[Progress], None] = lambda progress: None,
        on_read: Callable[[Progress], None] = lambda progress: None,
    ) -> Progress:
        """Embed and write named items, each of another id, as `Writer` does: for `add` and ``unimetric index``."""
        writer = Writer(
            self._store,
            self._writing_embedder,
            self._precision,
            self.fingerprint,
            kinds,
            known,
            rule,
            strict,
            on_commit,
            on_read,
        )
        return writer.write(items, batch_size)

    def _writing_embedder(self) -> Embedder:
        """The model, unless it is one that may only search here: a model extended from the database's own."""
        embedder = self.embedder
        if self.fingerprint in embedder.compatible_with:
            check_embedder(self._store, embedder)
        return embedder

    def maintain(self) -> bool:
        """`optimise`, if it is due: a size was reached that calls for an index, or many rows are not in it yet.

        Rows that are not in the index are searched all the same, one by one.
        """
        if not self._maintenance_due():
            return False
        self.optimise()
        return True

    @property
    def _about(self) -> dict[str, Any]:
        return self._store.about

    @property
    def _is_hyperbolic(self) -> bool:
        return bool(self._about["model"]["geometry"]["name"] == "poincare")

    @property
    def _precision(self) -> str:
        return "auto" if self._device is None else self._device.precision

    @property
    def _shown_columns(self) -> list[str]:
        """The columns of a `Match`; each one more takes its time."""
        return [name for name in self._row_columns if name != "content_hash"]

    @property
    def _row_columns(self) -> list[str]:
        """All columns but vector, thumbnail and fingerprint."""
        left_out = ("vector", "thumbnail", "fingerprint")
        return [name for name in self._store.schema.names if name not in left_out]

    def _checked_vectors(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        array = np.asarray(vectors)
        array = array[None] if array.ndim == 1 else array
        if array.ndim != 2 or array.shape[1] != self.embedding_size or array.dtype.kind != "f":
            raise ArgumentError(
                f"vectors are {array.dtype} {list(array.shape)}: give floats [N, {self.embedding_size}], as the "
                "database's model does"
            )
        array = array.astype(np.float32, copy=False)
        if not np.isfinite(array).all() or (not self._is_hyperbolic and not array.any(axis=1).all()):
            raise ArgumentError("vectors hold a row that is not finite or zero: it has no neighbours; leave it out")
        return array

    def _condition(self, datasets: Sequence[str] | None, where: str | None) -> tuple[tuple[str, ...], str | None]:
        """The datasets, and the condition that is put to the database."""
        if isinstance(datasets, str):
            datasets = [datasets]
        names = tuple(dict.fromkeys(datasets or ()))
        if names:
            present = self.datasets()
            for name in names:
                if name not in present:
                    raise ArgumentError(f"unknown dataset {name!r}; {nearest_names(name, present)}")
        if where is not None:
            where = checked(where)
            key = (where, *self._store.schema.names)
            if key not in self._understood:
                self._store.check_condition(where)
                if len(self._understood) > 1000:
                    self._understood.clear()
                self._understood.add(key)
        return names, all_of([is_one_of("dataset", names) if names else None, where])

    def _rows(
        self, vectors: NDArray[np.float32], k: int, condition: str | None, exact: bool
    ) -> list[list[tuple[dict[str, Any], float]]]:
        """For every vector the nearest rows and their scores."""
        if self._is_hyperbolic:
            geometry = self._about["model"]["geometry"]
            return nearest_hyperbolic(self._store, geometry, vectors, k, self._shown_columns, condition)
        tables = self._store.nearest(vectors, k, self._shown_columns, condition, exact)
        return [
            [(row, min(1.0, max(-1.0, 1.0 - row.pop("_distance")))) for row in table.to_pylist()] for table in tables
        ]

    def _matches(
        self, vectors: NDArray[np.float32], k: int, names: tuple[str, ...], condition: str | None, exact: bool
    ) -> list[list[Match]]:
        threshold = self.threshold_of(names)
        return [
            sorted(
                (self._match(row, score, threshold, names) for row, score in rows),
                key=lambda match: (-match.score, match.id),
            )
            for rows in self._rows(vectors, k, condition, exact)
        ]

    def _match(self, row: dict[str, Any], score: float, threshold: float | None, names: tuple[str, ...]) -> Match:
        return Match(
            id=row["id"],
            score=score,
            dataset=row["dataset"],
            label=row["label"],
            path=row["path"],
            metadata=_metadata(row),
            is_match=None if threshold is None else score >= threshold,
            confidence=None if self._calibration is None else self._calibration.confidence(score, names),
        )

    def _stored(self, row: dict[str, Any]) -> StoredItem:
        return StoredItem(row["id"], row["dataset"], row["label"], row["path"], _metadata(row), row["content_hash"])

    def _one(self, id: str, columns: Sequence[str]) -> pa.Table:
        table = self._store.rows(columns, f"id = {text(id)}", limit=1)
        if not len(table):
            raise ItemNotFoundError(f"no item {shown(id)}; take the id of a match")
        return table

    def _maintenance_due(self) -> bool:
        if self._is_hyperbolic:
            return False
        rows = self.count()
        if rows < approximate.EXACT_BELOW:
            return False
        indexed = self._store.indexed("vector")
        return indexed is None or indexed[2] >= max(10_000, rows // 10)

    def _maintain_soon(self) -> None:
        """`maintain` in a thread of its own: whoever added an image does not wait for an index."""
        running = self._maintenance is not None and self._maintenance.is_alive()
        if not running and self._maintenance_due():
            self._maintenance = threading.Thread(target=self.maintain, name="search-index")
            self._maintenance.start()


def _metadata(row: dict[str, Any]) -> dict[str, Value]:
    return shown_metadata({name: value for name, value in row.items() if name not in COLUMNS})


def _check_k(k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 1 <= k <= MAX_K:
        raise ArgumentError(f"k is {k!r}: use 1 to {MAX_K}")


def _at_or_below(path: str) -> str:
    """The condition that a row's path is this one, or lies in the folder of that name."""
    path = path.rstrip("/") or "/"
    folder = path if path == "/" else f"{path}/"
    # Compared as text: LIKE would take % and _ in names for wildcards.
    return f"path = {text(path)} OR starts_with(path, {text(folder)})"
