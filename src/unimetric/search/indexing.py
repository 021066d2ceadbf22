"""Index whole folders and manifests: embed new and changed images; a killed run continues where it stopped."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from rich.progress import Progress as Bar

from unimetric.data.sources import read_source_metadata, read_sources
from unimetric.data.sources.metadata import Metadata, Value
from unimetric.data.sources.tree import unusable_files
from unimetric.errors import UserError
from unimetric.progress import console, log_notes, log_status, progress_bar
from unimetric.search.conditions import is_one_of
from unimetric.search.errors import DatabaseMissingError
from unimetric.search.index import SearchIndex
from unimetric.search.items import NewItem, Refused
from unimetric.search.rows import NamedItem, metadata_kinds, name_problem, named, signatures
from unimetric.search.stores.base import portions
from unimetric.search.writing import CommitRule, Progress


@dataclass(frozen=True)
class Indexed:
    """The result of indexing some sources."""

    written: int
    """Rows that are new or were replaced."""
    unchanged: int
    """Images that the database already held unchanged."""
    refused: tuple[Refused, ...] = ()
    """Images that cannot be read; rows of their earlier content are kept."""
    deleted: int = 0
    """Rows of the same datasets whose images the sources no longer name."""


def source_items(
    sources: Sequence[str], strict: bool = False, db: str | None = None
) -> tuple[list[NewItem], list[Refused]]:
    """Return the images of sources, with the metadata columns of manifests, in a defined order; and unusable files.

    Columns that a database cannot store are skipped; a note is printed for each, and for each remark on the datasets.
    A CSV column of numbers alone is text where another source or the database ``db`` has text in it. A
    `UserError` if a source cannot be read or, with ``strict``, something with an image's name cannot be opened.
    """
    datasets = read_sources(sources, classes=False)
    notes = [note for dataset in datasets for note in dataset.notes]
    metadata: dict[tuple[str, str], dict[str, Value]] = {}
    for source, found in zip(sources, _all_metadata(sources, db), strict=True):
        columns = list(next(iter(found.cells.values()), {}))
        problems = _column_problems(columns)
        notes += [*found.notes, *(f"{source}: the column {name!r} is skipped: {problems[name]}" for name in problems)]
        kept = [name for name in columns if name not in problems]
        metadata |= {key: {name: cells[name] for name in kept} for key, cells in found.cells.items()}
    log_notes(dict.fromkeys(notes))
    unusable = [Refused(str(entry.path), entry.reason) for entry in unusable_files(datasets, strict)]
    items = [
        NewItem(item.path, item.dataset, item.label, None, metadata.get((item.dataset, str(item.path)), {}))
        for dataset in datasets
        for item in dataset.items
    ]
    return items, unusable


def _all_metadata(sources: Sequence[str], db: str | None) -> list[Metadata]:
    """Return the metadata of each source; a CSV file cannot show that its numbers are meant as text."""
    found = [read_source_metadata(source) for source in sources]
    others = [_columns(table, texts=False) for table in found]
    if not any(others):
        return found
    texts = set().union(*(_columns(table, texts=True) for table in found))
    if db is not None:
        with suppress(DatabaseMissingError), SearchIndex.open(db) as index:
            texts.update(name for name, kind in index.metadata_columns.items() if kind == "text")
    return [
        _kept_as_text(source, sorted(texts & names)) if texts & names else table
        for source, table, names in zip(sources, found, others, strict=True)
    ]


def _kept_as_text(source: str, columns: Sequence[str]) -> Metadata:
    found = read_source_metadata(source, columns)
    # A Parquet column keeps its type.
    kept = [name for name in columns if name in _columns(found, texts=True)]
    notes = [f"{source}: the column {name!r} is text, as in the database or another source" for name in kept]
    return replace(found, notes=(*found.notes, *notes))


def _columns(table: Metadata, *, texts: bool) -> set[str]:
    """Return the columns with a cell that is text, or with one of another type."""
    cells = (cell for row in table.cells.values() for cell in row.items())
    return {name for name, value in cells if value is not None and isinstance(value, str) is texts}


def _column_problems(names: Sequence[str]) -> dict[str, str]:
    """Return the columns that a database cannot hold, with the reason."""
    problems = {name: f"its name {problem}" for name in names if (problem := name_problem(name))}
    first: dict[str, str] = {}
    for name in names:
        other = first.setdefault(name.lower(), name)
        if other != name:
            problems[name] = f"its name differs from {other!r} in case only; rename one of the two"
    return problems


def index_items(
    index: SearchIndex,
    items: Iterable[NewItem],
    *,
    batch_size: int = 32,
    rule: CommitRule | None = None,
    strict: bool = False,
    delete_missing: bool = False,
    origin: str = "the manifest",
    on_read: Callable[[Progress, int, float | None], None] = lambda progress, total, seconds: None,
) -> Indexed:
    """Bring a database up to date with all items of datasets, under a progress bar, or with a line per commit.

    Rows that are reported as written are on the disk. With ``strict`` it stops at the first image that cannot be read;
    ``delete_missing`` deletes rows of the same datasets that are not among the items; ``origin`` names the metadata's
    source in messages. ``on_read`` is called after every item with the number of all and the estimated seconds left; an
    error that it raises ends the indexing, and the commits so far stay.

    Raises:
        UserError: none of the images can be read, one cannot and ``strict`` is set, metadata does not fit the columns
            there are, or the database cannot be written.
    """
    # An image that is query and gallery at once is one row.
    tasks: dict[str, NamedItem] = {}
    for task in named(items):
        tasks.setdefault(task.id, task)
    distinct = list(tasks.values())
    kinds = metadata_kinds((task.item for task in distinct), index.metadata_columns, origin)
    datasets = sorted({task.item.dataset for task in distinct})
    present: dict[str, tuple[str, bytes]] = {}
    for some in portions(datasets):
        present |= signatures(index.signature_rows(is_one_of("dataset", some)))
    with progress_bar() as bar:
        reporter = _Reporter(bar, len(distinct))

        def read(progress: Progress) -> None:
            reporter.read(progress)
            on_read(progress, len(distinct), reporter.seconds_left)

        writer = index.writer(
            kinds, present, rule=rule or CommitRule(), strict=strict, on_commit=reporter.committed, on_read=read
        )
        progress = writer.write(distinct, batch_size)
    if distinct and len(progress.refused) == len(distinct):
        first = next(iter(progress.refused.values()))
        raise UserError(f"none of {len(distinct)} images can be read; the first is {first.path}: {first.reason}")
    deleted = index.delete(ids=sorted(present.keys() - tasks.keys())) if delete_missing else 0
    refused = tuple(progress.refused.values())
    return Indexed(progress.written, progress.unchanged, refused, deleted)


class _Reporter:
    """Reports progress: in the bar's note, and without a terminal in a line per commit.

    Rate and time left are those of the last half minute: unchanged images, which come first, are far faster than new
    ones.
    """

    def __init__(self, bar: Bar, total: int) -> None:
        self._bar, self._total = bar, total
        bar.add_task("Indexing", total=total, note="")
        (self._task,) = bar.tasks
        self._shown = 0.0
        self.seconds_left: float | None = None

    def read(self, progress: Progress) -> None:
        now = time.monotonic()
        # The estimates take longer than a small file.
        if now - self._shown >= 0.1 or progress.read == self._total:
            self._shown = now
            self._update(progress)

    def committed(self, progress: Progress) -> None:
        self._update(progress)
        if not console.is_terminal:
            left = "" if self.seconds_left is None else f", about {self.seconds_left:.0f} s left"
            log_status(f"{progress.written} rows written; {progress.read} of {self._total} images{left}")

    def _update(self, progress: Progress) -> None:
        speed = self._task.speed
        if progress.read == self._total:
            # Of all, since rich does not count the first batch.
            speed = progress.read / max(self._task.elapsed or 0.0, 1e-9)
        words = [f"{speed or 0:.1f} images/s", f"{progress.written} written"]
        if progress.unchanged:
            words.append(f"{progress.unchanged} unchanged")
        if progress.refused:
            words.append(f"{len(progress.refused)} skipped")
        self._bar.update(self._task.id, completed=progress.read, note=", ".join(words))
        self.seconds_left = self._task.time_remaining
