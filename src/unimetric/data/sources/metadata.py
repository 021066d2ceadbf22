"""What a manifest says of its images besides label, dataset and split: further columns, for search."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from datetime import date, datetime, timezone
from pathlib import Path
from typing import Any, TypeAlias

from unimetric.errors import UserError, shown

Value: TypeAlias = "str | int | float | bool | date | datetime | None"
"""What a cell may hold: numbers are finite, times have no zone (they are UTC)."""

OWN = ("path", "label", "dataset", "split")
"""The columns that the manifest itself gives a meaning."""

# Without leading zeros: an article number or a postal code is text.
_NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_LARGEST = 2**53
"""From here on, floats skip whole numbers."""


def read_metadata(file: Path, name: str | None = None) -> dict[tuple[str, str], dict[str, Value]]:
    """The further columns of a manifest that `read_manifest` reads without complaint.

    In CSV, a column is of numbers if every cell that is not empty is written like one, without leading zeros; of
    booleans if every one is ``true`` or ``false``; else of text. Parquet columns of text, numbers, booleans, dates and
    times keep their type. Empty cells and NaN are None. Where an image is listed twice, its first row counts.

    Args:
        file: the manifest.
        name: as for `read_manifest`.

    Returns:
        The cells by column, for every (dataset, path) as in `Item`.

    Raises:
        UserError: two columns of one name, or a Parquet column of another type.
    """
    columns = _csv_columns(file) if file.suffix.lower() == ".csv" else _parquet_columns(file)
    further = {column: values for column, values in columns.items() if column not in OWN}
    if not further:
        return {}
    datasets = columns.get("dataset") or [None] * len(columns["path"])
    found: dict[tuple[str, str], dict[str, Value]] = {}
    for row, (path, dataset) in enumerate(zip(columns["path"], datasets, strict=True)):
        text = "" if dataset is None else str(dataset)
        key = "/".join(part for part in (name, text) if part) or file.stem, str(file.parent / path)
        found.setdefault(key, {column: values[row] for column, values in further.items()})
    return found


def _csv_columns(file: Path) -> dict[str, list[Any]]:
    rows = [row for row in csv.reader(io.StringIO(file.read_text(encoding="utf-8-sig"), newline="")) if row]
    header = rows[0]
    for column in header:
        if header.count(column) > 1:
            raise UserError(f"the manifest {file} has two columns {shown(column)}; rename one")
    cells = {column: [row[place] for row in rows[1:]] for place, column in enumerate(header)}
    return {column: values if column in OWN else _typed(values) for column, values in cells.items()}


def _typed(cells: Sequence[str]) -> list[Value]:
    """The cells of a CSV column as numbers or booleans, if all of them can be, else as they are."""
    stripped = [cell.strip() for cell in cells]
    filled = [cell for cell in stripped if cell]
    if filled and all(cell.lower() in ("true", "false") for cell in filled):
        return [cell.lower() == "true" if cell else None for cell in stripped]
    if filled and all(_NUMBER.fullmatch(cell) and abs(float(cell)) < _LARGEST for cell in filled):
        return [_number(float(cell)) if cell else None for cell in stripped]
    return [cell or None for cell in cells]


def _number(value: float) -> int | float:
    return int(value) if value.is_integer() else value


def _parquet_columns(file: Path) -> dict[str, list[Any]]:
    # Slow to import, and most runs read no Parquet.
    import pyarrow.parquet as pq

    table = pq.read_table(file)
    columns: dict[str, list[Any]] = {}
    for column in table.column_names:
        if column in columns:
            raise UserError(f"the manifest {file} has two columns {shown(column)}; rename one")
        values = table.column(column)
        columns[column] = values.to_pylist() if column in OWN else _plain(file, column, values)
    return columns


def _plain(file: Path, column: str, values: Any) -> list[Value]:
    import pyarrow as pa

    kind = values.type.value_type if pa.types.is_dictionary(values.type) else values.type
    if pa.types.is_decimal(kind):
        return [None if value is None else float(value) for value in values.to_pylist()]
    if pa.types.is_timestamp(kind):
        return [_time(value) for value in values.cast(pa.timestamp("us", kind.tz), safe=False).to_pylist()]
    known = (
        pa.types.is_string(kind)
        or pa.types.is_large_string(kind)
        or pa.types.is_string_view(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_floating(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_date(kind)
        or pa.types.is_null(kind)
    )
    if not known:
        raise UserError(
            f"the manifest {file}: the column {column!r} holds values of type {kind}; write them as text or numbers, "
            "or remove the column"
        )
    return [None if isinstance(value, float) and math.isnan(value) else value for value in values.to_pylist()]


def _time(value: datetime | None) -> datetime | None:
    return value if value is None or value.tzinfo is None else value.astimezone(timezone.utc).replace(tzinfo=None)
