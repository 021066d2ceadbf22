"""Text tables of benchmark datasets: columns separated by blanks."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from unimetric.errors import UserError
from unimetric.files import read_bytes


class Row(NamedTuple):
    """One row of a table of text."""

    line: int
    """Its line in the file, from 1."""
    values: tuple[str, ...]


def read_table(file: Path, columns: Sequence[str], *, rest: bool = False) -> list[Row]:
    """Read a UTF-8 table without a header, its columns separated by blanks; blank lines are skipped.

    The names of the columns are for messages. With ``rest``, the last column takes the rest of the line, blanks
    included.

    Raises:
        UserError: the file is missing, unreadable, empty or not UTF-8, or a row has too few or too many values.
    """
    rows = []
    for line, text in _read_lines(file):
        values = text.split(None, len(columns) - 1) if rest else text.split()
        if len(values) != len(columns):
            raise _ragged(file, line, len(values), columns)
        rows.append(Row(line, tuple(values)))
    if not rows:
        raise UserError(f"{file} is empty; download it again")
    return rows


def read_table_with_header(file: Path, columns: Sequence[str], *, count_first: bool = False) -> list[Row]:
    """Read the wanted columns, in this order, of a table whose first line names its columns; else as `read_table`.

    With ``count_first``, a line with the number of rows may come before the header; the number is not used.
    """
    lines = _read_lines(file)
    if count_first and lines and lines[0][1].isdigit():
        lines = lines[1:]
    if len(lines) < 2:
        raise UserError(f"{file} lists no images; download it again")
    header = lines[0][1].split()
    for column in columns:
        if column not in header:
            listed = ", ".join(repr(name) for name in header[:6])
            raise UserError(f"{file} has no column {column!r}, only {listed}; download it again")
    places = [header.index(column) for column in columns]
    rows = []
    for line, text in lines[1:]:
        values = text.split()
        if len(values) != len(header):
            raise _ragged(file, line, len(values), header)
        rows.append(Row(line, tuple(values[place] for place in places)))
    return rows


def whole_number(text: str, place: str, what: str, low: int, high: int) -> int:
    """Return a whole number from ``low`` to ``high``, written in digits; ``place`` and ``what`` are for the message."""
    # int() would take "1_000", "+1" and digits of other scripts as well.
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UserError(f"{place}: the {what} {text!r} is not a whole number from {low} to {high}; download it again")
    number = int(text)
    if not low <= number <= high:
        raise UserError(f"{place}: the {what} {number} is out of range {low} to {high}; download the file again")
    return number


def forward_slashes(path: str) -> str:
    """Return a path of a list, which may have been edited on Windows, as `Listed.path`."""
    return path.replace("\\", "/").removeprefix("./")


def _read_lines(file: Path) -> list[tuple[int, str]]:
    """Return stripped lines with their numbers, from 1; empty ones are skipped."""
    content = read_bytes(file, "download it", "; download the file again")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file} is not UTF-8 (line {line}); download it again") from error
    if "\0" in text:
        raise UserError(f"{file} is not text (line {text[: text.index(chr(0))].count(chr(10)) + 1}); download it again")
    # Not splitlines(), which breaks lines at characters that a name may hold.
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = ((number, line.strip()) for number, line in enumerate(plain.split("\n"), start=1))
    return [(number, line) for number, line in lines if line]


def _ragged(file: Path, line: int, count: int, columns: Sequence[str]) -> UserError:
    values = "1 value" if count == 1 else f"{count} values"
    return UserError(f"{file}, line {line}: {values} for the columns {', '.join(columns)}; download it again")
