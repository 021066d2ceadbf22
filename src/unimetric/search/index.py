"""`SearchIndex`: a database of embedded images, and the model that its vectors come from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from unimetric.search.items import Added, ItemNotFoundError, Match, NewItem, StoredItem  # noqa: F401

if TYPE_CHECKING:
    from unimetric.config import DeviceConfig
    from unimetric.models.embedder import Embedder, ImageLike


class SearchIndex:
    """Images of one or more datasets that are searched by an image, a vector, or one of themselves.

    Several threads may search at once; writing is for one process at a time. Use it in a ``with`` block, or `close` it.
    """

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
        raise NotImplementedError

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
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the files. What was added is on the disk already."""
        raise NotImplementedError

    def __enter__(self) -> SearchIndex:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model: its backbone, what was learned, input size and geometry; no path is in it."""
        raise NotImplementedError

    @property
    def model(self) -> str:
        """The model's folder, as it was recorded."""
        raise NotImplementedError

    @property
    def embedding_size(self) -> int:
        """E."""
        raise NotImplementedError

    @property
    def embedder(self) -> Embedder:
        """The model; loaded when it is first asked for, by one thread while others wait.

        Raises:
            UserError: its folder is missing or damaged, or holds another model than the one of the vectors.
        """
        raise NotImplementedError

    @property
    def metadata_columns(self) -> dict[str, str]:
        """The type of every metadata column by its name: text, integer, number, boolean, date or time."""
        raise NotImplementedError

    @property
    def threshold(self) -> float | None:
        """The score from which an answer in all datasets together is a match; None without a calibration."""
        raise NotImplementedError

    def threshold_of(self, datasets: Sequence[str] | None = None) -> float | None:
        """The threshold for a search in these datasets: of one dataset its own, where it was calibrated."""
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

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
        raise NotImplementedError

    def add(self, items: Iterable[NewItem], *, batch_size: int = 32) -> Added:
        """Embed and write items; those of a known dataset and path replace what was there. All or nothing is written.

        Images that cannot be read are left out and named.

        Raises:
            UserError: an empty dataset name, or metadata that does not fit the columns there are.
        """
        raise NotImplementedError

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
        raise NotImplementedError

    def count(self, dataset: str | None = None) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def datasets(self) -> dict[str, int]:
        """How many rows each dataset has, by name in alphabetical order."""
        raise NotImplementedError

    def item(self, id: str) -> StoredItem:
        """One row.

        Raises:
            ItemNotFoundError: no such item.
        """
        raise NotImplementedError

    def thumbnail(self, id: str) -> bytes:
        """A JPEG of the image, upright, of at most `THUMBNAIL_SIDE` pixels a side, and nothing else of the file in it.

        Raises:
            ItemNotFoundError: no such item.
        """
        raise NotImplementedError

    def sample(self, n: int, seed: int = 0) -> list[StoredItem]:
        """n different rows, or all where there are fewer; with the same rows and seed, the same ones."""
        raise NotImplementedError

    def optimise(self) -> None:
        """Merge small files, drop what was deleted, and bring the index up to date: by size it is made or refreshed."""
        raise NotImplementedError

    def build_index(self, kind: str = "auto") -> str:
        """Make the approximate index anew, and return its kind.

        Args:
            kind: ``ivf-pq``, ``hnsw``, ``none`` to drop it, or ``auto`` for what the number of rows calls for.

        Raises:
            UserError: unknown kind, or too few rows for it.
        """
        raise NotImplementedError
