"""Values of Arrow columns by the places of rows, without the cost of Arrow's conversion for a handful of rows."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_SEPARATOR = "\x1f"
_NARROW = 2**31 - 1
"""Bytes that the offsets of a column of texts reach."""

_Reader: TypeAlias = "Callable[[NDArray[np.intp]], list[Any]]"


class Cells:
    """Values of rows, as they are or `packed`, whose buffers are kept; threads may share it."""

    def __init__(self, rows: pa.RecordBatch) -> None:
        self._readers: dict[str, _Reader] = {}
        self._texts: tuple[list[str], _Reader] | None = None
        for name, column in zip(rows.schema.names, rows.columns, strict=True):
            if _SEPARATOR in name:
                self._texts = name.split(_SEPARATOR), _reader(column)
            else:
                self._readers[name] = _reader(column)

    def values(self, places: NDArray[np.intp], columns: Sequence[str]) -> dict[str, list[Any]]:
        """Return the values of rows by column; None for columns that are missing."""
        found: dict[str, list[Any]] = {}
        if self._texts is not None and len(places):
            names, read = self._texts
            texts = _SEPARATOR.join(read(places)).split(_SEPARATOR)
            found = {name: texts[at :: len(names)] for at, name in enumerate(names)}
        for name in columns:
            if name not in found:
                found[name] = self._readers[name](places) if name in self._readers else [None] * len(places)
        return {name: found[name] for name in columns}


def packed(rows: pa.RecordBatch) -> pa.RecordBatch:
    """Return rows with their texts in one column, so that those of a row lie together."""
    texts = [name for name, column in zip(rows.schema.names, rows.columns, strict=True) if _can_be_packed(column)]
    if len(texts) < 2:
        return rows
    size = sum(rows[name].nbytes for name in texts) + len(texts) * len(rows)
    kind = pa.string() if size < _NARROW else pa.large_string()
    together = pc.binary_join_element_wise(*(rows[name].cast(kind) for name in texts), _SEPARATOR)
    rest = [name for name in rows.schema.names if name not in texts]
    columns = [together, *(rows[name] for name in rest)]
    return pa.RecordBatch.from_arrays(columns, names=[_SEPARATOR.join(texts), *rest])


def column_of(rows: pa.RecordBatch, name: str) -> pa.Array:
    """Return a column of rows that may be `packed`."""
    for place, present in enumerate(rows.schema.names):
        names = present.split(_SEPARATOR)
        if name in names and len(names) > 1:
            parts = pc.split_pattern(rows.column(place), _SEPARATOR)
            return pc.list_element(parts, names.index(name))
    return rows.column(name)


def _can_be_packed(column: pa.Array) -> bool:
    if column.type not in (pa.string(), pa.large_string()) or column.null_count:
        return False
    return not pc.any(pc.match_substring(column, _SEPARATOR)).as_py()


def _reader(column: pa.Array) -> _Reader:
    width = {pa.string(): np.int32, pa.large_string(): np.int64}.get(column.type)
    if width is not None:
        read = _texts(column, width)
    elif column.type == pa.float64():
        read = _numbers(column)
    else:
        return lambda places: list(column.take(pa.array(places)).to_pylist())
    return _with_missing(column, read) if column.null_count else read


def _texts(column: pa.Array, width: Any) -> _Reader:
    _, borders, content = column.buffers()
    offsets = np.frombuffer(borders, width)[column.offset :] if len(column) else np.zeros(2, width)
    # Pairs of begin and end, so that a random place of memory is read once.
    spans = np.lib.stride_tricks.sliding_window_view(offsets, 2)
    # A column of empty texts may have no content.
    text = memoryview(b"" if content is None else content)

    def read(places: NDArray[np.intp]) -> list[Any]:
        return [str(text[begin:end], "utf-8") for begin, end in spans[places].tolist()]

    return read


def _numbers(column: pa.Array) -> _Reader:
    values = np.frombuffer(column.buffers()[1], np.float64)[column.offset :]

    def read(places: NDArray[np.intp]) -> list[Any]:
        return values[places].tolist()  # type: ignore[no-any-return]

    return read


def _with_missing(column: pa.Array, read: _Reader) -> _Reader:
    bits, offset = np.frombuffer(column.buffers()[0], np.uint8), column.offset

    def read_present(places: NDArray[np.intp]) -> list[Any]:
        shifted = places + offset
        present = (bits[shifted >> 3] >> (shifted & 7) & 1).tolist()
        return [value if there else None for value, there in zip(read(places), present, strict=True)]

    return read_present
