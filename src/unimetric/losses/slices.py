"""Class proxies divided among processes: who holds which classes, and sums over all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class ProxySlice:
    """The classes, one after another, whose proxies a process holds.

    Every process computes the same loss of the same global batch, so it knows the gradient of a sum over processes
    without asking the others. What it cannot know is what the others' proxies do to the embeddings: that is added up.

    Attributes:
        rank: Number of this process.
        count: Number of processes, those of the default group.
        num_classes: C, of all processes together.
    """

    rank: int
    count: int
    num_classes: int

    @property
    def classes(self) -> slice:
        """Numbers of this process's classes."""
        return self._classes_of(self.rank)

    def _classes_of(self, rank: int) -> slice:
        return slice(self.num_classes * rank // self.count, self.num_classes * (rank + 1) // self.count)

    def parts(self, values: Tensor) -> Tensor:
        """The values [...] of each process, by rank, [W, ...]; of the same shape in all."""
        return cast(Tensor, _Parts.apply(values, self))

    def entrust(self, units: Tensor) -> Tensor:
        """The same vectors [B, E]; every process's part of their gradient is added up."""
        return cast(Tensor, _Entrust.apply(units))

    @torch.no_grad()
    def collect(self, rows: Tensor) -> Tensor | None:
        """All classes' rows [C, ...] on the CPU of the first process, from each process's own; None in the others.

        All have to call it. On a device there is never more than one further slice.
        """
        found = []
        for rank in range(self.count):
            classes = self._classes_of(rank)
            mine = rank == self.rank
            part = rows.contiguous() if mine else rows.new_empty(classes.stop - classes.start, *rows.shape[1:])
            dist.broadcast(part, rank)
            if self.rank == 0:
                found.append(part.cpu())
        return torch.cat(found) if self.rank == 0 else None


class _Parts(Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, own: ProxySlice) -> Tensor:
        ctx.rank = own.rank
        parts = [torch.empty_like(values) for _ in range(own.count)]
        dist.all_gather(parts, values.contiguous())
        return torch.stack(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        return gradients[0][ctx.rank], None


class _Entrust(Function):
    @staticmethod
    def forward(ctx: Any, units: Tensor) -> Tensor:
        return units.view_as(units)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Tensor:
        total = cast(Tensor, gradients[0]).clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total
