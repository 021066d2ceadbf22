"""Cosine similarities without rounding error, so that ties are ties on every machine.

The last bits of a floating-point matrix product depend on the shapes of its operands, the number of
threads and the device: twins in a gallery then differ in similarity when they fall into different tiles,
and the order of a tie is chance. The remedy is fixed-point arithmetic. Every vector is divided by its norm
and rounded to multiples of 2^-24. A product of two such entries is a multiple of 2^-48, and every partial
sum of a dot product is below 2, so float64, with its 53 bits, holds all of them exactly: in whatever order
they are added, the result is the same. A float64 matrix product takes twice as long as a float32 one, so only what a
float32 product cannot decide is computed in float64: see `screen`.

The rounding moves a cosine by about 2e-8, less than the rounding error of a float32 product.
"""

from __future__ import annotations

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
"""Most rows that are prepared at once, in float64."""
BLOCK_NUMBERS = 2**22
"""Most numbers in them: 32 MiB."""

Preparation = Callable[[Tensor, int, str], Tensor]
"""From finite float64 rows, the number of the first of them and the name of the argument to the rows to compare."""


def unit_vectors(vectors: Vectors, name: str = "vectors") -> Tensor:
    """Divide every row by its norm and round it to the grid.

    Equal rows give equal unit vectors, and so do rows that differ by a factor that is a power of two.
    The arithmetic is done on the CPU wherever the input lies, so that all devices start from the same bits.

    Args:
        vectors: Shape [N, E], floating point, N and E at least 1. The rows need not have unit length.
        name: What error messages call the argument.

    Returns:
        Unit vectors, shape [N, E], float32 on the CPU, every entry a multiple of 2^-24 in [-1, 1].

    Raises:
        UserError: not a floating-point matrix, empty, or a row that is zero, infinite or NaN.

    >>> unit_vectors(torch.tensor([[3.0, 0.0], [0.5, 0.5]]))
    tensor([[1.0000, 0.0000],
            [0.7071, 0.7071]])
    """
    return prepare_rows(vectors, unit_rows, name)


def unit_rows(block: Tensor, first_row: int, name: str) -> Tensor:
    """The same for some finite float64 rows; ``first_row`` is the number of the first, for errors."""
    largest = block.abs().amax(dim=1, keepdim=True)
    _check_directions(largest, first_row, name)
    # Largest entry 1 first: no square can overflow or vanish in the norm.
    block = block / largest
    block /= torch.linalg.vector_norm(block, dim=1, keepdim=True)
    return block.div_(GRID).round_().mul_(GRID).float()


def cosine_similarities(queries: Tensor, gallery: Tensor) -> Tensor:
    """The exact dot products of rows on the grid: cosines, up to the rounding of the rows.

    Args:
        queries: From `unit_vectors`, shape [Q, E], as float64 on any device.
        gallery: From `unit_vectors`, shape [G, E], on the same device.

    Returns:
        Similarities, shape [Q, G], float64 on that device, in [-1, 1] up to 1e-6.
    """
    similarities = queries @ gallery.to(torch.float64).T  # (Q, G)
    if similarities.is_cuda:
        # CUDA selects by bit pattern, and so takes 0.0 and -0.0 for different numbers.
        similarities += 0.0
    return similarities


def paired_cosines(queries: Tensor, gallery: Tensor) -> Tensor:
    """`cosine_similarities` of query i and gallery item i only: from [P, E] and [P, E], as float64, to [P]."""
    return (queries * gallery).sum(dim=1) + 0.0


def prepare_rows(vectors: Vectors, preparation: Preparation, name: str) -> Tensor:
    """All rows, checked and prepared block by block, as float32 on the CPU.

    Raises:
        UserError: not a floating-point matrix, empty, or a row that the preparation refuses.
    """
    prepared = None
    for rows, block in blocks(vectors, name):
        part = preparation(block, rows.start, name)
        if prepared is None:
            prepared = torch.empty(len(vectors), part.shape[1])
        prepared[rows] = part
    assert prepared is not None  # noqa: S101
    return prepared


def blocks(vectors: Vectors, name: str) -> Iterator[tuple[slice, Tensor]]:
    """Which rows, and those rows as finite float64 on the CPU, block by block.

    Raises:
        UserError: not a floating-point matrix, empty, or a number is infinite or NaN.
    """
    check_matrix(vectors, name)
    step = max(1, min(BLOCK_ROWS, BLOCK_NUMBERS // vectors.shape[1]))
    for start in range(0, len(vectors), step):
        rows = slice(start, min(start + step, len(vectors)))
        yield rows, finite_rows(vectors, rows, name)


def check_same_width(queries: Vectors, gallery: Vectors, query_name: str, gallery_name: str) -> None:
    """Refuse matrices of vectors from different spaces.

    Raises:
        UserError: the numbers of columns differ.
    """
    if queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"{gallery_name}: {gallery.shape[1]} columns, but {query_name} has {queries.shape[1]}; "
            "embed both sides with the same model"
        )


def check_matrix(vectors: Vectors, name: str) -> None:
    """Refuse what is not a matrix of floating-point numbers with at least one row and one column.

    Raises:
        UserError: so it is.
    """
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
    """Some rows as float64 on the CPU.

    Raises:
        UserError: a number is infinite or NaN.
    """
    block = float64_rows(vectors, rows)
    # A sum is faster than a look at every number, but may overflow where no number is infinite.
    if not bool(block.sum().isfinite()) and not bool((finite := block.isfinite()).all()):
        row, column = (int(i) for i in (~finite).nonzero()[0])
        raise UserError(
            f"{name}: row {rows.start + row}, column {column} is {float(block[row, column])}; "
            "drop that row or mend the model that made it"
        )
    return block


def float64_rows(vectors: Vectors, rows: slice | Tensor) -> Tensor:
    """Some rows, by a slice or by row numbers, as float64 on the CPU."""
    if isinstance(vectors, Tensor):
        return vectors.detach()[rows if isinstance(rows, slice) else rows.to(vectors.device)].to("cpu", torch.float64)
    # A copy: torch takes neither read-only arrays nor foreign byte orders.
    part = vectors[rows if isinstance(rows, slice) else rows.numpy()]
    return torch.from_numpy(np.asarray(part).astype(np.float64, order="C"))


def _check_directions(largest: Tensor, first_row: int, name: str) -> None:
    if not bool(largest.all()):
        row = first_row + int((largest[:, 0] == 0).nonzero()[0])
        raise UserError(f"{name}: row {row} is all zeros, which has no cosine; drop it or mend the model")
