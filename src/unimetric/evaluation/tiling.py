"""How much is compared at once, and where."""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import torch

from unimetric.errors import UserError
from unimetric.evaluation.rows import NUMBER_BYTES, Rows

QUERY_TILE = 2048
GALLERY_TILE = 16_384
MEMORY = 2**30


@dataclass(frozen=True)
class Tiling:
    """How much is multiplied at once, and where. Changes speed and memory, never a result.

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
        # Two lists of similarities and rows, and what merging takes.
        return max(1, self.memory // 4 // (NUMBER_BYTES * width + 64 * k))

    def chunk_rows(self, rows: Rows) -> int:
        """Gallery items that are in memory at once."""
        return max(1, self.memory // 4 // (NUMBER_BYTES * rows[:1].shape[1]))


def check_count(value: Any, name: str) -> None:
    """Refuse what is not an integer of at least 1.

    Raises:
        UserError: so it is.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{name}: {value!r}; give a whole number, at least 1")
