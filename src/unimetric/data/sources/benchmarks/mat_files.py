"""MATLAB 5 files of benchmark datasets."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unimetric.errors import UserError
from unimetric.files import read_bytes

_MAT_HEADER = 128
"""Bytes before the first variable of a MATLAB 5 file."""
_MAT_VERSION = 0x0100
_MAT_ORDERS: dict[bytes, Literal["little", "big"]] = {b"IM": "little", b"MI": "big"}
"""The order of the bytes of numbers, by the last two bytes of the header."""
_MAT_COMPRESSED = 15
"""The type of a variable that is packed with zlib."""


def read_mat(file: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read variables of a MATLAB 5 file: the required ``names``, and the optional ones that are there.

    Raises:
        UserError: the file is missing, unreadable or damaged, or lacks a variable.
    """
    # Slow to import, and most runs read no .mat file.
    from scipy.io import loadmat

    raw = read_bytes(file, "download it", "; download the file again")
    try:
        _check_mat(raw)
        content = loadmat(io.BytesIO(raw), variable_names=[*names, *optional])
    except Exception as error:  # a damaged file raises errors of any type: TypeError, zlib.error, OverflowError, ...
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"{file} is not a readable .mat file (truncated or damaged: {reason}); download it again"
        ) from error
    for name in names:
        if name not in content:
            raise UserError(f"{file} has no variable {name!r}; download it again")
    return {name: np.asarray(content[name]) for name in (*names, *optional) if name in content}


def mat_column(file: Path, table: NDArray[Any], column: str) -> list[Any]:
    """Return one field of a MATLAB struct array, in its order, each value still as MATLAB wraps it.

    Raises:
        UserError: the array has no such field.
    """
    names = table.dtype.names or ()
    if column not in names:
        listed = ", ".join(repr(name) for name in names) or "no named columns at all"
        raise UserError(f"{file} has no column {column!r}, only {listed}; download it again")
    return list(table.reshape(-1)[column])


def mat_numbers(file: Path, values: Iterable[Any], what: str, low: int, high: int) -> list[int]:
    """Return values of a MATLAB array as whole numbers.

    Raises:
        UserError: one is not a whole number, or out of range.
    """
    numbers = []
    for position, wrapped in enumerate(values, start=1):
        value = _unwrap(wrapped)
        # MATLAB writes whole numbers as floating point by default.
        whole = isinstance(value, np.integer) or (isinstance(value, np.floating) and value.is_integer())
        if not whole:
            raise UserError(f"{file}, entry {position}: the {what} is not a whole number; download the file again")
        if not low <= value <= high:
            raise UserError(
                f"{file}, entry {position}: the {what} {int(value)} is out of range {low} to {high}; "
                "download the file again"
            )
        numbers.append(int(value))
    return numbers


def mat_texts(file: Path, values: Iterable[Any], what: str) -> list[str]:
    """Return values of a MATLAB array as text.

    Raises:
        UserError: one is not text, or empty.
    """
    texts = []
    for position, wrapped in enumerate(values, start=1):
        value = _unwrap(wrapped)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{file}, entry {position}: the {what} is not text; download the file again")
        texts.append(str(value).strip())
    return texts


def check_same_length(file: Path, columns: Mapping[str, Sequence[Any]]) -> None:
    """Refuse variables of one file that differ in length.

    Raises:
        UserError: their lengths differ.
    """
    if len({len(values) for values in columns.values()}) > 1:
        lengths = ", ".join(f"{len(values)} {name}" for name, values in columns.items())
        raise UserError(f"{file} holds {lengths}, which have to be as many; download it again")


def _check_mat(content: bytes) -> None:
    """Refuse a MATLAB 5 file of which a variable ends after it, or a packed variable fails its checksum.

    scipy reads a file that lacks its last bytes without an error, and can crash the process on damaged ones.

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


def _unwrap(value: Any) -> Any:
    """Return the value in MATLAB's arrays of one: a number is an array [1, 1], a text in a cell an array [1]."""
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value
