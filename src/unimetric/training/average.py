"""A running average of the learned weights, which is measured and saved in their place."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from unimetric.models.embedder import Embedder
from unimetric.models.network import assign_weights, learned_weights


@torch.no_grad()
def update_average(average: dict[str, Tensor], embedder: Embedder, step: int, horizon: float) -> None:
    """Move an exponential moving average towards the learned weights, in place; an empty one starts as them.

    The weights of ``horizon`` steps ago count 1/e as much as the present ones (Polyak and Juditsky, 1992). The first
    steps count less, so that the start is soon forgotten: after ``step`` s, from 1, at most ``(1 + s) / (10 + s)`` of
    the average stays. It is float32 by name; integers are copied.
    """
    weights = learned_weights(embedder)
    if not average:
        average |= {name: value.detach().clone() for name, value in weights.items()}
        return
    share = max(1 / horizon, 9 / (10 + step))
    for name, value in weights.items():
        kept = average[name] = average[name].to(value.device)  # a loaded one is on the CPU
        if value.is_floating_point():
            kept.lerp_(value, share)
        else:
            kept.copy_(value)


@contextmanager
def averaged_weights(embedder: Embedder, average: dict[str, Tensor], origin: Path) -> Iterator[None]:
    """Give a model the average for the length of a block, then its own weights again; an empty one changes nothing.

    Errors name the file ``origin``.
    """
    if not average:
        yield
        return
    own = {name: value.detach().clone() for name, value in learned_weights(embedder).items()}
    assign_weights(embedder, average, origin)
    try:
        yield
    finally:
        assign_weights(embedder, own, origin)
