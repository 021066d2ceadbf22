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
        rows = (highest.amax(dim=1) > barrier).nonzero()[:, 0]
        if not len(rows):
            return
        length = self.values.shape[1]
        # The groups with the highest maxima hold as many of the highest items.
        best = highest[rows].topk(min(length, highest.shape[1]), dim=1, sorted=False).indices  # (n, groups)
        members = groups[rows[:, None], best].flatten(1)
        values, places = members.topk(min(length, members.shape[1]), dim=1)
        columns = best.gather(1, places // GROUP) * GROUP + places % GROUP + start
        merged, order = torch.cat([self.values[rows], values], dim=1).topk(length, dim=1)
        self.columns[rows] = torch.cat([self.columns[rows], columns], dim=1).gather(1, order)
        self.values[rows] = merged

    def undecided(self) -> Tensor:
        """Return the queries, shape [n], with so many nearly equal items that some may be missing from the list."""
        last = self.values[:, -1].double()
        return ((last >= self.needed()) & (last > -torch.inf)).nonzero()[:, 0]


def _below(values: Tensor) -> Tensor:
    """Return float32 values below the float64 values, however those are rounded."""
    rounded = values.float()
    return torch.nextafter(rounded, torch.full_like(rounded, -torch.inf))
