"""Random numbers for the images of a batch, which do not depend on how many processes share it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar

import torch
from torch import Tensor

_part: ContextVar[tuple[Tensor, int] | None] = ContextVar("part", default=None)


@contextmanager
def drawing_for(rows: Tensor, total: int) -> Iterator[None]:
    """While active, `uniform` draws for a global batch of ``total`` images, of which ``rows``, int64 [B], are here."""
    token = _part.set((rows, total))
    try:
        yield
    finally:
        _part.reset(token)


def drawing_as_here() -> AbstractContextManager[None]:
    """`drawing_for` what is active here and now, to be entered later and perhaps in another thread."""
    part = _part.get()
    return nullcontext() if part is None else drawing_for(*part)


def uniform(count: int) -> Tensor:
    """A number in [0, 1) for each of the ``count`` images of a forward pass, float32 [count], drawn on the CPU.

    Every process draws for the whole global batch and keeps its own part: all generators stay in step, and an image
    gets the number that it would get in a single process.

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
