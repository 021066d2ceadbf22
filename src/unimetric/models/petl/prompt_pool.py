"""The conditional prompt of PUMA (Kim, Kim, Kwak, WACV 2025, section 3)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PromptPool(nn.Module):
    """A pool of M prompts, mixed for each image by the similarity of its patches to each prompt's key.

    With the query ``q`` of an image, ``α_m = cos(q ⊙ softmax_D(A_m), K_m)`` and the conditional prompt is
    ``Σ_m α_m P_m``. Keys and attentions start orthogonal; all prompts start as the same orthogonal l×D matrix,
    so that keys and attentions alone break the symmetry, as in the authors' code.

    Args:
        width: D, the size of a token.
        size: M, the number of prompts.
        length: l, the tokens of a prompt.
    """

    def __init__(self, width: int, size: int = 20, length: int = 8) -> None:
        super().__init__()
        self.keys = nn.Parameter(nn.init.orthogonal_(torch.empty(size, width)))
        self.attentions = nn.Parameter(nn.init.orthogonal_(torch.empty(size, width)))
        self.prompts = nn.Parameter(nn.init.orthogonal_(torch.empty(length, width)).expand(size, -1, -1).clone())

    def weights(self, patches: Tensor) -> Tensor:
        """Return the weights α [B, M], in [-1, 1], for patch tokens [B, N, D], which get no gradient.

        The query is the mean of the mean and the maximum over patches. Computed in float32 under autocast.
        """
        with torch.autocast(patches.device.type, enabled=False):
            patches = patches.detach().float()
            query = (patches.mean(1) + patches.amax(1)) / 2  # (B, D)
            attention = self.attentions.softmax(dim=1)  # (M, D)
            # cos(q ⊙ a_m, K_m) without the [B, M, D] products: <q ⊙ a, K> = <q, a ⊙ K>, |q ⊙ a|² = <q², a²>.
            dot = query @ (attention * self.keys).T  # (B, M)
            norms = (query.square() @ attention.square().T).clamp_min(1e-24).sqrt()  # (B, M)
            weights: Tensor = dot / (norms * self.keys.norm(dim=1).clamp_min(1e-12))
            return weights

    def forward(self, patches: Tensor) -> Tensor:
        """Return the conditional prompt [B, l, D] for patch tokens [B, N, D]."""
        weights = self.weights(patches)
        with torch.autocast(patches.device.type, enabled=False):
            return torch.einsum("bm,mld->bld", weights, self.prompts)

    def penalty(self) -> Tensor:
        """Return the mean squared distance from orthogonality of keys, attentions and flattened prompts, a scalar."""
        with torch.autocast(self.keys.device.type, enabled=False):
            return sum(
                (F.linear(rows, rows) - torch.eye(len(rows), device=rows.device)).square().mean()
                for rows in (self.keys, self.attentions, self.prompts.flatten(1))
            )  # type: ignore[return-value]
