"""Tables of the library ``datasets`` by split: their columns, and their rows batch by batch as Arrow."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from unimetric.data.sources.split_names import split_parts
from unimetric.errors import UserError, cause

LABEL_NAMES = ("label", "labels", "class", "class_name", "category", "target", "fine_label")
"""Usual names of the column of labels, the best first."""
_ROWS = 64
"""Rows at a time; each may hold an image of several megabytes."""


@dataclass(frozen=True)
class SplitTables:
    """One split.

    Attributes:
        name: Its name.
        columns: All columns.
        images: Those that hold images.
        labels: Those that may hold a class, or a list of classes, for each row.
        class_names: Names of the numbers in a column of labels.
        batches: Returns the rows of some columns, batch by batch.
    """

    name: str
    columns: tuple[str, ...]
    images: tuple[str, ...]
    labels: tuple[str, ...]
    class_names: Mapping[str, Sequence[str]]
    batches: Callable[[list[str]], Iterator[Any]]


@dataclass(frozen=True)
class OpenedSet:
    """A set: its splits, and a text that changes with its content."""

    splits: tuple[SplitTables, ...]
    version: str


def open_splits(place: Path) -> OpenedSet:
    """Open a set without reading its rows; a `UserError` if it, or the library, is missing."""
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(f"hf:{place} needs the package datasets: pip install 'unimetric[hf]'") from error
    if place.exists():
        saved = any((place / file).is_file() for file in ("dataset_dict.json", "state.json"))
        if not saved and (files := sorted(place.rglob("*.parquet")) if place.is_dir() else []):
            return _of_parquet(place, files, datasets)
        if not saved:
            raise UserError(
                f"hf:{place} is neither a folder of save_to_disk nor one with .parquet files: name another folder"
            )
    try:
        loaded: Any = datasets.load_from_disk(place) if place.exists() else datasets.load_dataset(place.as_posix())
    # The library has no error type of its own for a set that is damaged, unknown or out of reach.
    except Exception as error:
        where = "" if place.exists() else f"there is no folder {place} here, and "
        raise UserError(
            f"hf:{place}: {where}datasets cannot read it ({type(error).__name__}: {cause(error)})"
        ) from error
    parts = dict(loaded) if isinstance(loaded, dict) else {"all": loaded}
    splits = tuple(_split(name, part.features, partial(_arrow_batches, part), datasets) for name, part in parts.items())
    return OpenedSet(splits, "|".join(f"{name}:{part._fingerprint}:{len(part)}" for name, part in parts.items()))


def _of_parquet(place: Path, files: Sequence[Path], datasets: Any) -> OpenedSet:
    """Group files by the split in their names, as in ``data/train-00000-of-00002.parquet``."""
    import pyarrow.parquet as pq

    groups: dict[str, list[Path]] = {}
    for file in files:
        words = [part.split("-")[0] for part in reversed(file.relative_to(place).with_suffix("").parts)]
        groups.setdefault(next((word for word in words if split_parts(word)), "all"), []).append(file)
    splits = []
    for name, members in groups.items():
        try:
            schema = pq.read_schema(members[0])
            features = datasets.Features.from_arrow_schema(schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise UserError(
                f"hf:{place}: {members[0].name} cannot be read ({cause(error)}): download the set again"
            ) from error
        splits.append(_split(name, features, partial(_parquet_batches, members), datasets))
    versions = [f"{file.relative_to(place)}:{file.stat().st_size}:{file.stat().st_mtime_ns}" for file in files]
    return OpenedSet(tuple(splits), "|".join([str(place.resolve()), *versions]))


def _split(name: str, features: Any, batches: Callable[[list[str]], Iterator[Any]], datasets: Any) -> SplitTables:
    # A list of labels is several labels of one image.
    inner = {column: getattr(feature, "feature", feature) for column, feature in features.items()}
    labels = {column: feature.names for column, feature in inner.items() if isinstance(feature, datasets.ClassLabel)}
    kinds = {column: feature.dtype for column, feature in inner.items() if isinstance(feature, datasets.Value)}
    texts = [column for column, kind in kinds.items() if kind in ("string", "large_string")]
    # Parquet files of other programs have class numbers as plain whole numbers.
    numbers = [column for column, kind in kinds.items() if re.fullmatch(r"u?int\d+|bool", kind)]
    likely = list(labels) or [column for column in (*texts, *numbers) if column in LABEL_NAMES] or texts
    images = [column for column, feature in features.items() if _is_image(feature, datasets)]
    return SplitTables(name, tuple(features), tuple(images), tuple(likely), labels, batches)


def _is_image(feature: Any, datasets: Any) -> bool:
    """True for the library's images, and for what they are in a Parquet file of another program."""
    if isinstance(feature, datasets.Image):
        return True
    if isinstance(feature, dict):
        return "bytes" in feature
    return isinstance(feature, datasets.Value) and feature.dtype in ("binary", "large_binary")


def _arrow_batches(part: Any, columns: list[str]) -> Iterator[Any]:
    return iter(part.select_columns(columns).with_format("arrow").iter(batch_size=_ROWS))


def _parquet_batches(files: Sequence[Path], columns: list[str]) -> Iterator[Any]:
    import pyarrow.parquet as pq

    file = files[0]
    try:
        for file in files:
            yield from pq.ParquetFile(file).iter_batches(_ROWS, columns=columns)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} is damaged or lacks a column ({cause(error)}): download the set again") from error
