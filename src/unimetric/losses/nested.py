"""Nested sizes: one loss on several lengths of the same embedding (Matryoshka representation learning)."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


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
        # A part keeps its state, but is given slices of the whole loss's parameters.
        self._slices = [_remove_parameters(part) for part in self.parts]

    def forward(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """Return the mean loss of a batch: embeddings [B, E], labels int64 [B]; see the loss itself."""
        # All sizes draw the same classes, where the loss draws any.
        state = torch.get_rng_state()
        total: Tensor = self.whole(embeddings, labels)
        whole = dict(self.whole.named_parameters())
        for size, part, slices in zip(self.sizes, self.parts, self._slices, strict=True):
            torch.set_rng_state(state)
            own = {name: whole[name][place] for name, place in slices.items()}
            total = total + functional_call(part, own, (embeddings[:, :size], labels))
        return total / (1 + len(self.sizes))


def _remove_parameters(part: nn.Module) -> dict[str, tuple[slice, ...]]:
    """Remove the parameters of a loss; return by name the place of each within that of a longer embedding."""
    places = {name: tuple(map(slice, parameter.shape)) for name, parameter in part.named_parameters()}
    for name in places:
        path, _, attribute = name.rpartition(".")
        delattr(part.get_submodule(path), attribute)
    return places
