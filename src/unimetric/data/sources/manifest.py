"""Manifests: a CSV or Parquet table with the columns ``path,label[,dataset][,split]``, one row per image."""

from __future__ import annotations

import csv
import difflib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from unimetric.data.catalog import Clash, Dataset, Item, unique_items
from unimetric.errors import UserError, cause, escaped, nearest_names, shown

SUFFIXES = (".csv", ".parquet", ".pq")

SPLITS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "query": "query",
    "gallery": "gallery",
    "": None,
}
"""The role that each value of the column ``split`` stands for, in lower case."""

_REQUIRED = ("path", "label")
_OPTIONAL = ("dataset", "split")
_LONGEST = 300
"""Characters of a path that a message repeats."""


@dataclass(frozen=True, slots=True)
class _Row:
    place: str
    """Where the row stands, for error messages: "row 6 (line 7)"."""
    path: str
    label: str
    dataset: str | None
    split: str


def read_manifest(file: Path, name: str | None = None) -> list[Dataset]:
    """Read a manifest; datasets in the order of their names, items in the order of the rows.

    Paths are relative to the manifest's folder, or absolute. Labels are text, exactly as written; whole
    numbers in Parquet become their digits. ``split`` is train, val, valid, validation, test, query,
    gallery, in upper or lower case, or empty. Other columns are ignored. CSV is UTF-8, with or without a
    byte order mark, separated by commas, quoted as in RFC 4180; blank lines are skipped. A row that
    repeats an image with the same label and split is left out, and its path listed in `Dataset.ignored`.

    Args:
        file: the manifest, ``.csv``, ``.parquet`` or ``.pq``.
        name: the dataset's name; by default the file's name without its suffix. With a column ``dataset``,
            the front part of the names: ``name/dataset``.

    Raises:
        UserError: the file is missing, unreadable, damaged or empty; a column is missing; a row is ragged,
            has an empty path or label, or a split of another name; images are missing; one image has two
            labels, or splits that must not share images.
    """
    content = _read(file)
    suffix = file.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot read the manifest {file}: its name must end in {' or '.join(SUFFIXES)}")
    rows = list(_csv_rows(file, content) if suffix == ".csv" else _parquet_rows(file, content))
    if not rows:
        raise UserError(f"the manifest {file} is empty; give it one row per image")
    listed = [_item(file, row, name) for row in rows]
    _check_files(file, rows, [item.path for item in listed])
    by_dataset: dict[str, list[Item]] = {}
    for item in listed:
        by_dataset.setdefault(item.dataset, []).append(item)
    datasets = []
    for dataset, items in sorted(by_dataset.items()):
        try:
            kept, repeated = unique_items(items)
        except Clash as clash:
            first, second = (
                next(r.place for r, item in zip(rows, listed, strict=True) if item is i) for i in clash.items
            )
            raise UserError(f"the manifest {file}, {first} and {second}: {clash}") from clash
        datasets.append(Dataset(dataset, kept, repeated))
    return datasets


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no manifest {file}; check the path") from error
    except IsADirectoryError as error:
        raise UserError(f"cannot read the manifest {file}: it is a folder") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the manifest {file}: {reason}; make it readable") from error


def _csv_rows(file: Path, content: bytes) -> Iterator[_Row]:
    # Python's reader rather than pyarrow's: it knows line numbers, guesses no types, and takes line breaks
    # inside of quotes as they are.
    reader = csv.reader(io.StringIO(_decode(file, content), newline=""), strict=True)
    header: list[str] | None = None
    number = 0
    line = 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UserError(f"the manifest {file} is damaged at line {line}: {cause(error)}") from error
        if cells is None:
            break
        if cells and header is None:
            header = cells
            _check_columns(file, header)
        elif cells and header is not None:
            number += 1
            place = f"row {number} (line {line})"
            if len(cells) != len(header):
                raise UserError(
                    f"the manifest {file}, {place}: {len(cells)} values for {len(header)} columns; "
                    'put values that hold a comma in double quotes ("a,b")'
                )
            row = dict(zip(header, cells, strict=True))
            yield _Row(place, row["path"], row["label"], row.get("dataset"), row.get("split", ""))
        line = reader.line_num + 1


def _decode(file: Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"the manifest {file} is not UTF-8 (line {line}); save it as UTF-8") from error


def _parquet_rows(file: Path, content: bytes) -> Iterator[_Row]:
    # Slow to import, and most runs read no Parquet.
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(pa.BufferReader(content))
        names = table.schema_arrow.names
        _check_columns(file, names)
        wanted = [column for column in (*_REQUIRED, *_OPTIONAL) if column in names]
        columns = {column: table.read(columns=[column]).column(column) for column in wanted}
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = cause(error) or type(error).__name__
        raise UserError(f"the manifest {file} is no readable Parquet file: {reason}") from error
    texts = {column: _texts(file, column, values) for column, values in columns.items()}
    count = len(texts["path"])
    datasets: list[str] | list[None] = texts.get("dataset") or [None] * count
    splits = texts.get("split") or [""] * count
    for number, (path, label, dataset, split) in enumerate(
        zip(texts["path"], texts["label"], datasets, splits, strict=True), start=1
    ):
        yield _Row(f"row {number}", path, label, dataset, split)


def _texts(file: Path, column: str, values: Any) -> list[str]:
    """A Parquet column as text, empty where it is null."""
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    # Floats are refused: a class number that pandas made a float would become "7.0" here and "7" elsewhere.
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    if not (text or pa.types.is_null(kind) or (pa.types.is_integer(kind) and column in ("label", "dataset"))):
        raise UserError(f"the manifest {file}: the column {column!r} holds values of type {kind}; write them as text")
    try:
        return ["" if value is None else str(value) for value in values.to_pylist()]
    except UnicodeDecodeError as error:
        raise UserError(f"the manifest {file}: the column {column!r} is not UTF-8; write it anew") from error


def _check_columns(file: Path, names: list[str]) -> None:
    repeated = [name for name in (*_REQUIRED, *_OPTIONAL) if names.count(name) > 1]
    if repeated:
        raise UserError(f"the manifest {file} has two columns {repeated[0]!r}; remove one")
    missing = [name for name in _REQUIRED if name not in names]
    if not missing:
        return
    separators = [sign for sign in (";", "\t", "|") if len(names) == 1 and sign in names[0]]
    if separators:
        raise UserError(
            f"the manifest {file} has one column {shown(names[0])}: separate the columns by ',', "
            f"not by {separators[0]!r}"
        )
    listed = ", ".join([shown(name) for name in names[:10]] + ["..."] * (len(names) > 10))
    close = difflib.get_close_matches(missing[0], names, n=1, cutoff=0.5)
    remedy = f"rename {shown(close[0])}" if close else "add it, or name the columns in the first row"
    raise UserError(f"the manifest {file} has no column {missing[0]!r}, only {listed}; {remedy}")


def _item(file: Path, row: _Row, name: str | None) -> Item:
    for column, value in (("path", row.path), ("label", row.label), ("dataset", row.dataset)):
        if value is not None and not value.strip():
            raise UserError(f"the manifest {file}, {row.place}: the {column} is empty")
    role = row.split.strip().lower()
    if role not in SPLITS:
        valid = nearest_names(role, [split for split in SPLITS if split])
        raise UserError(f"the manifest {file}, {row.place}: unknown split {shown(row.split)}; {valid}, or empty")
    dataset = "/".join(part for part in (name, row.dataset) if part) or file.stem
    return Item(file.parent / row.path, row.label, dataset, SPLITS[role])


def _check_files(file: Path, rows: list[_Row], paths: list[Path]) -> None:
    missing: dict[Path, str] = {}
    for row, path in zip(rows, paths, strict=True):
        if path not in missing and not _is_file(path):
            missing[path] = row.place
    if missing:
        first = ", ".join(escaped(path)[:_LONGEST] for path in islice(missing, 5))
        more = ", ..." if len(missing) > 5 else ""
        raise UserError(
            f"the manifest {file}, from {next(iter(missing.values()))} on, names {len(missing)} missing images "
            f"({len(paths)} in all): {first}{more}; "
            f"paths are relative to {file.parent}"
        )


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116 (three times as fast, for 100,000 images)
    except (OSError, ValueError):
        return False
