"""Global batch of all processes: the place of every image, and the exchange of embeddings and gradients."""

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd import Function

from unimetric.data.loading import Batch

_NO_IMAGE, _UNREADABLE = -1, -2


@dataclass(frozen=True)
class GlobalBatch:
    """Labels and places of a step's B readable images, in the order of a single process.

    Attributes:
        labels: Class numbers, int64 [B].
        own: Places of this process's images, int64 [b].
        rows: Row of each image among the gathered ones, int64 [B].
        width: Rows that each process contributes.
        skipped: Image number and reason of each image of the global batch that could not be read.
    """

    labels: Tensor
    own: Tensor
    rows: Tensor
    width: int
    skipped: tuple[tuple[int, str], ...]

    @classmethod
    def alone(cls, batch: Batch) -> "GlobalBatch":
        """Return the global batch of a single process."""
        everything = torch.arange(len(batch.images))
        return cls(batch.class_numbers, everything, everything, len(everything), batch.skipped)

    @classmethod
    def exchange(cls, batch: Batch, slots: int, group: dist.ProcessGroup) -> "GlobalBatch":
        """Exchange the contents of the slices with the other processes, on the CPU.

        Image i of process r is image ``r + i · W`` of the global batch of W processes, as the samplers share it out. A
        slice has at most ``slots`` images, the same number in all processes.
        """
        message = torch.full((slots,), _NO_IMAGE)
        message[: len(batch.images) + len(batch.skipped)] = _UNREADABLE
        message[batch.places] = batch.class_numbers
        slices = [torch.empty_like(message) for _ in range(dist.get_world_size(group))]
        dist.all_gather(slices, message, group=group)
        found = torch.stack(slices, dim=1)  # (slots, W): row by row in global order
        skipped = batch.skipped
        if bool((found == _UNREADABLE).any()):
            parts: list[Any] = [None] * len(slices)
            dist.all_gather_object(parts, batch.skipped, group=group)
            skipped = tuple(sorted(entry for part in parts for entry in part))
        readable = found >= 0
        width = int(readable.sum(0).max())
        places = readable.flatten().cumsum(0).view_as(found) - 1
        rank = dist.get_rank(group)
        rows = torch.arange(len(slices)) * width + readable.cumsum(0) - 1  # (slots, W)
        return cls(found[readable], places[:, rank][readable[:, rank]], rows[readable], width, skipped)


def gather(embeddings: Tensor, whole: GlobalBatch) -> Tensor:
    """Return the embeddings [B, E] of the global batch, from this process's [b, E]; further rows are ignored.

    Every process computes the same loss of the global batch, so the full gradient of its own embeddings needs no
    communication. The gradient is multiplied by W, because DDP takes the mean over W processes.
    """
    return cast(Tensor, _Gather.apply(embeddings, whole))


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, whole: GlobalBatch) -> Tensor:
        ctx.own, ctx.shape = whole.own, embeddings.shape
        # Slices may differ in length; collectives may not.
        padded = embeddings.new_zeros(whole.width, embeddings.shape[1])
        padded[: len(whole.own)] = embeddings[: len(whole.own)]
        parts = [torch.empty_like(padded) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, padded)
        return torch.cat(parts)[whole.rows.to(embeddings.device)]

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> tuple[Tensor, None]:
        (gradient,) = gradients
        passed_on = gradient.new_zeros(ctx.shape)
        passed_on[: len(ctx.own)] = gradient[ctx.own.to(gradient.device)] * dist.get_world_size()
        return passed_on, None
