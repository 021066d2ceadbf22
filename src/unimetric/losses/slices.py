"""Class proxies divided among processes: the classes of each process, and sums over all processes."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function


@dataclass(frozen=True)
class ProxySlice:
    """The consecutive classes whose proxies a process holds.

    Every process computes the same loss of the same global batch, so the gradient of a sum over processes needs no
    communication. Only the gradients of the embeddings depend on all proxies and are summed over processes.

    Attributes:
        rank: Number of this process.
        count: Number of processes in the default group.
        num_classes: C, the total over all processes.
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
        """Return the values [...] of all processes, by rank, [W, ...]; they must have the same shape in all."""
        return cast(Tensor, _Parts.apply(values, self))

    def entrust(self, units: Tensor) -> Tensor:
        """The same vectors [B, E]; every process's part of their gradient is added up."""
        return cast(Tensor, _Entrust.apply(units))

    @torch.no_grad()
    def collect(self, rows: Tensor) -> Tensor | None:
        """Gather the rows of all classes [C, ...] on the CPU of rank 0; return None in the other processes.

        All processes must call it. A device never holds more than one additional slice.
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
