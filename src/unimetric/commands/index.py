"""Bring a search database up to date with folders and manifests, or take rows out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unimetric.bulk.fragments import fragment_files
from unimetric.bulk.importing import Imported, import_fragments
from unimetric.config import DeviceConfig
from unimetric.errors import UserError
from unimetric.search.index import SearchIndex
from unimetric.search.indexing import Indexed, index_items, source_items
from unimetric.search.writing import CommitRule


def index_sources(
    model: Path,
    sources: Sequence[str],
    db: str,
    *,
    dataset: str | None = None,
    batch_size: int = 32,
    commit_rows: int = 1024,
    strict: bool = False,
    delete_missing: bool = False,
    metrics: str | None = None,
    false_match_rate: float | None = None,
    weights: str | None = None,
    device: DeviceConfig | None = None,
) -> tuple[Indexed, int, bool]:
    """Embed what is new or changed in the sources, and write it.

    Args:
        model: A run folder or a model folder.
        sources: As for ``unimetric embed``.
        db: A folder or an object-storage URI; made if it is missing.
        dataset: What to call the dataset of the one source, or the front part of the names where it holds several.
        batch_size: Images per forward pass.
        commit_rows: Rows per commit, at most, but for the rest of a batch.
        strict: Stop at the first image that cannot be read.
        delete_missing: Delete rows of the sources' datasets that the sources no longer name.
        metrics: As for `SearchIndex.create`.
        false_match_rate: As for `SearchIndex.create`.
        weights: The file of the backbone's weights.
        device: Where to compute.

    Returns:
        What was done, the number of rows there are now, and whether an index was made or refreshed.

    Raises:
        UserError: the model, a source or the database cannot be used.
    """
    if commit_rows < 1:
        raise UserError(f"--commit_rows is {commit_rows}: use 1 or more")
    if batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}: use 1 or more")
    named = [_renamed(sources, dataset)] if dataset is not None else list(sources)
    items, unusable = source_items(named, strict)
    index = SearchIndex.create(
        db, model, weights=weights, device=device, metrics=metrics, false_match_rate=false_match_rate
    )
    with index:
        indexed = index_items(
            index,
            items,
            batch_size=batch_size,
            rule=CommitRule(rows=commit_rows),
            strict=strict,
            delete_missing=delete_missing,
            origin=", ".join(named),
        )
        indexed = replace(indexed, refused=(*indexed.refused, *unusable))
        return indexed, index.count(), index.maintain()


def index_fragments(
    model: Path,
    folders: Sequence[str],
    db: str,
    *,
    metrics: str | None = None,
    false_match_rate: float | None = None,
    weights: str | None = None,
) -> tuple[Imported, int, bool]:
    """Take over the vectors of fragments; no image is read.

    Args:
        model: The run folder or model folder that they were embedded with.
        folders: Folders or URIs that ``unimetric embed --engine ray`` or ``--shard`` wrote.
        db: A folder or an object-storage URI; made if it is missing.
        metrics: As for `SearchIndex.create`.
        false_match_rate: As for `SearchIndex.create`.
        weights: The file of the backbone's weights.

    Returns:
        What was done, the number of rows there are now, and whether an index was made or refreshed.

    Raises:
        UserError: fragments are missing, damaged or of another model, or the database cannot be written.
    """
    files = [file for folder in folders for file in fragment_files(folder)]
    with SearchIndex.create(db, model, weights=weights, metrics=metrics, false_match_rate=false_match_rate) as index:
        imported = import_fragments(index, files)
        return imported, index.count(), index.maintain()


def change_database(
    db: str,
    *,
    datasets: Sequence[str] = (),
    paths: Sequence[str] = (),
    build: str | None = None,
    optimise: bool = False,
) -> tuple[int, str | None]:
    """Delete rows by dataset and path, then make the index anew or bring it up to date.

    Returns:
        How many rows were deleted, and the kind of an index that was made.

    Raises:
        UserError: no database, a dataset that it does not have, or an index that cannot be made.
    """
    with SearchIndex.open(db) as index:
        present = index.datasets()
        for name in datasets:
            if name not in present:
                raise UserError(f"--delete_dataset is {name!r}: the database has {', '.join(present) or 'no rows'}")
        deleted = sum(index.delete(dataset=name) for name in datasets)
        deleted += sum(index.delete(path=path) for path in paths)
        kind = None if build is None else index.build_index(build)
        if optimise and build is None:
            index.optimise()
        return deleted, kind


def _renamed(sources: Sequence[str], dataset: str) -> str:
    """The one source as a source of that name."""
    if len(sources) != 1:
        raise UserError(f"--dataset is {dataset!r}: it names one source, not {len(sources)}; write NAME=PATH for each")
    if not dataset.strip() or set(dataset) & set("=/\\:"):
        raise UserError(f"--dataset is {dataset!r}: use a name without = / \\ and :")
    (source,) = sources
    return f"{dataset}={source}"
