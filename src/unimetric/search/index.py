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

from unimetric.errors import ArgumentError, shown
from unimetric.search.conditions import Condition, all_of, at_or_below, equals
from unimetric.search.items import Added, ItemNotFoundError, Match, NewItem, StoredItem
from unimetric.search.maintenance import Maintenance
from unimetric.search.model import check_embedder, check_same_model, describe, load_embedder
from unimetric.search.query import MAX_K, Searcher, metadata_of
from unimetric.search.rows import NamedItem, metadata_kinds, named, signatures, stored_path
from unimetric.search.stores import create_store, open_store
from unimetric.search.stores.base import Store
from unimetric.search.writing import ONCE, CommitRule, Progress, Writer

if TYPE_CHECKING:
    from unimetric.config import DeviceConfig
    from unimetric.data.decoding import ImageLike
    from unimetric.models.embedder import Embedder

__all__ = ["MAX_K", "SearchIndex"]


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
        self._searcher = Searcher(store, false_match_rate)
        self._maintenance = Maintenance(store, self._adding, self._searcher.is_hyperbolic)
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
        store = open_store(db)
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
        store = create_store(db, about, about["model"]["embedding_size"])
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
        """Release the files. What was added is on the disk already."""
        self._maintenance.wait()
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
        return self._searcher.threshold(datasets)

    @property
    def false_match_rate(self) -> float:
        """The share of searches for something absent that the threshold lets pass, as calibrated."""
        return self._searcher.false_match_rate

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
        self._searcher.scope(k, datasets, where)

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
        vectors = self._searcher.checked_vectors(vectors)
        return self._searcher.matches(vectors, k, self._searcher.scope(k, datasets, where), exact)

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
        scope = self._searcher.scope(k, datasets, where)
        vector = self._one(id, ["id", "vector"])["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        # One more than asked for, since the item is its own best match.
        (matches,) = self._searcher.matches(vector[None], k + 1, scope, exact)
        return [match for match in matches if match.id != id][:k]

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
            known = signatures(self._store.rows_of([task.id for task in distinct], self._searcher.row_columns))
            progress = self.write(distinct, kinds, known, batch_size=batch_size, rule=ONCE)
        if progress.written:
            self._maintenance.start_if_due()
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
            None if dataset is None else equals("dataset", dataset),
            None if path is None else at_or_below(stored_path(path)),
        ]
        with self._adding:
            condition = all_of(conditions)
            if ids is not None:
                return self._store.delete_ids(list(dict.fromkeys(ids)), condition)
            return 0 if condition is None else self._store.delete(condition)

    def count(self, dataset: str | None = None) -> int:
        """How many rows there are."""
        return self._store.count(None if dataset is None else equals("dataset", dataset))

    def datasets(self) -> dict[str, int]:
        """How many rows each dataset has, by name in alphabetical order."""
        return self._searcher.datasets()

    def item(self, id: str) -> StoredItem:
        """One row.

        Raises:
            ItemNotFoundError: no such item.
        """
        return self._stored(self._one(id, self._searcher.row_columns).to_pylist()[0])

    def thumbnail(self, id: str) -> bytes:
        """A JPEG of the image, upright, of at most `THUMBNAIL_SIDE` pixels a side, and nothing else of the file in it.

        Raises:
            ItemNotFoundError: no such item.
        """
        content = self._one(id, ["id", "thumbnail"])["thumbnail"][0].as_py()
        if content is None:
            raise ItemNotFoundError(f"the item {id} has no thumbnail; index it again")
        return bytes(content)

    def sample(self, n: int, seed: int = 0, datasets: Sequence[str] | None = None) -> list[StoredItem]:
        """n different rows, or all where there are fewer; with the same rows and seed, the same ones.

        Args:
            n: 0 or more.
            seed: Another seed gives other rows.
            datasets: Names of the only datasets to take rows from.

        Raises:
            ArgumentError: n is negative, or an unknown dataset.
        """
        if n < 0:
            raise ArgumentError(f"n is {n}: use 0 or more")
        ids = self._store.rows(["id"], self._searcher.scope(1, datasets, None).condition)["id"]
        ids = ids.take(pc.sort_indices(ids))
        chosen = np.random.default_rng(seed).choice(len(ids), min(n, len(ids)), replace=False)
        wanted = [ids[int(place)].as_py() for place in chosen]
        rows = {row["id"]: row for row in self._store.rows_of(wanted, self._searcher.row_columns).to_pylist()}
        return [self._stored(rows[id]) for id in wanted if id in rows]

    def optimise(self) -> None:
        """Merge small files, drop what was deleted, and bring the index up to date: by size it is made or refreshed."""
        self._maintenance.optimise()

    def build_index(self, kind: str = "auto") -> str:
        """Make the approximate index anew, and return its kind.

        Args:
            kind: ``ivf-pq``, ``hnsw``, ``none`` to drop it, or ``auto`` for what the number of rows calls for.

        Raises:
            UserError: unknown kind, or too few rows for it.
        """
        return self._maintenance.build(kind)

    def signature_rows(self, where: Condition) -> pa.Table:
        """The columns that tell changed rows from unchanged ones, of the rows that meet a condition."""
        return self._store.rows(self._searcher.row_columns, where)

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
        return self._maintenance.run_if_due()

    @property
    def _about(self) -> dict[str, Any]:
        return self._store.about

    @property
    def _precision(self) -> str:
        return "auto" if self._device is None else self._device.precision

    def _stored(self, row: dict[str, Any]) -> StoredItem:
        return StoredItem(row["id"], row["dataset"], row["label"], row["path"], metadata_of(row), row["content_hash"])

    def _one(self, id: str, columns: Sequence[str]) -> pa.Table:
        table = self._store.rows(columns, equals("id", id), limit=1)
        if not len(table):
            raise ItemNotFoundError(f"no item {shown(id)}; take the id of a match")
        return table
