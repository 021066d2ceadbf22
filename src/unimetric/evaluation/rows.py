"""Prepared rows, in memory or read anew, block by block, from vectors that are too large for it.

Whoever searches takes rows by a slice or by row numbers, and gets float32 on the CPU; where they come from is decided
once, by `hold_or_stream`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unimetric.evaluation import cosine
from unimetric.evaluation.cosine import Vectors, blocks, float64_rows
from unimetric.evaluation.distances import Distance

NUMBER_BYTES = 4


class Rows(Protocol):
    """What a float32 matrix on the CPU is, too."""

    def __len__(self) -> int:
        """How many rows."""

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        """Some rows, by a slice without a step or by row numbers [n]: shape [n, W], float32 on the CPU."""


@dataclass(frozen=True, eq=False)
class StreamedRows:
    """Rows that are read and prepared whenever they are asked for."""

    vectors: Vectors
    """Such as a memory-mapped array; all of it has been checked."""
    distance: Distance
    name: str

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        numbers = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        # In float64, rows take a few times as much as they do prepared.
        parts = torch.split(numbers, max(1, cosine.BLOCK_NUMBERS // 4 // self.vectors.shape[1]))
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
    """Which ones, shape [n]."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: slice | Tensor, /) -> Tensor:
        numbers = self.numbers[rows]
        # As a slice, rows of a matrix are no copy, and a file is read from front to back.
        first = int(numbers[0]) if len(numbers) else 0
        if torch.equal(numbers, torch.arange(first, first + len(numbers))):
            return self.rows[first : first + len(numbers)]
        return self.rows[numbers]


def hold_or_stream(vectors: Vectors, name: str, distance: Distance, memory: int) -> Rows:
    """Prepared rows, held if they fit, else read anew whenever they are asked for.

    Args:
        vectors: Shape [N, E], floating point.
        name: What errors call them.
        distance: What prepares them.
        memory: Bytes that they may take.

    Raises:
        UserError: not a floating-point matrix, empty, or a row that cannot be compared: whichever is first.
    """
    for rows, block in blocks(vectors, name):
        width = distance.preparation(block, rows.start, name).shape[1]
        if len(vectors) * width * NUMBER_BYTES <= memory:
            return distance.prepare(vectors, name)
    return StreamedRows(vectors, distance, name)
