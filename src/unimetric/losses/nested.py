"""Nested sizes: one loss on several lengths of the same embedding (Matryoshka representation learning)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


class NestedLoss(nn.Module):
    """Mean of a loss over the whole embedding and over its first s numbers, for each nested size s.

    Source: Kusupati et al., *Matryoshka Representation Learning*, NeurIPS 2022, equation 1, with equal weights. The sum
    is divided by the number of sizes, so that learning rates, clipping and penalties mean the same as without nested
    sizes. As in the paper's weight-tied form, a shorter embedding is compared with the first s numbers of the same
    proxies. Every size has its own moving averages, because a short embedding learns at another pace. The loss
    normalises each length for itself.

    Args:
        make: Makes the loss for an embedding size.
        embedding_size: E.
        sizes: Nested sizes, each from 1 to E - 1, ascending.

    Attributes:
        whole: The loss of all E numbers; it holds all learned parameters.
        sizes: The nested sizes.
        parts: The loss of each nested size, without parameters of its own.
    """

    def __init__(self, make: Callable[[int], nn.Module], embedding_size: int, sizes: Sequence[int]) -> None:
        super().__init__()
        self.whole = make(embedding_size)
        self.sizes = tuple(sizes)
        self.parts = nn.ModuleList([make(size) for size in sizes])
        whole = dict(self.whole.named_parameters())
        self._tied = [_take_parameters(part, whole) for part in self.parts]

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch: embeddings [B, E], labels int64 [B]; see the loss itself."""
        # All sizes draw the same classes, where the loss draws any.
        state = torch.get_rng_state()
        total: Tensor = self.whole(embeddings, labels)
        whole = dict(self.whole.named_parameters())
        for size, part, tied in zip(self.sizes, self.parts, self._tied, strict=True):
            torch.set_rng_state(state)
            for place in tied:
                place.fill(whole)
            total = total + part(embeddings[:, :size], labels)
            for place in tied:
                place.clear()
        return total / (1 + len(self.sizes))


class _Place:
    """Place of a parameter in the loss of a nested size, which is filled with a slice of the whole loss's parameter."""

    def __init__(self, owner: nn.Module, attribute: str, name: str, index: tuple[slice, ...]) -> None:
        self.owner, self.attribute, self.name, self.index = owner, attribute, name, index

    def fill(self, whole: dict[str, nn.Parameter]) -> None:
        setattr(self.owner, self.attribute, whole[self.name][self.index])

    def clear(self) -> None:
        """Release the slice, which belongs to the graph of one step."""
        setattr(self.owner, self.attribute, None)


def _take_parameters(part: nn.Module, whole: dict[str, nn.Parameter]) -> list[_Place]:
    """Remove the parameters of a loss, and return the places to put slices of the whole loss's parameters in."""
    places = []
    for name, parameter in list(part.named_parameters()):
        path, _, attribute = name.rpartition(".")
        owner = part.get_submodule(path)
        del owner._parameters[attribute]
        setattr(owner, attribute, None)
        places.append(_Place(owner, attribute, name, tuple(slice(length) for length in parameter.shape)))
        assert len(parameter.shape) == len(whole[name].shape)  # noqa: S101  # one loss in two sizes
    return places
