"""Random numbers for the images of a batch, independent of the number of processes that share it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

_part: ContextVar[tuple[Tensor, int] | None] = ContextVar("part", default=None)


@contextmanager
def drawing_for(rows: Tensor, total: int) -> Iterator[None]:
    """Make `uniform` draw for a global batch of ``total`` images and return ``rows``, int64 [B], of this process."""
    token = _part.set((rows, total))
    try:
        yield
    finally:
        _part.reset(token)


def drawing_as_here() -> AbstractContextManager[None]:
    """Return `drawing_for` with the current settings, for use later or in another thread."""
    part = _part.get()
    return nullcontext() if part is None else drawing_for(*part)


def uniform(count: int) -> Tensor:
    """Draw a number in [0, 1) on the CPU for each of the ``count`` images of a forward pass, float32 [count].

    Every process draws for the whole global batch and keeps its own part. All generators stay in step, and an image
    gets the same number as in a single process.

    >>> torch.manual_seed(0).initial_seed()
    0
    >>> alone = uniform(5)
    >>> _ = torch.manual_seed(0)
    >>> with drawing_for(torch.tensor([1, 4]), total=5):
    ...     bool(uniform(2).equal(alone[[1, 4]]))
    True
    """
    part = _part.get()
    if part is None:
        return torch.rand(count)
    rows, total = part
    return torch.rand(total)[rows]
