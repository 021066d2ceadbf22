"""The further columns of manifests, besides path, label, dataset and split: for search."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timezone
from pathlib import Path
from typing import TypeAlias

from unimetric.data.labels import MISSING_WORDS
from unimetric.data.sources.manifest import load_manifest
from unimetric.data.sources.table import CsvTable, ParquetTable, Table, is_text_type, replaced, value_type
from unimetric.errors import shown

Value: TypeAlias = "str | int | float | bool | date | datetime | None"
"""A cell: numbers are finite, times have no zone (they are UTC)."""

_NAMELESS = re.compile(r"|Unnamed: \d+|__index_level_\d+__")
"""The header of columns without a name, as pandas writes and reads them."""
# Without leading zeros: an article number or a postal code is text.
_NUMBER = re.compile(r"[+-]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WITH_COMMAS = re.compile(r"[+-]?\d[\d.]*(,[\d.]+)+", re.ASCII)
"""Numbers with a decimal comma, or with commas between thousands: the two readings cannot be distinguished."""
_LARGEST = 2**53
"""From here on, floats skip whole numbers."""
_ABSENT = {"", "inf", "+inf", "-inf"} | MISSING_WORDS
"""Cells of a column of numbers that hold none, in lower case."""


@dataclass(frozen=True)
class Metadata:
    """The cells by column, for each (dataset, path) as in `Item`; and remarks on columns that are left out."""

    cells: dict[tuple[str, str], dict[str, Value]]
    notes: tuple[str, ...] = ()


def read_metadata(file: Path, name: str | None = None, texts: Collection[str] = ()) -> Metadata:
    """Read the further columns of a manifest; those named in ``texts`` stay text in CSV.

    In CSV, a column is of numbers if each cell is written like one, without leading zeros, or like a missing value
    (empty, ``nan``, ``NULL``, ...); of booleans if each is ``true``, ``false`` or missing; else of text, with a note if
    most cells are numbers. Parquet columns of text, numbers, booleans, dates and times keep their type; whole numbers
    beyond 2^53 become text. Empty cells, NaN and infinity are None. Where an image is listed twice, its first row
    counts. Columns without a name are left out; so are, with a note, columns of which the name is there twice, and
    Parquet columns of other types. Arguments and errors are those of `read_manifest`.
    """
    rows, items, _ = load_manifest(file, name, classes=False)
    table = rows.table
    columns: dict[str, list[Value]] = {}
    notes = []
    for place, column in enumerate(table.names):
        if place in rows.columns.used or _NAMELESS.fullmatch(column):
            continue
        values: list[Value] = []
        problem = "its name is there twice" if table.names.count(column) > 1 else ""
        if not problem and isinstance(table, CsvTable):
            written = [replaced(cell) for cell in table.cells(place)]
            values = [cell or None for cell in written] if column in texts else _typed(written)
        elif not problem and isinstance(table, ParquetTable):
            values, problem = _plain(table, place)
        if problem:
            notes.append(f"the manifest {file}: the column {shown(column)} is skipped: {problem}")
        else:
            columns[column] = values
            if column not in texts and (doubt := _doubt(table, values)):
                notes.append(f"the manifest {file}: the column {shown(column)} is text: {doubt}")
    cells: dict[tuple[str, str], dict[str, Value]] = {}
    if columns:
        for row, item in enumerate(items):
            key = item.dataset, str(item.path)
            if key not in cells:
                cells[key] = {column: values[row] for column, values in columns.items()}
    return Metadata(cells, tuple(dict.fromkeys(notes)))


def _typed(cells: Sequence[str]) -> list[Value]:
    """Return the cells of a CSV column as numbers or booleans, if all of them can be, else as they are."""
    stripped = [cell.strip() for cell in cells]
    lower = [cell.lower() for cell in stripped]
    filled = {cell for cell in lower if cell not in _ABSENT}
    if filled and filled <= {"true", "false"}:
        return [cell == "true" if cell in filled else None for cell in lower]
    if filled and all(map(_is_number, filled)):
        numbers = [float(cell) if cell in filled else None for cell in lower]
        return [int(value) if value is not None and value.is_integer() else value for value in numbers]
    return [cell or None for cell in cells]


def _is_number(cell: str) -> bool:
    return _NUMBER.fullmatch(cell) is not None and abs(float(cell)) < _LARGEST


def _doubt(table: Table, values: Sequence[Value]) -> str:
    """Return the reason why a column is text although most of its cells are numbers; empty for all others."""
    cells = [(row, value.strip()) for row, value in enumerate(values) if isinstance(value, str)]
    others = [(row, cell) for row, cell in cells if not _is_number(cell)]
    like_numbers = len(cells) - len(others) + sum(_WITH_COMMAS.fullmatch(cell) is not None for _, cell in others)
    # Digits alone are article numbers and the like, with leading zeros or too many for a float.
    if not others or 2 * like_numbers <= len(cells) or any(cell.isdigit() for _, cell in others):
        return ""
    row, cell = others[0]
    return (
        f"{table.row_place(row)} holds {shown(cell)}; write numbers with a point and without separators of thousands, "
        "and leave cells without a number empty"
    )


def _plain(table: ParquetTable, column: int) -> tuple[list[Value], str]:
    """Return a column's values, or the reason why it cannot be used."""
    import pyarrow as pa

    kind = value_type(table.schema.field(column).type)
    types = pa.types
    if types.is_timestamp(kind):
        values = table.arrow(column).cast(pa.timestamp("us", kind.tz), safe=False).to_pylist()
        if kind.tz is None:
            return values, ""
        return [value and value.astimezone(timezone.utc).replace(tzinfo=None) for value in values], ""
    known = (types.is_decimal, types.is_integer, types.is_floating, types.is_boolean, types.is_date, types.is_null)
    if not (is_text_type(kind) or any(check(kind) for check in known)):
        return [], f"its values are of type {kind}; write them as text or numbers"
    try:
        values = table.arrow(column).to_pylist()
    except UnicodeDecodeError:
        return [], "it is not UTF-8"
    if types.is_decimal(kind):
        return [None if value is None else float(value) for value in values], ""
    if types.is_integer(kind) and any(value is not None and abs(value) >= _LARGEST for value in values):
        return [None if value is None else str(value) for value in values], ""
    return [None if isinstance(value, float) and not math.isfinite(value) else value for value in values], ""
