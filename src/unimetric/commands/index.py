"""Bring a search database up to date with folders and manifests, or delete rows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from unimetric.arguments import Group, PositiveInt, Without
from unimetric.config import DeviceConfig
from unimetric.config_values import refuse_without_effect
from unimetric.errors import MissingOptionError, OptionError, UserError
from unimetric.models.source import ModelSource

if TYPE_CHECKING:
    from unimetric.search.index import SearchIndex
    from unimetric.search.indexing import Indexed


@dataclass(frozen=True)
class RowOptions:
    """Rows to write.

    Args:
        size: Numbers of a vector; by default as in the database. A new database has all that the model gives.
        vector_type: Type to store vectors in: float32, float16, int8 or bit. By default that of the database, or
            float32 for a new one.
        batch_size: Images per forward pass.
        commit_rows: Rows to write at once, at most 10 s apart.
        strict: Stop at an unreadable image instead of skipping it.
        weights: Weight file of the backbone, if the model was trained with one. ``--model.weights FILE`` named it in
            training.
        group_copies: Record that searches give one answer for all copies of a picture.
    """

    size: PositiveInt | None = None
    vector_type: Literal["float32", "float16", "int8", "bit"] | None = None
    batch_size: PositiveInt = 32
    commit_rows: PositiveInt = 1024
    strict: bool = False
    weights: str | None = None
    group_copies: bool | None = None


@dataclass(frozen=True)
class ChangeOptions:
    """Changes of a database beside new rows.

    Args:
        delete_missing: Delete rows of the same datasets that the sources do not name.
        delete_dataset: Delete all rows of these datasets.
        delete_path: Delete the rows of files, or of all files below folders.
        build_index: Rebuild the approximate index: auto, ivf-pq or hnsw; none removes it.
        optimise: Merge small files and update the approximate index.
    """

    delete_missing: bool = False
    delete_dataset: list[str] | None = None
    delete_path: list[str] | None = None
    build_index: Literal["auto", "ivf-pq", "hnsw", "none"] | None = None
    optimise: bool = False

    @property
    def deletes(self) -> bool:
        """Rows are deleted by name."""
        return bool(self.delete_dataset or self.delete_path)


@dataclass(frozen=True)
class ThresholdOptions:
    """Similarity from which on an answer is a match.

    Args:
        metrics: The metrics.json with the thresholds; by default that of MODEL.
        false_match_rate: Call an answer a match from the threshold of this false-match rate. It is 0.1, 0.01, 0.001 or
            0.0001; without it, the confidence of an answer decides.
        calibrate: Labelled images that are not in the database, to calibrate it. They are folders of class folders or
            manifests. The thresholds of a match and the sets of unimetric search --guarantee come from them.
        per_class: Let --calibrate give each class a threshold of its own. One threshold then means the same for all
            classes.
    """

    metrics: str | None = None
    false_match_rate: float | None = None
    calibrate: list[str] | None = None
    per_class: bool = False


def index(
    model: Path | None = None,
    sources: list[str] | None = None,
    *,
    db: str,
    dataset: str | None = None,
    vectors: list[str] | None = None,
    rows: Annotated[RowOptions, Group("")] = RowOptions(),
    changes: Annotated[ChangeOptions, Group("change a database")] = ChangeOptions(),
    thresholds: Annotated[ThresholdOptions, Group("threshold of a match")] = ThresholdOptions(),
    device: Annotated[DeviceConfig, Without({"processes", "machines"})],
) -> int:
    """Embed images into a search database.

    Unchanged images are skipped, and a command that was stopped continues. Without MODEL, rows are deleted or the
    approximate index is rebuilt.

    Args:
        model: Run folder, model folder, or name of a backbone or hub model.
        sources: Folders of images or of class folders, manifests.
        db: A folder, a URI such as s3://bucket/db, or milvus://host:19530/name.
        dataset: Name for the dataset of the one source, as in NAME=PATH.
        vectors: Shards to import instead of embedding images. These are folders that unimetric embed wrote with MODEL.
        rows: Rows to write.
        changes: Changes beside new rows.
        thresholds: Similarity from which on an answer is a match.
        device: Device and precision.
    """
    _check(model, sources, dataset, vectors, rows, changes, thresholds)
    from unimetric.progress import log_status

    refreshed = False
    if model is not None and vectors:
        imported, count, refreshed = index_shards(model, vectors, db, rows=rows, thresholds=thresholds)
        log_status(f"{imported.written} rows written, {imported.unchanged} unchanged. {count} rows are in {db}.")
    elif model is not None:
        delete = changes.delete_missing
        try:
            indexed, count, refreshed = index_sources(
                model,
                sources or [],
                db,
                dataset=dataset,
                delete_missing=delete,
                rows=rows,
                thresholds=thresholds,
                device=device,
            )
        except KeyboardInterrupt:
            log_status("unimetric: stopped, what was written is kept; run the same command again to continue")
            return 130
        _print_indexed(indexed, count, db, delete)
    if refreshed:
        log_status("The approximate index is up to date.")
    if changes.deletes or changes.build_index or changes.optimise:
        change_database(db, changes)
    if thresholds.calibrate:
        _calibrate(db, thresholds.calibrate, thresholds.per_class, rows, model, device)
    return 0


def _check(
    model: Path | None,
    sources: list[str] | None,
    dataset: str | None,
    vectors: list[str] | None,
    rows: RowOptions,
    changes: ChangeOptions,
    thresholds: ThresholdOptions,
) -> None:
    """Refuse options that do not go together."""
    if model is None and not (changes.deletes or changes.build_index or changes.optimise or thresholds.calibrate):
        raise MissingOptionError(
            "MODEL is missing: write unimetric index MODEL FOLDER --db PATH, or an option that changes the database"
        )
    typed, defaults = asdict(rows), asdict(RowOptions())
    if model is None:
        unused = {name: typed[name] for name in ("size", "vector_type", "commit_rows", "strict", "group_copies")}
        unused |= {"dataset": dataset, "delete_missing": changes.delete_missing, "metrics": thresholds.metrics}
        unused["false_match_rate"] = thresholds.false_match_rate
        refuse_without_effect(unused, defaults, "without MODEL")
    if vectors:
        unused = {name: typed[name] for name in ("strict", "commit_rows")}
        if not thresholds.calibrate:  # which embeds images
            unused["batch_size"] = typed["batch_size"]
        refuse_without_effect(unused, defaults, "with --vectors")
    if thresholds.per_class and not thresholds.calibrate:
        raise OptionError("--per_class needs --calibrate with labelled images: it is an option of that calibration")
    if vectors and (sources or changes.delete_missing or changes.deletes or dataset):
        raise OptionError("--vectors takes MODEL and --db only: index folders and delete in commands of their own")
    if vectors and model is None:
        raise MissingOptionError("MODEL is missing: write unimetric index MODEL --vectors FOLDER --db PATH")
    if model is not None and not (sources or vectors):
        raise MissingOptionError(f"nothing to index: name folders or manifests after the model {model}")
    if model is not None and changes.deletes:
        raise OptionError("--delete_dataset and --delete_path take no MODEL: delete first, then index")


def _calibrate(
    db: str, sources: Sequence[str], per_class: bool, rows: RowOptions, model: Path | None, device: DeviceConfig
) -> None:
    """Calibrate a database on the images of some sources, and print the result."""
    from unimetric.data.sources import read_sources
    from unimetric.progress import log_notes, log_skipped, log_status
    from unimetric.search.calibrating import calibrate_database

    datasets = read_sources(sources)
    log_notes(dict.fromkeys(note for dataset in datasets for note in dataset.notes))
    queries = [item for dataset in datasets for item in dataset.items]
    source = ModelSource(model, rows.weights, device)
    result = calibrate_database(db, queries, per_class=per_class, batch_size=rows.batch_size, source=source)
    log_skipped(result.refused)
    log_status(
        f"Calibrated on {result.queries} images; {result.absent} more are of classes that the database does not have, "
        f"and {len(result.refused)} were skipped."
    )
    if result.copies:
        note = (
            f"{result.copies} of these images are in the database under another path: they find themselves, and the "
            "thresholds become too high; calibrate on images that are not in it"
        )
        log_notes([note])
    before, after = result.opis
    if per_class and before is not None and after is not None:
        log_status(f"The operating-point inconsistency of the thresholds (OPIS) went from {before:.4f} to {after:.4f}.")


def _print_indexed(indexed: Indexed, count: int, db: str, delete_missing: bool) -> None:
    from unimetric.progress import log_skipped, log_status

    log_skipped(indexed.refused)
    deleted = f", {indexed.deleted} deleted" if delete_missing else ""
    log_status(
        f"{indexed.written} rows written, {indexed.unchanged} unchanged{deleted}; "
        f"{len(indexed.refused)} files were skipped. {count} rows are in {db}."
    )


def index_sources(
    model: Path,
    sources: Sequence[str],
    db: str,
    *,
    dataset: str | None = None,
    delete_missing: bool = False,
    rows: RowOptions = RowOptions(),
    thresholds: ThresholdOptions = ThresholdOptions(),
    device: DeviceConfig | None = None,
) -> tuple[Indexed, int, bool]:
    """Embed and write the images of the sources that are new or changed; see `index` for the arguments.

    Returns:
        The result, the number of rows in the database, and True if an index was made.

    Raises:
        UserError: the model, a source or the database cannot be used.
    """
    from unimetric.search.indexing import index_items, source_items
    from unimetric.search.writing import CommitRule

    named = [_renamed(sources, dataset)] if dataset is not None else list(sources)
    items, unusable = source_items(named, rows.strict, db)
    with _created(db, model, rows, thresholds, device) as index:
        indexed = index_items(
            index,
            items,
            batch_size=rows.batch_size,
            rule=CommitRule(rows=rows.commit_rows),
            strict=rows.strict,
            delete_missing=delete_missing,
            origin=", ".join(named),
        )
        indexed = replace(indexed, refused=(*indexed.refused, *unusable))
        return indexed, index.count(), index.maintain()


def index_shards(
    model: Path,
    folders: Sequence[str],
    db: str,
    *,
    rows: RowOptions = RowOptions(),
    thresholds: ThresholdOptions = ThresholdOptions(),
) -> tuple[Indexed, int, bool]:
    """Import the vectors of shards that the model embedded; no image is read. Otherwise as `index_sources`."""
    from unimetric.bulk.importing import import_shards
    from unimetric.formats.shards import shard_files

    files = [file for folder in folders for file in shard_files(folder)]
    with _created(db, model, rows, thresholds, None) as index:
        imported = import_shards(index, files)
        return imported, index.count(), index.maintain()


def _created(
    db: str, model: Path, rows: RowOptions, thresholds: ThresholdOptions, device: DeviceConfig | None
) -> SearchIndex:
    from unimetric.search.index import SearchIndex

    return SearchIndex.create(
        db,
        model,
        weights=rows.weights,
        device=device,
        metrics=thresholds.metrics,
        false_match_rate=thresholds.false_match_rate,
        size=rows.size,
        group_copies=rows.group_copies,
        vector_type=rows.vector_type,
    )


def change_database(db: str, changes: ChangeOptions) -> int:
    """Delete rows, and rebuild or update the approximate index, as the options ask; print and return the deleted rows.

    Raises:
        UserError: no database, a dataset that it does not have, or an index that cannot be made.
    """
    from unimetric.progress import log_status
    from unimetric.search.index import SearchIndex
    from unimetric.search.upgrade.rollback import clean

    with SearchIndex.open(db) as index:
        index.check(datasets=changes.delete_dataset)
        deleted = sum(index.delete(dataset=name) for name in changes.delete_dataset or ())
        deleted += sum(index.delete(path=path) for path in changes.delete_path or ())
        if changes.deletes:
            log_status(f"{deleted} row was deleted." if deleted == 1 else f"{deleted} rows were deleted.")
        if changes.build_index is not None:
            kind = index.build_index(changes.build_index)
            log_status("Every search is exact now." if kind == "none" else f"An index of kind {kind} was made.")
        elif changes.optimise:
            index.optimise()
            clean(db)
            log_status("Small files are merged, and the approximate index has all rows.")
    return deleted


def _renamed(sources: Sequence[str], dataset: str) -> str:
    """The one source as a source of that name."""
    if len(sources) != 1:
        raise UserError(f"--dataset is {dataset!r}: it names one source, not {len(sources)}; write NAME=PATH for each")
    if not dataset.strip() or set(dataset) & set("=/\\:"):
        raise UserError(f"--dataset is {dataset!r}: use a name without = / \\ and :")
    (source,) = sources
    return f"{dataset}={source}"
