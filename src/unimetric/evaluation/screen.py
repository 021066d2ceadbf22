"""Float32 for what float32 can decide: which gallery items can be among the nearest at all.

The rows to compare are on a grid that float32 holds exactly, so a float32 matrix product errs by its rounding only: in
whatever order it adds W products, by at most ``W u / (1 - W u)`` times the lengths of both rows, with ``u = 2^-24``
(Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1, with Cauchy and Schwarz). What is farther
below a query's k-th best than twice that is out. The few others are computed in float64, which decides: the result is
exact, and the same whatever the tiles.

A product of float32 is that only if nobody allowed less. `full_precision` sees to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GROUP = 64
"""Gallery items whose maximum is looked at before they are: one cheap pass over a tile, and 64 times fewer numbers."""


@contextmanager
def full_precision(device: str | torch.device) -> Iterator[None]:
    """Within, float32 matrix products are computed in float32: no TensorFloat-32, no bfloat16, no autocast."""
    with torch.autocast(torch.device(device).type, enabled=False):
        backends: Any = torch.backends
        if not hasattr(backends.cuda.matmul, "fp32_precision"):  # before PyTorch 2.9
            before = torch.get_float32_matmul_precision()
            torch.set_float32_matmul_precision("highest")
            try:
                yield
            finally:
                torch.set_float32_matmul_precision(before)
            return
        switches = [backends.cuda.matmul, backends.mkldnn.matmul]
        found = [switch.fp32_precision for switch in switches]
        try:
            for switch in switches:
                switch.fp32_precision = "ieee"
            yield
        finally:
            for switch, precision in zip(switches, found, strict=True):
                switch.fp32_precision = precision


def product_error(width: int, left_out: float = 0.0) -> float:
    """The most that a float32 product of rows of this width errs, relative to both rows' lengths.

    Args:
        width: W, numbers in a row.
        left_out: What the product leaves out of a similarity, in multiples of 2^-24.

    >>> product_error(128) < 8e-6
    True
    """
    unit = 2.0**-24
    # A per cent more, since the lengths themselves are rounded.
    return 1.01 * (width * unit / (1 - width * unit) + left_out * unit)


@dataclass(eq=False)
class Candidates:
    """Per query, the most similar gallery items so far, by float32."""

    values: Tensor
    """Shape [Q, L], float32, highest first; -inf where there is none yet."""
    columns: Tensor
    """Which items those are, shape [Q, L], int64."""
    floor: Tensor
    """Shape [Q], float64: what is below it is out."""
    errors: Tensor
    """Shape [Q], float64: how far a value may be from the similarity."""
    k: int
    """How many are wanted, less than L."""

    @classmethod
    def none(cls, floor: Tensor, errors: Tensor, k: int, length: int) -> Candidates:
        """Lists of a length with nothing in them."""
        values = torch.full((len(floor), length), -torch.inf, device=floor.device)
        return cls(values, torch.zeros_like(values, dtype=torch.int64), floor, errors, k)

    def needed(self) -> Tensor:
        """Shape [Q], float64: an item whose value is below cannot be among the k nearest."""
        return torch.maximum(self.floor, self.values[:, self.k - 1].double() - 2 * self.errors)

    def add(self, tile: Tensor, start: int) -> None:
        """Take in a tile of products.

        Args:
            tile: Shape [Q, multiple of GROUP], float32; -inf for what must not be found.
            start: The number of the first column's item.
        """
        groups = tile.view(len(tile), -1, GROUP)
        highest = groups.amax(dim=2)  # (Q, groups)
        # Above the float32 below what is needed, and above the last of the list: an equal one improves nothing.
        barrier = torch.maximum(_below(self.needed()), self.values[:, -1])
        rows, hits = (highest > barrier[:, None]).nonzero(as_tuple=True)
        length = self.values.shape[1]
        # Selecting from whole rows is slow for long lists: only where most would be candidates.
        unfilled = bool((barrier == -torch.inf).any())
        if (unfilled and 4 * len(rows) > highest.numel()) or len(rows) > 4 * length * len(tile):
            return self._add_best(tile, groups, highest, start)
        if not len(rows):
            return None
        inside, lanes = (groups[rows, hits] > barrier[rows, None]).nonzero(as_tuple=True)
        rows, columns = rows[inside], hits[inside] * GROUP + lanes
        counts = rows.bincount(minlength=len(tile))
        most = int(counts.max())
        if most > 8 * length + GROUP:
            return self._add_best(tile, groups, highest, start)
        values = tile[rows, columns]
        # Rows come in order: what is before a row's first entry gives each its place.
        places = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
        changed = counts.nonzero()[:, 0]
        lines = torch.empty_like(counts)
        lines[changed] = torch.arange(len(changed), device=rows.device)
        shape = (len(changed), most)
        new_values = torch.full(shape, -torch.inf, device=tile.device)
        new_columns = torch.zeros(shape, dtype=torch.int64, device=tile.device)
        new_values[lines[rows], places] = values
        new_columns[lines[rows], places] = columns + start
        return self._merge(changed, new_values, new_columns)

    def _add_best(self, tile: Tensor, groups: Tensor, highest: Tensor, start: int) -> None:
        """Take in the highest values of every row; as many as a list is long, which leaves out none that is needed."""
        length = self.values.shape[1]
        everyone = torch.arange(len(tile), device=tile.device)
        if highest.shape[1] <= length:
            values, columns = tile.topk(min(length, tile.shape[1]), dim=1)
            return self._merge(everyone, values, columns + start)
        best = highest.topk(length, dim=1, sorted=False).indices  # (Q, L)
        members = groups.gather(1, best[:, :, None].expand(-1, -1, GROUP)).flatten(1)
        values, places = members.topk(length, dim=1)
        columns = best.gather(1, places // GROUP) * GROUP + places % GROUP
        return self._merge(everyone, values, columns + start)

    def _merge(self, rows: Tensor, values: Tensor, columns: Tensor) -> None:
        everyone = len(rows) == len(self.values)
        old_values, old_columns = (self.values, self.columns) if everyone else (self.values[rows], self.columns[rows])
        merged, order = torch.cat([old_values, values], dim=1).topk(self.values.shape[1], dim=1)
        found = torch.cat([old_columns, columns], dim=1).gather(1, order)
        if everyone:
            self.values, self.columns = merged, found
        else:
            self.values[rows], self.columns[rows] = merged, found

    def undecided(self) -> Tensor:
        """Queries, shape [n], of which too many items are too near to each other: some may be missing."""
        last = self.values[:, -1].double()
        return ((last >= self.needed()) & (last > -torch.inf)).nonzero()[:, 0]


def _below(values: Tensor) -> Tensor:
    """A float32 below every one of the float64 values, however those are rounded."""
    rounded = values.float()
    return torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
