"""What the readers of the benchmark datasets share: finding the folder, reading tables and .mat files, checking images.

Every fault of a file is a `UserError` of one line. Nothing is ever unpickled.
"""

from __future__ import annotations

import os
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from unimetric.data.catalog import Dataset, Item
from unimetric.data.sources.published import PUBLISHED, count_differences
from unimetric.errors import UserError

_MAT_HEADER = 128
"""Bytes before the first variable of a MATLAB 5 file."""
_MAT_VERSION = 0x0100
_MAT_ORDERS: dict[bytes, Literal["little", "big"]] = {b"IM": "little", b"MI": "big"}
"""The order of the bytes of numbers, by the last two bytes of the header."""
_MAT_COMPRESSED = 15
"""The type of a variable that is packed with zlib."""


class Listed(NamedTuple):
    """One image as an annotation file lists it."""

    path: str
    """Relative to the folder of images, with forward slashes."""
    label: str
    role: str


class Row(NamedTuple):
    """One row of a table of text."""

    line: int
    """Its line in the file, from 1."""
    values: tuple[str, ...]


def recognise(folder: Path) -> list[str]:
    """The benchmark datasets whose annotation files lie in a folder: their names, as in `PUBLISHED`.

    Where the files of one dataset are among those of another (CUB-200-2011 and NABirds), only the other counts.
    """
    found = {
        name: {file for group in published.marks if _all_exist(folder, group) for file in group}
        for name, published in PUBLISHED.items()
    }
    return [name for name, files in found.items() if files and not any(files < others for others in found.values())]


def find_file(folder: Path, source: str, names: Sequence[str]) -> Path:
    """The first of the named files that a dataset's folder holds.

    Args:
        folder: what the user gave.
        source: the dataset, a key of `PUBLISHED`.
        names: where the file may lie, relative to the folder, the usual place first.

    Raises:
        UserError: there is no such folder, or it holds none of the files; if it lies one level too high or too low,
            the message says which folder was meant.
    """
    check_folder(folder, source)
    if found := find_optional(folder, names):
        return found
    title = PUBLISHED[source].title
    held = recognise(folder)
    if source not in held:
        if held:
            raise UserError(
                f"{folder} is the folder of {PUBLISHED[held[0]].title}, not {title}; write {held[0]}:{folder}"
            )
        if meant := _child_meant(folder, source):
            raise UserError(f"{folder} is one level too high for {title}: it lies in {meant}; give that folder")
        if meant := _parent_meant(folder, source):
            raise UserError(f"{folder} is too low for {title}: it lies in {meant}; give that folder")
    kind = "" if source in held else f", so it is no {title} folder"
    raise UserError(f"{folder} holds no {names[0]}{kind}; {_remedy(source)}")


def find_optional(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of the named files that a folder holds, or None.

    Raises:
        UserError: a folder within it cannot be looked into.
    """
    return next((folder / name for name in names if _is_there(folder / name, Path.is_file)), None)


def _is_there(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except PermissionError as error:
        raise UserError(f"cannot read the folder {path.parent}: no permission; make it readable") from error


def check_folder(folder: Path, source: str) -> None:
    """See that there is such a folder.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    try:
        folder.stat()
    except PermissionError as error:
        raise UserError(f"cannot read the folder {folder}: no permission; make it readable") from error
    except (OSError, ValueError) as error:
        raise UserError(f"there is no folder {folder}; check the path") from error
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder; give the folder of {PUBLISHED[source].title}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"cannot read the folder {folder}: no permission; make it readable")


def find_images(
    folder: Path, source: str, names: Sequence[str], *, usual: str | None = None, required: bool = True
) -> Path:
    """The first of the named folders of images that a dataset's folder holds.

    Args:
        folder: the dataset's.
        source: the dataset, a key of `PUBLISHED`.
        names: where the images may lie, relative to the folder, in the order to look.
        usual: where they usually lie; by default the first of ``names``.
        required: whether it is an error if there is none of them; if not, the usual one is returned.

    Raises:
        UserError: it holds none of them; if the folder above does, the message says that this one was meant.
    """
    for name in names:
        if _is_there(folder / name, Path.is_dir):
            return folder / name
    usual = usual or names[0]
    if not required:
        return folder / usual
    above = folder.resolve().parent
    if any(_is_there(above / name, Path.is_dir) for name in names):
        raise UserError(
            f"{folder} is one level too low for {PUBLISHED[source].title}: its images are in {above}; give that folder"
        )
    raise UserError(f"{folder} has no folder {usual} with the images of {PUBLISHED[source].title}; {_remedy(source)}")


def read_table(file: Path, columns: Sequence[str], *, rest: bool = False) -> list[Row]:
    """Read a table without a header, its columns separated by blanks; blank lines are skipped.

    Args:
        file: the table, UTF-8.
        columns: the names of the columns, for messages.
        rest: whether the last column takes the rest of the line, blanks and all.

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
        raise UserError(f"{file} is empty; download it anew")
    return rows


def read_table_with_header(file: Path, columns: Sequence[str], *, count_first: bool = False) -> list[Row]:
    """Read the named columns of a table whose first line names its columns; as `read_table` otherwise.

    Args:
        file: the table, UTF-8.
        columns: the columns wanted, in the order wanted.
        count_first: whether a line with the number of rows may come before the header; the number is not used.

    Raises:
        UserError: as `read_table`, or a column is missing.
    """
    lines = _read_lines(file)
    if count_first and lines and lines[0][1].isdigit():
        lines = lines[1:]
    if len(lines) < 2:
        raise UserError(f"{file} lists no images; download it anew")
    header = lines[0][1].split()
    for column in columns:
        if column not in header:
            listed = ", ".join(repr(name) for name in header[:6])
            raise UserError(f"{file} has no column {column!r}, only {listed}; download it anew")
    places = [header.index(column) for column in columns]
    rows = []
    for line, text in lines[1:]:
        values = text.split()
        if len(values) != len(header):
            raise _ragged(file, line, len(values), header)
        rows.append(Row(line, tuple(values[place] for place in places)))
    return rows


def _by_key(file: Path, rows: Iterable[Row]) -> dict[str, Row]:
    """Rows by their first value.

    Raises:
        UserError: two rows have the same.
    """
    found: dict[str, Row] = {}
    for row in rows:
        key = row.values[0]
        if key in found:
            raise UserError(f"{file}, line {row.line}: {key!r} is on line {found[key].line} too; download it anew")
        found[key] = row
    return found


def read_image_classes(images_file: Path, classes_file: Path) -> list[tuple[str, Row]]:
    """Join the two tables of CUB-200-2011 and NABirds on the image's id: the path and the class's row of every image.

    Args:
        images_file: the table ``image_id path``.
        classes_file: the table ``image_id class_id``.

    Raises:
        UserError: as `read_table`; an id is listed twice, or in one of the files only.
    """
    images = _by_key(images_file, read_table(images_file, ("image_id", "path"), rest=True))
    classes = _by_key(classes_file, read_table(classes_file, ("image_id", "class_id")))
    sides = ((images_file, images, classes_file, classes), (classes_file, classes, images_file, images))
    for file, own, other_file, others in sides:
        alone = next((key for key in own if key not in others), None)
        if alone is not None:
            raise UserError(
                f"{other_file} has no image {alone!r}, which {file} has on line {own[alone].line}; download both anew"
            )
    return [(forward_slashes(row.values[1]), classes[key]) for key, row in images.items()]


def forward_slashes(path: str) -> str:
    """A path as a list has it that may have been written anew on Windows, as `Listed.path`."""
    return path.replace("\\", "/").removeprefix("./")


def read_class_names(file: Path, low: int, high: int) -> dict[int, str]:
    """The table ``class_id class_name``, whose ids lie in ``low`` to ``high``.

    Raises:
        UserError: as `read_table`; an id is out of range, or listed twice.
    """
    names: dict[int, str] = {}
    for line, (text, name) in read_table(file, ("class_id", "class_name"), rest=True):
        number = whole_number(text, f"{file}, line {line}", "class id", low, high)
        if number in names:
            raise UserError(f"{file}, line {line}: the class id {number} is there twice; download the file anew")
        names[number] = name
    return names


def whole_number(text: str, place: str, what: str, low: int, high: int) -> int:
    """A whole number, written in digits.

    Args:
        text: what was read.
        place: where, for the message: the file, and the line if it has lines.
        what: what the number means, for the message.
        low: the least that is valid.
        high: the largest that is valid.

    Raises:
        UserError: it is no whole number, or out of range.
    """
    # int() would take "1_000", "+1" and digits of other scripts as well.
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise UserError(f"{place}: the {what} {text!r} is no whole number of {low} to {high}; download the file anew")
    number = int(text)
    if not low <= number <= high:
        raise UserError(f"{place}: the {what} {number} is out of range {low} to {high}; download the file anew")
    return number


def read_mat(file: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read variables of a MATLAB 5 file.

    Args:
        file: the .mat file.
        names: the variables that it must hold.
        optional: the variables that it may hold.

    Raises:
        UserError: the file is missing, unreadable or damaged, or lacks a variable.
    """
    # Slow to import, and most runs read no .mat file.
    from scipy.io import loadmat

    try:
        _check_mat(file.read_bytes())
        content = loadmat(str(file), appendmat=False, variable_names=[*names, *optional])
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}; download it") from error
    except PermissionError as error:
        raise UserError(f"cannot read {file}: no permission; make it readable") from error
    except IsADirectoryError as error:
        raise UserError(f"cannot read {file}: it is a folder; download the file anew") from error
    except Exception as error:  # a damaged file raises errors of any type: TypeError, zlib.error, OverflowError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file} is no readable .mat file (truncated or damaged: {reason}); download it anew"
        ) from error
    for name in names:
        if name not in content:
            raise UserError(f"{file} has no variable {name!r}; download it anew")
    return {name: np.asarray(content[name]) for name in (*names, *optional) if name in content}


def _check_mat(content: bytes) -> None:
    """See that every variable of a MATLAB 5 file ends within it, and that packed ones match their checksums.

    scipy reads a file that lacks its last bytes without a word, and can crash the process on damaged ones.

    Raises:
        ValueError: the file is none of MATLAB 5, or ends too early.
        zlib.error: a packed variable is damaged.
    """
    place = _MAT_HEADER
    if len(content) <= place:
        raise ValueError(f"it has {len(content)} bytes")
    if content[126:128] not in _MAT_ORDERS:
        raise ValueError("it does not begin as a MATLAB 5 file does")
    order = _MAT_ORDERS[content[126:128]]
    if (version := int.from_bytes(content[124:126], order)) != _MAT_VERSION:
        raise ValueError(f"its version is {version:#06x}, not that of MATLAB 5, {_MAT_VERSION:#06x}")
    while place < len(content):
        kind, size = (int.from_bytes(content[at : at + 4], order) for at in (place, place + 4))
        place += 8
        if place + size > len(content):
            raise ValueError(f"it ends {place + size - len(content)} bytes too early")
        if kind == _MAT_COMPRESSED:
            zlib.decompress(content[place : place + size])
        place += size


def mat_column(file: Path, table: NDArray[Any], column: str) -> list[Any]:
    """One field of a MATLAB struct array, in its order, each value still as MATLAB wraps it.

    Raises:
        UserError: the array has no such field.
    """
    names = table.dtype.names or ()
    if column not in names:
        listed = ", ".join(repr(name) for name in names) or "no named columns at all"
        raise UserError(f"{file} has no column {column!r}, only {listed}; download it anew")
    return list(table.reshape(-1)[column])


def mat_numbers(file: Path, values: Iterable[Any], what: str, low: int, high: int) -> list[int]:
    """Values of a MATLAB array as whole numbers.

    Raises:
        UserError: one is no whole number, or out of range.
    """
    numbers = []
    for position, wrapped in enumerate(values, start=1):
        value = _unwrap(wrapped)
        # MATLAB writes whole numbers as floating point unless told otherwise.
        whole = isinstance(value, np.integer) or (isinstance(value, np.floating) and value.is_integer())
        if not whole:
            raise UserError(f"{file}, entry {position}: the {what} is no whole number; download the file anew")
        if not low <= value <= high:
            raise UserError(
                f"{file}, entry {position}: the {what} {int(value)} is out of range {low} to {high}; "
                "download the file anew"
            )
        numbers.append(int(value))
    return numbers


def mat_texts(file: Path, values: Iterable[Any], what: str) -> list[str]:
    """Values of a MATLAB array as text.

    Raises:
        UserError: one is no text, or empty.
    """
    texts = []
    for position, wrapped in enumerate(values, start=1):
        value = _unwrap(wrapped)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{file}, entry {position}: the {what} is no text; download the file anew")
        texts.append(str(value).strip())
    return texts


def check_same_length(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """See that the variables of one file have one value per image.

    Raises:
        UserError: their lengths differ.
    """
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{len(values)} {name}" for name, values in columns.items())
        raise UserError(f"{file} holds {lengths}, which have to be as many; download it anew")


def readable_names(names: Mapping[int, str]) -> dict[int, str]:
    """Class names with blanks for underscores, no two alike: where two would be, they get their numbers behind them."""
    plain = {number: " ".join(name.replace("_", " ").split()) or str(number) for number, name in names.items()}
    numbered = {number: f"{name} ({number})" for number, name in plain.items()}
    count = Counter(plain.values())
    labels = {number: name if count[name] == 1 else numbered[number] for number, name in plain.items()}
    # A class may be called as another one is with its number behind.
    return labels if len(set(labels.values())) == len(labels) else numbered


def make_dataset(
    source: str,
    name: str | None,
    images: Path,
    file: Path,
    listed: Sequence[Listed],
    *,
    require_images: bool,
    notes: Sequence[str] = (),
) -> list[Dataset]:
    """The dataset of what annotation files list, in their order.

    Args:
        source: the dataset's key in `PUBLISHED`, and its name if ``name`` is None.
        name: what to call it.
        images: the folder that the paths are relative to.
        file: the annotation file, for messages.
        listed: the images.
        require_images: whether an image that is listed but absent is an error.
        notes: remarks for the reader of the numbers. Differences from the published counts are added.

    Raises:
        UserError: a path leads out of the folder, an image is listed with two labels or in two splits, or images
            are absent.
    """
    called = name or source
    kept: dict[str, Listed] = {}
    repeated: list[Path] = []
    for entry in listed:
        other = kept.setdefault(entry.path, entry)
        if other is entry:
            _check_inside(file, images, entry.path)
        elif other == entry:
            repeated.append(images / entry.path)
        else:
            raise UserError(
                f"{file} lists {entry.path} twice, as {other.label!r} ({other.role}) and {entry.label!r} "
                f"({entry.role}); download it anew"
            )
    items = tuple(Item(images / entry.path, entry.label, called, entry.role) for entry in kept.values())
    if require_images and (absent := absent_images(items)):
        raise _absent(source, images, file, absent, len(items))
    remarks = [f"dataset {called!r}: {note}" for note in notes]
    if differences := count_differences(source, items):
        remarks.append(
            f"dataset {called!r} differs from {PUBLISHED[source].title} as published: {'; '.join(differences)}"
        )
    return [Dataset(called, items, tuple(repeated), tuple(remarks))]


def absent_images(items: Iterable[Item]) -> list[Path]:
    """The items' paths at which there is no file, in their order.

    Each folder is listed once, which is many times faster than a look at every file.

    Raises:
        UserError: a folder cannot be read.
    """
    files: dict[str, set[str]] = {}
    absent = []
    for item in items:
        folder, name = os.path.split(item.path)
        if folder not in files:
            files[folder] = _files_in(folder)
        if name not in files[folder]:
            absent.append(item.path)
    return absent


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        return set()
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}; make it readable") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False  # a link to itself


def _check_inside(file: Path, images: Path, path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or Path(path).is_absolute():
        raise UserError(f"{file} lists {path!r}, which leads out of {images}; download it anew")


def _absent(source: str, images: Path, file: Path, absent: Sequence[Path], count: int) -> UserError:
    if len(absent) == count:
        what = f"none of the {count} images that {file} lists is there; the first would be {absent[0]}"
    else:
        are = "is" if len(absent) == 1 else "are"
        what = f"{len(absent)} of the {count} images that {file} lists {are} absent, the first is {absent[0]}"
    if other := _spelt_otherwise(absent[0]):
        return UserError(f"{what}, where {other.name} is instead; rename the images as they are listed")
    return UserError(f"{what}; {_remedy(source, images)}")


def _spelt_otherwise(path: Path) -> Path | None:
    """The file of which the path is the name but for small and capital letters."""
    try:
        beside = [other for other in path.parent.iterdir() if other.name != path.name]
    except (OSError, ValueError):
        return None  # there is no such folder
    return next((other for other in beside if other.name.lower() == path.name.lower()), None)


def _remedy(source: str, folder: Path | None = None) -> str:
    published = PUBLISHED[source]
    there = f"in {folder}" if folder else "there"
    return f"get {published.downloads()} from {published.home} and unpack {there}"


def _read_lines(file: Path) -> list[tuple[int, str]]:
    """Lines with their numbers, from 1, without the blanks around them; empty ones are left out."""
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {file}; download it") from error
    except IsADirectoryError as error:
        raise UserError(f"cannot read {file}: it is a folder; download the file anew") from error
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; make it readable") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise UserError(f"{file} is not UTF-8 (line {line}); download it anew") from error
    if "\0" in text:
        raise UserError(f"{file} is no text (line {text[: text.index(chr(0))].count(chr(10)) + 1}); download it anew")
    # Not splitlines(), which breaks lines at signs that may stand in a name.
    plain = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = ((number, line.strip()) for number, line in enumerate(plain.split("\n"), start=1))
    return [(number, line) for number, line in lines if line]


def _ragged(file: Path, line: int, count: int, columns: Sequence[str]) -> UserError:
    values = "1 value" if count == 1 else f"{count} values"
    return UserError(f"{file}, line {line}: {values} for the columns {', '.join(columns)}; download it anew")


def _unwrap(value: Any) -> Any:
    """MATLAB has no scalars: a number is an array [1, 1], a text in a cell an array [1]."""
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value


def _all_exist(folder: Path, names: Iterable[str]) -> bool:
    try:
        return all((folder / name).exists() for name in names)
    except OSError:
        return False


def _child_meant(folder: Path, source: str) -> Path | None:
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}; make it readable") from error
    return next((child for child in children if source in recognise(child)), None)


def _parent_meant(folder: Path, source: str) -> Path | None:
    return next((parent for parent in folders_above(folder) if source in recognise(parent)), None)


def folders_above(folder: Path) -> Sequence[Path]:
    """The folders that may be a dataset's if this one holds some of its images, the nearest first."""
    # Img/img/WOMEN/Dresses/id_00000002 of In-Shop.
    return folder.resolve().parents[:5]
