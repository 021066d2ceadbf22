"""Selection in float32 of the gallery items that can be among the nearest.

The rows to compare are on a grid that float32 holds exactly, so the only error of a float32 matrix product is its own
rounding: whatever the order of its W products, at most ``W u / (1 - W u)`` times the lengths of both rows, with
``u = 2^-24`` (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1, with Cauchy and Schwarz). An
item more than twice that below a query's k-th best is ruled out. The few others are compared in float64, so the result
is exact and the same for all tile sizes.

The bound needs full float32 products: `full_precision` disables TensorFloat-32, bfloat16 and autocast.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

GROUP = 64
"""Gallery items per group: comparing the maximum of a group first leaves 64 times fewer numbers to look at."""


@contextmanager
def full_precision(device: str | torch.device) -> Iterator[None]:
    """Compute float32 matrix products in float32 within the context: no TensorFloat-32, no bfloat16, no autocast."""
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
    """Return the largest error of a float32 product of rows of this width, relative to both rows' lengths.

    Args:
        width: W, numbers in a row.
        left_out: The part of a similarity that the product omits, in multiples of 2^-24.

    >>> product_error(128) < 8e-6
    True
    """
    unit = 2.0**-24
    # 1 % more, because the lengths themselves are rounded.
    return 1.01 * (width * unit / (1 - width * unit) + left_out * unit)


@dataclass(eq=False)
class Candidates:
    """The most similar gallery items of each query so far, by float32."""

    values: Tensor
    """Shape [Q, L], float32, highest first; -inf where there is none yet."""
    columns: Tensor
    """The numbers of those items, shape [Q, L], int64."""
    floor: Tensor
    """Shape [Q], float64; items below it are ruled out."""
    errors: Tensor
    """Shape [Q], float64: bound on the difference between a value and the similarity."""
    k: int
    """Number of neighbours to find, less than L."""

    @classmethod
    def none(cls, floor: Tensor, errors: Tensor, k: int, length: int) -> "Candidates":
        """Return empty lists of a length."""
        values = torch.full((len(floor), length), -torch.inf, device=floor.device)
        return cls(values, torch.zeros_like(values, dtype=torch.int64), floor, errors, k)

    def needed(self) -> Tensor:
        """Return the values, shape [Q], float64, below which an item cannot be among the k nearest."""
        return torch.maximum(self.floor, self.values[:, self.k - 1].double() - 2 * self.errors)

    def add(self, tile: Tensor, start: int) -> None:
        """Add products [Q, multiple of GROUP], float32, -inf for excluded items; ``start`` is the first item."""
        groups = tile.view(len(tile), -1, GROUP)
        highest = groups.amax(dim=2)  # (Q, groups)
        # A candidate must exceed both the float32 just below the needed value and the last of the list.
        barrier = torch.maximum(_below(self.needed()), self.values[:, -1])
        rows, hits = (highest > barrier[:, None]).nonzero(as_tuple=True)
        length = self.values.shape[1]
        # Selecting from whole rows is slow for long lists, so it is done only where most items would be candidates.
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
        # Rows come in order, so an entry's place is its index minus the number of entries of earlier rows.
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
        """Add the highest values of every row, as many as a list holds, so that no needed one is missed."""
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
        """Return the queries, shape [n], with so many nearly equal items that some may be missing from the list."""
        last = self.values[:, -1].double()
        return ((last >= self.needed()) & (last > -torch.inf)).nonzero()[:, 0]


def _below(values: Tensor) -> Tensor:
    """Return float32 values below the float64 values, however those are rounded."""
    rounded = values.float()
    return torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
