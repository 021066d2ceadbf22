"""Text tables of benchmark datasets: columns separated by blanks."""

from collections.abc import Iterable, Sequence
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


def read_classes(folder: Path, low: int, high: int) -> tuple[dict[int, str], list[tuple[str, int]]]:
    """Read ``classes.txt``, ``images.txt`` and ``image_class_labels.txt`` of CUB-200-2011 and NABirds.

    Returns:
        The names of the classes by id, from ``low`` to ``high``; and each image's path with the id of its class.
    """
    images_file, classes_file, names_file = (
        folder / name for name in ("images.txt", "image_class_labels.txt", "classes.txt")
    )
    names: dict[int, str] = {}
    for line, (text, name) in read_table(names_file, ("class_id", "class_name"), rest=True):
        number = whole_number(text, f"{names_file}, line {line}", "class id", low, high)
        if number in names:
            raise UserError(f"{names_file}, line {line}: the class id {number} is there twice; download the file again")
        names[number] = name
    images = _by_key(images_file, read_table(images_file, ("image_id", "path"), rest=True))
    classes = _by_key(classes_file, read_table(classes_file, ("image_id", "class_id")))
    sides = ((images_file, images, classes_file, classes), (classes_file, classes, images_file, images))
    for file, own, other_file, others in sides:
        alone = next((key for key in own if key not in others), None)
        if alone is not None:
            raise UserError(
                f"{other_file} has no image {alone!r}, which {file} has on line {own[alone].line}; download both again"
            )
    pairs = []
    for key, row in images.items():
        place = f"{classes_file}, line {classes[key].line}"
        number = whole_number(classes[key].values[1], place, "class id", low, high)
        if number not in names:
            raise UserError(f"{place}: the class id {number} is not in {names_file}; download both again")
        pairs.append((forward_slashes(row.values[1]), number))
    return names, pairs


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


def _by_key(file: Path, rows: Iterable[Row]) -> dict[str, Row]:
    """Return rows by their first value."""
    found: dict[str, Row] = {}
    for row in rows:
        key = row.values[0]
        if key in found:
            raise UserError(f"{file}, line {row.line}: {key!r} is on line {found[key].line} too; download it again")
        found[key] = row
    return found


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
