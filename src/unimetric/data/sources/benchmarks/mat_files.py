"""MATLAB 5 files of benchmark datasets."""

import io
import math
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from unimetric.errors import UserError
from unimetric.files import read_bytes

_MAT_HEADER = 128
"""Bytes before the first variable of a MATLAB 5 file."""
_MAT_73_HEADER = 512
"""Bytes before the HDF5 file in one of MATLAB 7.3."""
_HDF5 = b"\x89HDF\r\n\x1a\n"
_MAT_VERSION = 0x0100
_MAT_ORDERS: dict[bytes, Literal["little", "big"]] = {b"IM": "little", b"MI": "big"}
"""The order of the bytes of numbers, by the last two bytes of the header."""
_MAT_MATRIX, _MAT_COMPRESSED = 14, 15
"""The types of a variable, and of one that is packed with zlib."""
_MAT_TEXT, _MAT_DIMENSIONS, _MAT_FLAGS = 1, {5, 6}, 6
"""The types of the elements that describe an array."""
_MAT_CELL, _MAT_CONTAINERS, _MAT_SPARSE, _MAT_FUNCTION, _MAT_OPAQUE = 1, {1, 2, 3}, 5, 16, 17
"""Classes of arrays; containers are cells, structures and objects, and a function is one array."""
_MAT_COMPLEX = 0x08
"""The bit of an array's flags that announces an imaginary part."""
_MAT_TYPES = {1, 2, 3, 4, 5, 6, 7, 9, 12, 13, _MAT_MATRIX, _MAT_COMPRESSED, 16, 17, 18}
_MAT_LARGEST = 2**30
"""Bytes of a packed variable; the largest of the benchmarks have some megabytes."""
_MAT_DEEPEST = 100
"""Arrays in arrays."""


def read_mat(file: Path, names: Sequence[str], optional: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """Read variables of a MATLAB 5 file: the required ``names``, and the optional ones that are there."""
    # Slow to import, and most runs read no .mat file.
    from scipy.io import loadmat

    raw = read_bytes(file, "download it", "; download the file again")
    if raw.startswith(_HDF5) or raw.startswith(_HDF5, _MAT_73_HEADER):
        raise UserError(f"{file} is of MATLAB 7.3 (HDF5), which is not read; save it as MATLAB 5, with save -v7")
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
    """Return one field of a MATLAB struct array, in its order, each value still as MATLAB wraps it."""
    names = table.dtype.names or ()
    if column not in names:
        listed = ", ".join(repr(name) for name in names) or "no named columns at all"
        raise UserError(f"{file} has no column {column!r}, only {listed}; download it again")
    return list(table.reshape(-1)[column])


def mat_numbers(file: Path, values: Iterable[Any], what: str, low: int, high: int) -> list[int]:
    """Return values of a MATLAB array as whole numbers."""
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
    """Return values of a MATLAB array as text."""
    texts = []
    for position, wrapped in enumerate(values, start=1):
        value = _unwrap(wrapped)
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"{file}, entry {position}: the {what} is not text; download the file again")
        texts.append(str(value).strip())
    return texts


def _check_mat(content: bytes) -> None:
    """Refuse what scipy reads without an error, as a file that lacks its last bytes, or what crashes the process.

    Raises:
        ValueError: it is not a MATLAB 5 file, ends too early, or has an element of an unknown type.
        zlib.error: a packed variable is damaged.
    """
    if len(content) <= _MAT_HEADER:
        raise ValueError(f"it has {len(content)} bytes")
    if content[126:128] not in _MAT_ORDERS:
        raise ValueError("it does not begin as a MATLAB 5 file does")
    order = _MAT_ORDERS[content[126:128]]
    if (version := int.from_bytes(content[124:126], order)) != _MAT_VERSION:
        raise ValueError(f"its version is {version:#06x}, not that of MATLAB 5, {_MAT_VERSION:#06x}")
    _check_elements(content[_MAT_HEADER:], order)


def _check_elements(content: bytes, order: Literal["little", "big"], depth: int = 0) -> None:
    for kind, inside in _elements(content, order):
        if depth > _MAT_DEEPEST:
            raise ValueError(f"its arrays are nested deeper than {_MAT_DEEPEST} levels")
        if kind == _MAT_COMPRESSED:
            _check_elements(_unpacked(inside), order, depth + 1)
        elif kind == _MAT_MATRIX:
            _check_elements(inside, order, depth + 1)
            _check_size(inside, order)


def _unpacked(packed: bytes) -> bytes:
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(packed, _MAT_LARGEST)
    if unpacking.unconsumed_tail:
        raise ValueError(f"a variable has more than {_MAT_LARGEST} bytes")
    if not unpacking.eof:
        raise ValueError("a packed variable ends too early")
    return content


def _check_size(array: bytes, order: Literal["little", "big"]) -> None:
    """Refuse an array that is larger than its bytes: scipy takes memory for the stated dimensions.

    Refuse what is not an array, too, because scipy reads it unchecked and crashes: every array but an empty one begins
    with its flags, and its dimensions and name follow, except for an opaque one; then come its values.
    """
    parts = list(_elements(array, order))
    if not parts:
        return
    (kind, flags), *rest = parts
    if kind != _MAT_FLAGS or len(flags) != 8:
        raise ValueError("an array does not begin with its flags")
    array_class, bits = (flags[0], flags[1]) if order == "little" else (flags[3], flags[2])
    if array_class == _MAT_OPAQUE:
        return
    if not rest or rest[0][0] not in _MAT_DIMENSIONS or len(rest[0][1]) < 8 or len(rest[0][1]) % 4:
        raise ValueError("an array has no dimensions")
    # Flags, dimensions, name and values; a sparse array has two lists of indices before these.
    needed = (6 if array_class == _MAT_SPARSE else 4) + bool(bits & _MAT_COMPLEX)
    if array_class not in _MAT_CONTAINERS:
        if len(parts) < needed:
            raise ValueError("an array lacks its values")
        if array_class != _MAT_FUNCTION and any(kind in (_MAT_MATRIX, _MAT_COMPRESSED) for kind, _ in rest):
            raise ValueError("an array of numbers or text holds other arrays")
    if array_class == _MAT_SPARSE:
        return
    sizes = rest[0][1]
    count = math.prod(int.from_bytes(sizes[at : at + 4], order) for at in range(0, len(sizes), 4))
    held = len(array)
    if array_class in _MAT_CONTAINERS:
        # A structure without fields has nothing in it; its array takes eight bytes a value.
        fields = 1 if array_class == _MAT_CELL else _field_count(parts, order)
        held = sum(kind == _MAT_MATRIX for kind, _ in parts) if fields else len(array)
        count *= max(1, fields)
    if count > held:
        raise ValueError(f"an array of {count} values is in {len(array)} bytes")


def _field_count(parts: Sequence[tuple[int, bytes]], order: Literal["little", "big"]) -> int:
    """Number of fields of a structure: its last text holds all names, and the element before the size of each."""
    place = max(index for index, (kind, _) in enumerate(parts) if kind == _MAT_TEXT)
    return len(parts[place][1]) // int.from_bytes(parts[place - 1][1], order)


def _elements(content: bytes, order: Literal["little", "big"]) -> Iterator[tuple[int, bytes]]:
    """The elements of a file or of an array: type and bytes."""
    place = 0
    while place < len(content):
        kind, size = (int.from_bytes(content[at : at + 4], order) for at in (place, place + 4))
        start = place + 8
        if small := kind >> 16:
            # Type, size and up to four bytes share eight.
            kind, size, start = kind & 0xFFFF, small, place + 4
        if kind not in _MAT_TYPES or small > 4:
            raise ValueError(f"it has an element of type {kind} and {size} bytes")
        if start + size > len(content):
            raise ValueError(f"it ends {start + size - len(content)} bytes too early")
        yield kind, content[start : start + size]
        place = start + size
        # Only packed variables are not padded to eight bytes.
        place += 0 if kind == _MAT_COMPRESSED else -place % 8


def _unwrap(value: Any) -> Any:
    """Return the value in MATLAB's arrays of one: a number is an array [1, 1], a text in a cell an array [1]."""
    while isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    return value
