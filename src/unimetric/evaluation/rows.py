"""Prepared rows: held in memory, or streamed block by block from vectors that do not fit.

Rows are taken by a slice or by row numbers, as float32 on the CPU. `hold_or_stream` decides once where they come from.
"""

import numbers
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unimetric.errors import UserError
from unimetric.evaluation import vectors as checks
from unimetric.evaluation.distances import Distance
from unimetric.evaluation.vectors import Vectors, blocks, float64_rows

QUERY_TILE = 2048
GALLERY_TILE = 16_384
MEMORY = 2**30
NUMBER_BYTES = 4


class Rows(Protocol):
    """Protocol of prepared rows; a float32 matrix on the CPU satisfies it, too."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        """Return some rows, by a slice without a step or by row numbers [n]: shape [n, W], float32 on the CPU."""


@dataclass(frozen=True, eq=False)
class StreamedRows:
    """Rows that are read and prepared on each access."""

    vectors: Vectors
    """The vectors, such as a memory-mapped array, already checked."""
    distance: Distance
    name: str

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        numbers = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        # Rows in float64 take a few times the memory of prepared ones, so they are read in smaller parts.
        parts = torch.split(numbers, max(1, checks.BLOCK_NUMBERS // 4 // self.vectors.shape[1]))
        first = self._read(rows, parts[0])
        prepared = torch.empty(len(numbers), first.shape[1])
        prepared[: len(first)] = first
        start = len(first)
        for part in parts[1:]:
            prepared[start : start + len(part)] = self._read(rows, part)
            start += len(part)
        return prepared

    def _read(self, rows: slice | Tensor, numbers: Tensor) -> Tensor:
        first = int(numbers[0]) if len(numbers) else 0
        where = slice(first, first + len(numbers)) if isinstance(rows, slice) else numbers
        return self.distance.preparation(float64_rows(self.vectors, where), first, self.name)


@dataclass(frozen=True, eq=False)
class SelectedRows:
    """Some rows of others, without a copy of them."""

    rows: Rows
    numbers: Tensor
    """Their row numbers, shape [n]."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        numbers = self.numbers[rows]
        # A slice avoids a copy of a matrix and reads a file sequentially.
        first = int(numbers[0]) if len(numbers) else 0
        if torch.equal(numbers, torch.arange(first, first + len(numbers))):
            return self.rows[first : first + len(numbers)]
        return self.rows[numbers]


def hold_or_stream(vectors: Vectors, name: str, distance: Distance, memory: int) -> Rows:
    """Return prepared rows of vectors [N, E], held where ``memory`` bytes are enough, else read again on each access.

    Raises:
        UserError: not a floating-point matrix, empty, or a row that cannot be compared; ``name`` is theirs.
    """
    for rows, block in blocks(vectors, name):
        width = distance.preparation(block, rows.start, name).shape[1]
        if len(vectors) * width * NUMBER_BYTES <= memory:
            return distance.prepare(vectors, name)
    return StreamedRows(vectors, distance, name)


@dataclass(frozen=True)
class Tiling:
    """Tile sizes, memory and device of the matrix products. They change speed and memory, never a result.

    Raises:
        UserError: a tile below 1, or a device that cannot be used.
    """

    queries: int = QUERY_TILE
    gallery: int = GALLERY_TILE
    device: str | torch.device = "cpu"
    memory: int = MEMORY

    def __post_init__(self) -> None:
        check_count(self.queries, "query_tile")
        check_count(self.gallery, "gallery_tile")
        check_count(self.memory, "memory")
        try:
            kind = torch.device(self.device).type
        except (RuntimeError, TypeError):
            raise UserError(f"device: {self.device!r} is not a device; use 'cpu' or 'cuda'") from None
        if kind not in ("cpu", "cuda"):
            raise UserError(f"device: {self.device!r} has no float64 matrix product; use 'cpu' or 'cuda'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device: {self.device!r} is not available on this machine; use 'cpu'")

    def query_rows(self, k: int) -> int:
        """Queries per tile, fewer for long lists of neighbours, so that memory stays bounded."""
        return max(1, self.queries * self.gallery // max(4 * k, self.gallery))

    def block_rows(self, rows: Rows, k: int) -> int:
        """Queries that pass over the gallery before it is read again: as many as fit in memory with their lists."""
        width = rows[:1].shape[1]
        # Two lists of similarities and row numbers, and the buffers of merging.
        return max(1, self.memory // 4 // (NUMBER_BYTES * width + 64 * k))

    def chunk_rows(self, rows: Rows) -> int:
        """Gallery items that are in memory at once."""
        return max(1, self.memory // 4 // (NUMBER_BYTES * rows[:1].shape[1]))


def check_count(value: Any, name: str, least: int = 1) -> None:
    """Check that a value is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < least:
        raise UserError(f"{name}: {value!r}; give a whole number, at least {least}")
