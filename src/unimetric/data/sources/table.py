"""Tables of text: CSV and Parquet files as columns by name.

A column is read only when it is asked for, so nothing in the others can be a reason to refuse a file.
"""

import csv
import io
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import PurePath
from typing import Any, TypeAlias

from unimetric.errors import UserError, cause

SUFFIXES = (".csv", ".tsv", ".parquet", ".pq")
_DELIMITERS = (",", ";", "\t", "|")
_SEPARATOR_LINE = re.compile(r"[\r\n]*\"?sep=([^\r\n])\"?[\r\n]")
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
_ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"\xd0\xcf\x11\xe0", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"(\xb5/\xfd")
"""First bytes of ZIP (and so of Excel and LibreOffice), gzip, old Excel, bzip2, xz, 7-Zip and Zstandard."""


def open_table(place: PurePath | str, content: bytes, columns_found: Callable[[list[str]], int]) -> "Table":
    """Read a CSV or Parquet table from its bytes; the ending of its ``place`` decides the format.

    CSV is UTF-8, or UTF-16 with a byte order mark; quoted as in RFC 4180; separated by the one of comma, semicolon, tab
    and ``|`` that finds the most wanted columns (``columns_found`` counts them in a list of names); Excel's first line
    ``sep=;`` names another. Empty rows are skipped, and spaces between a separator and a quote.
    """
    suffix = PurePath(place).suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(f"cannot read the manifest {place}: its name must end in {' or '.join(SUFFIXES)}")
    if suffix in (".csv", ".tsv"):
        return CsvTable(str(place), content, columns_found)
    return ParquetTable(str(place), content)


class CsvTable:
    """Text in rows; see `open_table`."""

    def __init__(self, place: str, content: bytes, columns_found: Callable[[list[str]], int]) -> None:
        self.place = place
        self.names: list[str] = []
        self._rows: list[list[str]] = []
        self._lines: list[int] = []
        text = self._decode(content)
        # The limit holds for the whole process, and is there to protect against memory that is taken already.
        csv.field_size_limit(max(csv.field_size_limit(), min(len(text) + 1, sys.maxsize)))
        named = _SEPARATOR_LINE.match(text)
        found = max(_DELIMITERS, key=lambda delimiter: columns_found(_first_row(text, delimiter)))
        self._read(text, named[1] if named else found)

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self._rows)

    def texts(self, column: int, *, floats: bool = False) -> list[str]:
        """Return a column as text, which may be of floats in any case; a `UserError` if it is not UTF-8."""
        cells = self.cells(column)
        if not "".join(cells).isascii():
            for row, cell in enumerate(cells):
                if cell != replaced(cell):
                    raise UserError(
                        f"the manifest {self.place} is not UTF-8 (line {self._lines[row]}); save it as UTF-8"
                    )
        return cells

    def cells(self, column: int) -> list[str]:
        """Return a column as it is: bytes that are not UTF-8 as lone surrogates, empty where a row ends before it."""
        return [row[column] if column < len(row) else "" for row in self._rows]

    def row_place(self, row: int) -> str:
        """Return the row and its first line in the file."""
        return f"row {row + 1} (line {self._lines[row]})"

    def check_length(self, last: int) -> None:
        """Refuse rows that end before the column ``last``, or hold more than the header."""
        for row, cells in enumerate(self._rows):
            if len(cells) <= last or any(cells[len(self.names) :]):
                raise UserError(
                    f"the manifest {self.place}, {self.row_place(row)}: {len(cells)} values for {len(self.names)} "
                    'columns; put values that hold the separator in double quotes ("a,b")'
                )

    def _decode(self, content: bytes) -> str:
        try:
            if content.startswith(_UTF16_MARKS) and content[2:4] != b"\0\0":
                return content.decode("utf-16")
        except UnicodeDecodeError as error:
            raise UserError(f"the manifest {self.place} is damaged UTF-16; save it as UTF-8") from error
        if content.startswith(b"PAR1"):
            raise UserError(f"the manifest {self.place} is a Parquet file; call it .parquet")
        if content.startswith(_ARCHIVES):
            raise UserError(
                f"the manifest {self.place} is a spreadsheet or an archive, not CSV; save it as CSV (UTF-8)"
            )
        if b"\0" in content[:4]:
            raise UserError(f"the manifest {self.place} is UTF-16, UTF-32 or no text; save it as UTF-8")
        # A column that is not read may hold anything.
        return content.decode("utf-8-sig", "surrogateescape")

    def _read(self, text: str, delimiter: str) -> None:
        # Python's reader rather than pyarrow's: it counts lines, guesses no types, and keeps line breaks in quotes.
        spaced = re.search(rf'{re.escape(delimiter)} +"', text) is not None
        lines = io.StringIO(text, newline="")
        reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=spaced)
        line = 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise UserError(
                    f"the manifest {self.place} is damaged at line {line}: {cause(error)}; check its double quotes"
                ) from error
            if cells is None:
                return
            filled = any(map(str.strip, cells))
            if self.names and filled:
                self._rows.append(cells)
                self._lines.append(line)
            elif filled and "".join(cells) not in ("sep=", f"sep={delimiter}"):
                self.names = _header(cells)
            line = reader.line_num + 1


class ParquetTable:
    """Columns of an Apache Parquet file."""

    def __init__(self, place: str, content: bytes) -> None:
        # Slow to import, and most runs read no Parquet.
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.place = place
        try:
            self._file = pq.ParquetFile(pa.BufferReader(content))
            self.schema = self._file.schema_arrow
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(error) from error
        self.names: list[str] = _header(self.schema.names)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._file.metadata.num_rows)

    def texts(self, column: int, *, floats: bool = False) -> list[str]:
        """Return a column of text, whole numbers, booleans or, if allowed, floats as text, empty where it is null.

        Raises:
            UserError: it holds something else, or is not UTF-8.
        """
        values = self._plain(column, self.schema.field(column).type, floats)
        return ["" if value is None else str(value) for value in values]

    def text_lists(self, column: int) -> list[list[str]] | None:
        """Return a column of lists of what `texts` takes, empty where it is null; None for other columns."""
        import pyarrow as pa

        kind = self.schema.field(column).type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            return None
        rows = self._plain(column, kind.value_type)
        return [[str(value) for value in row or () if value is not None] for row in rows]

    def _plain(self, column: int, kind: Any, floats: bool = False) -> list[Any]:
        """Return a column's values, which are of a type ``kind`` or lists of them."""
        import pyarrow as pa

        kind, name = value_type(kind), self.names[column]
        # Floats are refused: a class number that pandas made a float would become "7.0" here and "7" elsewhere.
        numbers = pa.types.is_integer(kind) or pa.types.is_boolean(kind) or (floats and pa.types.is_floating(kind))
        if not (numbers or is_text_type(kind) or pa.types.is_null(kind)):
            images = pa.types.is_struct(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
            remedy = "write them as text" + ", or hf:FOLDER as the source if they are images" * images
            raise UserError(f"the manifest {self.place}: the column {name!r} holds values of type {kind}; {remedy}")
        try:
            return list(self.arrow(column).to_pylist())
        except UnicodeDecodeError as error:
            raise UserError(f"the manifest {self.place}: the column {name!r} is not UTF-8; write it again") from error

    def arrow(self, column: int) -> Any:
        """Return a column, of which the name is unique, as pyarrow has it."""
        import pyarrow as pa

        name = self.schema.names[column]
        try:
            return self._file.read(columns=[name]).column(0)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def row_place(self, row: int) -> str:
        """Return the row."""
        return f"row {row + 1}"

    def _unreadable(self, error: Exception) -> UserError:
        reason = cause(error) or type(error).__name__
        return UserError(f"the manifest {self.place} is not a readable Parquet file: {reason}")


Table: TypeAlias = CsvTable | ParquetTable
"""Columns of equal length, found by their place; names may repeat."""


def value_type(kind: Any) -> Any:
    """Return the type of the values of a pyarrow type, which may be dictionary-encoded."""
    import pyarrow as pa

    return kind.value_type if pa.types.is_dictionary(kind) else kind


def is_text_type(kind: Any) -> bool:
    """Return true for every pyarrow type of text."""
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def replaced(cell: str) -> str:
    """Return a cell with the replacement character for each byte that is not UTF-8."""
    return cell.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _first_row(text: str, delimiter: str) -> list[str]:
    """Return the names in a CSV file's first row that is not empty; none where it cannot be read."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        return _header(next((row for row in reader if any(map(str.strip, row))), []))
    except csv.Error:
        return []  # reported when the rows are read


def _header(cells: Sequence[str]) -> list[str]:
    return [cell.strip().lstrip("\ufeff") for cell in cells]
