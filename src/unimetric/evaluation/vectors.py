"""Check matrices of embeddings and prepare their rows, block by block."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimetric.errors import UserError
from unimetric.evaluation.labels import check_dense

Vectors = npt.NDArray[np.floating] | Tensor
"""A matrix of embeddings, one row each, of any floating type."""

GRID = 2.0**-24
"""Entries of unit vectors are multiples of this. Times 2^24 they are integers that float32 holds exactly."""

BLOCK_ROWS = 65_536
"""Maximum number of rows that are prepared at once, in float64."""
BLOCK_NUMBERS = 2**22
"""Maximum number of numbers in those rows: 32 MiB."""

Preparation = Callable[[Tensor, int, str], Tensor]
"""Maps finite float64 rows to the rows to compare, given the number of their first row and the argument's name."""


def blocks(vectors: Vectors, name: str) -> Iterator[tuple[slice, Tensor]]:
    """Yield slices of rows, each with its rows as finite float64 on the CPU, block by block, after `check_matrix`."""
    check_matrix(vectors, name)
    step = max(1, min(BLOCK_ROWS, BLOCK_NUMBERS // vectors.shape[1]))
    for start in range(0, len(vectors), step):
        rows = slice(start, min(start + step, len(vectors)))
        yield rows, finite_rows(vectors, rows, name)


def check_matrix(vectors: Vectors, name: str) -> None:
    """Check that the vectors are a floating-point matrix with at least one row and one column."""
    if not isinstance(vectors, np.ndarray | Tensor):
        raise UserError(f"{name}: got {type(vectors).__name__}; give a numpy array or a torch tensor")
    check_dense(vectors, name)
    shape = tuple(vectors.shape)
    if len(shape) != 2:
        raise UserError(f"{name}: shape {list(shape)}; give a matrix [N, E], one embedding per row")
    if 0 in shape:
        raise UserError(f"{name}: shape {list(shape)} holds nothing; give at least one row and one column")
    floating = vectors.is_floating_point() if isinstance(vectors, Tensor) else np.issubdtype(vectors.dtype, np.floating)
    if not floating:
        raise UserError(f"{name}: type {vectors.dtype} is not floating point; convert it to float32")


def finite_rows(vectors: Vectors, rows: slice, name: str) -> Tensor:
    """Return some rows as float64 on the CPU; a `UserError` if a number is infinite or NaN."""
    block = float64_rows(vectors, rows)
    # A sum is faster than checking every number, but may overflow where no number is infinite.
    if not bool(block.sum().isfinite()) and not bool((finite := block.isfinite()).all()):
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise UserError(
            f"{name}: row {rows.start + row}, column {column} is {float(block[row, column])}; "
            "drop that row or fix the model that made it"
        )
    return block


def float64_rows(vectors: Vectors, rows: slice | Tensor) -> Tensor:
    """Return some rows, by a slice or by row numbers, as float64 on the CPU."""
    if isinstance(vectors, Tensor):
        return vectors.detach()[rows if isinstance(rows, slice) else rows.to(vectors.device)].to("cpu", torch.float64)
    # Copy, because torch accepts neither read-only arrays nor foreign byte orders.
    part = vectors[rows if isinstance(rows, slice) else rows.numpy()]
    return torch.from_numpy(np.asarray(part).astype(np.float64, order="C"))
