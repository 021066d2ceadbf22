"""`SearchIndex`: a database of embedded images, and the model that its vectors come from."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from unimetric.errors import ArgumentError, check_arguments
from unimetric.models.source import ModelSource
from unimetric.search.conditions import Condition, all_of, at_or_below
from unimetric.search.guarantee import Guarantee
from unimetric.search.items import Added, Match, NewItem
from unimetric.search.maintenance import Maintained
from unimetric.search.model import check_embedder, create_for_model, source_of
from unimetric.search.query import row_columns
from unimetric.search.rows import metadata_kinds, named, signatures, stored_path
from unimetric.search.stores import open_store
from unimetric.search.stores.base import Store
from unimetric.search.upgrade.both import delete_rows, load_query_model, own_model, writing_model
from unimetric.search.writing import ONCE, Writer

if TYPE_CHECKING:
    from unimetric.config import DeviceConfig
    from unimetric.data.batches import ImageLike
    from unimetric.models.embedder import Embedder
    from unimetric.models.ensemble import QueryModel


@check_arguments
class SearchIndex(Maintained):
    """Images of one or more datasets that are searched by an image, a vector, or one of themselves.

    Several threads and processes may search and write at once. Use it in a ``with`` block, or `close` it.
    """

    def __init__(
        self, store: Store, embedder: QueryModel | None, source: ModelSource, false_match_rate: float | None = None
    ) -> None:
        super().__init__(store, false_match_rate)
        self._source, self._embedder = source, embedder
        self._loading = threading.Lock()
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
        return cls(open_store(db), embedder, source_of(model, weights, device), false_match_rate)

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
        source = source_of(model, weights, device, size)
        store = create_for_model(db, source, metrics, false_match_rate, group_copies, vector_type)
        return cls(store, embedder, ModelSource(device=source.device))

    def close(self) -> None:
        """Release the files and the model; everything added is on the disk already."""
        super().close()
        self._embedder = None

    def __enter__(self) -> SearchIndex:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @property
    def embedder(self) -> QueryModel:
        """The model of queries, or two of them during an upgrade; loaded by the first thread that needs it.

        Raises:
            UserError: its folder is missing or damaged.
            ModelMismatchError: the folder holds another model than that of the vectors.
        """
        with self._loading:
            if self._embedder is None or self._embedder.embedding_size != self.embedding_size:
                self._embedder = load_query_model(self._store, self._both, self._source, self._embedder)
            return self._embedder

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
        vectors = self.embedder.encode(images, precision=self._source.device.precision)
        found = partial(self.search_vectors, vectors, k, datasets=datasets, where=where, exact=exact)
        return found(guarantee=guarantee, group_copies=group_copies)

    def add(self, items: Iterable[NewItem], *, batch_size: int = 32) -> Added:
        """Embed and write items in one commit; those of a known dataset and path replace their row.

        Images that cannot be read are skipped and named in the result.

        Raises:
            ArgumentError: an empty dataset name, or metadata that does not fit the columns there are.
        """
        with self._writing:
            tasks = named(items)
            # Of two with the same dataset and path, keep the later one.
            latest = {task.id: task for task in tasks}
            kinds = metadata_kinds((task.item for task in latest.values()), self.metadata_columns)
            known = signatures(self._store.rows_of(list(latest), self._signature_columns, newest=True))
            progress = self.writer(kinds, known, rule=ONCE).write(list(latest.values()), batch_size)
        if progress.written:
            self._start_maintaining()
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
        within = None if dataset is None else self._in_dataset(dataset)
        below = None if path is None else at_or_below(stored_path(path))
        with self._writing:
            return delete_rows(self._store, all_of([within, below]), ids)

    def signature_rows(self, where: Condition) -> pa.Table:
        """Return the columns that a `signature` is made of, of the rows that meet a condition."""
        return self._store.rows(self._signature_columns, where)

    def merge(self, rows: pa.Table) -> None:
        """Write rows of `rows_table` in one commit; they replace rows of the same ids."""
        with self._writing:
            self._store.merge(rows)

    def writer(self, kinds: Mapping[str, str], known: Mapping[str, tuple[str, bytes]], **options: Any) -> Writer:
        """Return a writer of named items of distinct ids; the arguments are those of `Writer`."""
        load = partial(writing_model, self._store, lambda: self.embedder)
        return Writer(self._store, load, self._source.device.precision, self.fingerprint, kinds, known, **options)

    @property
    def _signature_columns(self) -> list[str]:
        return [*row_columns(self._store), "fingerprint"]
