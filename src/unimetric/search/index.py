"""`SearchIndex`: a database of embedded images, and the model that its vectors come from."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unimetric.errors import ArgumentError, check_arguments
from unimetric.search.columns import ColumnSummary, column_summaries
from unimetric.search.conditions import Condition, all_of, at_or_below, equals
from unimetric.search.copies import CopyFolder
from unimetric.search.guarantee import Guarantee
from unimetric.search.items import Added, Match, NewItem, StoredItem
from unimetric.search.maintenance import Maintenance
from unimetric.search.model import check_embedder, create_for_model
from unimetric.search.query import Searcher, stored_item
from unimetric.search.rows import metadata_kinds, named, signatures, stored_path
from unimetric.search.sorting import Order
from unimetric.search.stores import open_store
from unimetric.search.stores.base import PerVersion, Store
from unimetric.search.upgrade.both import delete_rows, load_query_model, own_model, thumbnail_before, writing_model
from unimetric.search.writing import ONCE, Writer

if TYPE_CHECKING:
    from unimetric.config import DeviceConfig
    from unimetric.data.batches import ImageLike
    from unimetric.models.embedder import Embedder
    from unimetric.models.ensemble import QueryModel
    from unimetric.search.upgrade.both import ModelPlace


@check_arguments
class SearchIndex:
    """Images of one or more datasets that are searched by an image, a vector, or one of themselves.

    Several threads and processes may search and write at once. Use it in a ``with`` block, or `close` it.
    """

    def __init__(
        self, store: Store, embedder: QueryModel | None, place: ModelPlace, false_match_rate: float | None = None
    ) -> None:
        self._store, self._place = store, place
        self._embedder = embedder
        self._precision = "auto" if place[2] is None else place[2].precision
        self._loading, self._adding = threading.Lock(), threading.RLock()
        self._searcher = Searcher(store, false_match_rate)
        self._columns = PerVersion(store, partial(column_summaries, store))
        self._copies = CopyFolder(store)
        self._maintenance = Maintenance(store, self._adding, self._searcher.is_hyperbolic)
        if embedder is not None:
            check_embedder(store, own_model(embedder))

    @classmethod
    def open(
        cls,
        db: str | Path,
        *,
        embedder: QueryModel | None = None,
        model: str | Path | None = None,
        weights: str | Path | None = None,
        device: DeviceConfig | None = None,
        false_match_rate: float | None = None,
    ) -> SearchIndex:
        """Open a database that `create` or ``unimetric index`` made. The model is loaded when it is first needed.

        Args:
            db: A local folder, a URI of object storage (``s3://``, ``gs://``, ``az://``), or a place in Milvus.
            embedder: The model, if it is loaded already.
            model: The model's folder, if it is not the recorded one.
            weights: The file of the backbone's weights.
            device: Device to compute on.
            false_match_rate: The rate that the threshold keeps; by default the one recorded when indexing.

        Raises:
            DatabaseError: there is no database, or it is damaged.
            ModelMismatchError: ``embedder`` is not the model of the vectors.
        """
        return cls(open_store(db), embedder, (model, weights, device), false_match_rate)

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
        size: int | None = None,
        group_copies: bool | None = None,
        vector_type: str | None = None,
    ) -> SearchIndex:
        """Open a database for writing with a model; a missing one is created.

        Args:
            db: A local folder, or an object-storage URI.
            model: A run folder or a model folder; recorded with its fingerprint.
            embedder: The same model, if it is loaded already.
            weights: As for `open`.
            device: As for `open`.
            metrics: A ``metrics.json`` with calibrated thresholds, or its folder; by default that of the run folder.
            false_match_rate: Rate that a match's threshold keeps, one of `FALSE_MATCH_RATES`; else confidence decides.
            size: Numbers of a vector; by default those of the database, or of the model for a new one.
            group_copies: Record that searches fold copies of a picture into one match; by default as recorded.
            vector_type: One of `STORED_TYPES`; by default that of the database, or float32 for a new one.

        Raises:
            DatabaseError: the database is damaged or cannot be written.
            ModelMismatchError: it holds another model's vectors.
        """
        store = create_for_model(db, model, weights, metrics, false_match_rate, size, group_copies, vector_type)
        return cls(store, embedder, (None, None, device))

    def close(self) -> None:
        """Release the files and the model; everything added is on the disk already."""
        self._maintenance.wait()
        self._searcher.close()
        self._embedder = None

    def __enter__(self) -> SearchIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

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
        """The length of a query's vector, E."""
        return self._searcher.vector_size

    @property
    def shortened_to(self) -> int | None:
        """The length of a vector, if it is shorter than the model's own."""
        return self._store.about["model"].get("shortened_to")  # type: ignore[no-any-return]

    @property
    def embedder(self) -> QueryModel:
        """The model of queries, or two of them during an upgrade; loaded by the first thread that needs it.

        Raises:
            UserError: its folder is missing or damaged.
            ModelMismatchError: the folder holds another model than that of the vectors.
        """
        with self._loading:
            if self._embedder is None or self._embedder.embedding_size != self.embedding_size:
                self._embedder = load_query_model(self._store, self._searcher.both, self._place, self._embedder)
            return self._embedder

    @property
    def metadata_columns(self) -> dict[str, str]:
        """The type of every metadata column by its name: text, number, boolean, date or time."""
        return self._store.metadata_columns

    def columns(self) -> list[ColumnSummary]:
        """Return the range and the choices of every metadata column that a condition may name."""
        return self._columns.get()

    @property
    def group_copies(self) -> bool:
        """True if searches fold copies of a picture by default, as recorded when indexing."""
        return self._copies.by_default

    def threshold_of(self, datasets: Sequence[str] | None = None) -> float | None:
        """Return the threshold at the false-match rate, if any; a single dataset has its own if it was measured."""
        return self._searcher.threshold(datasets)

    @property
    def false_match_rate(self) -> float | None:
        """The calibrated share of searches for absent things that the threshold takes for matches, or None."""
        return self._searcher.false_match_rate

    def search(
        self,
        images: Sequence[ImageLike] | ImageLike,
        k: int = 10,
        *,
        datasets: Sequence[str] | None = None,
        where: str | None = None,
        exact: bool = False,
        guarantee: float | Guarantee | None = None,
        group_copies: bool | None = None,
    ) -> list[list[Match]]:
        """Return the k most similar items to each image, or a set with a right one.

        Args:
            images: Paths, PIL images or arrays, or a single one.
            k: From 1 to 1,000; there are fewer answers if fewer rows qualify.
            datasets: Names of the only datasets to search in.
            where: A condition such as ``price < 20 AND label != 'hat'``; ``docs/search.md`` has the grammar.
            exact: Compare with every row and bypass the approximate index.
            guarantee: Return, instead of k items, one item of each class that the image may be of, so that the right
                class is among them with this probability; see ``docs/guarantee.md``.
            group_copies: Fold copies of a picture into the most similar one, which has them in ``copies``; the audit's
                rule for near copies decides. By default as recorded in the database; never with a guarantee.

        Returns:
            For every image its matches, the most similar first; equally similar ones by id.

        Raises:
            UserError: an image cannot be read.
            ArgumentError: k is out of range, or there is no such dataset.
            FilterError: ``where`` is not a condition on the columns.
            NotCalibratedError: the guarantee was not calibrated for these datasets.
        """
        # Before the model is loaded, which takes seconds.
        self.check(k, datasets, where, guarantee)
        vectors = self.embedder.encode(images, precision=self._precision)
        found = partial(self.search_vectors, vectors, k, datasets=datasets, where=where, exact=exact)
        return found(guarantee=guarantee, group_copies=group_copies)

    def check(
        self,
        k: int = 10,
        datasets: Sequence[str] | None = None,
        where: str | None = None,
        guarantee: float | Guarantee | None = None,
        order: Order | None = None,
    ) -> None:
        """Check the arguments of `search` as it does, and the column of an order, without searching."""
        self._searcher.scope(k, datasets, where, guarantee)
        self._searcher.check_order(order)

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
        vectors = self._searcher.checked_vectors(vectors)
        scope = self._searcher.scope(k, datasets, where, guarantee)
        find = partial(self._searcher.matches, scope=scope, exact=exact)
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
        scope = self._searcher.scope(k, datasets, where)
        query = self._searcher.joint_query(vectors, ids)
        find = partial(self._searcher.together, ids, scope=scope, exact=exact)
        return self._copies.nearest(find, query, k, group_copies, together=True)[0]

    def add(self, items: Iterable[NewItem], *, batch_size: int = 32) -> Added:
        """Embed and write items in one commit; those of a known dataset and path replace their row.

        Images that cannot be read are skipped and named in the result.

        Raises:
            ArgumentError: an empty dataset name, or metadata that does not fit the columns there are.
        """
        with self._adding:
            tasks = named(items)
            # Of two with the same dataset and path, keep the later one.
            latest = {task.id: task for task in tasks}
            kinds = metadata_kinds((task.item for task in latest.values()), self.metadata_columns)
            known = signatures(self._store.rows_of(list(latest), self._signature_columns, newest=True))
            progress = self.writer(kinds, known, rule=ONCE).write(list(latest.values()), batch_size)
        if progress.written:
            self._maintenance.start_if_due()
        ids = tuple(None if task.id in progress.refused else task.id for task in tasks)
        return Added(ids, progress.written, progress.unchanged, tuple(progress.refused.values()))

    def delete(
        self, *, ids: Sequence[str] | None = None, dataset: str | None = None, path: str | Path | None = None
    ) -> int:
        """Delete the rows that meet all the given arguments, and return their number.

        ``path`` is a file with all boxes in it, a folder with everything below it, or a URI.

        Raises:
            ArgumentError: nothing is given.
        """
        if ids is None and dataset is None and path is None:
            raise ArgumentError("nothing to delete is named; give ids, dataset or path")
        within = None if dataset is None else equals("dataset", dataset)
        below = None if path is None else at_or_below(stored_path(path))
        with self._adding:
            return delete_rows(self._store, all_of([within, below]), ids)

    def count(self, dataset: str | None = None) -> int:
        """Return the number of rows, of one dataset or of all."""
        return self._store.count(None if dataset is None else equals("dataset", dataset))

    def datasets(self) -> dict[str, int]:
        """Return the number of rows of each dataset, by name in alphabetical order."""
        return self._searcher.datasets()

    def item(self, id: str) -> StoredItem:
        """Return one row, or raise an `ItemNotFoundError`."""
        return stored_item(self._searcher.row(id, self._searcher.row_columns))

    def thumbnail(self, id: str) -> bytes:
        """Return a JPEG of at most `THUMBNAIL_SIDE` pixels a side, without metadata, or raise `ItemNotFoundError`."""
        content = self._searcher.row(id, ["thumbnail"])["thumbnail"][0].as_py()
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
        return self._searcher.sample(n, seed, datasets, where, order, offset)

    def prepare(self) -> None:
        """Read the vectors into memory now; where their graph has to be made first, wait for it."""
        self._searcher.prepare()

    def optimise(self) -> None:
        """Merge small files, drop deleted rows, and make or refresh the index by the size of the database."""
        self._maintenance.optimise()

    def build_index(self, kind: str = "auto") -> str:
        """Rebuild the approximate index, and return its kind: ``ivf-pq``, ``hnsw``, or ``none``, which drops it.

        ``auto`` chooses by the number of rows.

        Raises:
            ArgumentError: unknown kind.
            UserError: too few rows for it, or a hyperbolic model.
        """
        return self._maintenance.build(kind)

    def signature_rows(self, where: Condition) -> pa.Table:
        """Return the columns that a `signature` is made of, of the rows that meet a condition."""
        return self._store.rows(self._signature_columns, where)

    def merge(self, rows: pa.Table) -> None:
        """Write rows of `rows_table` in one commit; they replace rows of the same ids."""
        with self._adding:
            self._store.merge(rows)

    def writer(self, kinds: Mapping[str, str], known: Mapping[str, tuple[str, bytes]], **options: Any) -> Writer:
        """Return a writer of named items of distinct ids; the arguments are those of `Writer`."""
        load = partial(writing_model, self._store, lambda: self.embedder)
        return Writer(self._store, load, self._precision, self.fingerprint, kinds, known, **options)

    def maintain(self) -> bool:
        """Run `optimise` if the database has grown to need an index, or many rows are not in it yet."""
        return self._maintenance.run_if_due()

    @property
    def _signature_columns(self) -> list[str]:
        return [*self._searcher.row_columns, "fingerprint"]
