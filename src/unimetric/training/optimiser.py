"""AdamW's groups of parameters, the learning rate as a function of the step, and the average of the weights.

The running average is measured and saved in the place of the learned weights.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from unimetric.config import TrainingConfig
from unimetric.models.embedder import Embedder
from unimetric.models.network import assign_weights, learned_weights


def make_optimiser(embedder: Embedder, loss: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with a group each for method, backbone, head and proxies; empty groups are omitted.

    Each group keeps its ``base_lr``, the rate at factor 1. The parameters have to be on their device already.
    """
    head = list(embedder.head.parameters()) if embedder.head is not None else []
    backbone = dict(embedder.backbone.named_parameters())
    members = {
        "method": (list(embedder.method.parameters()), config.method_multiplier),
        "backbone": ([backbone[name] for name in embedder.method.trained_in_backbone], config.backbone_multiplier),
        "head": (head, config.head_multiplier),
        "proxies": (list(loss.parameters()), config.proxy_multiplier),
    }
    groups = [
        {"name": name, "params": parameters, "base_lr": config.learning_rate * multiplier}
        for name, (parameters, multiplier) in members.items()
        if parameters
    ]
    # One pass over parameter, gradient and moments instead of a dozen: 45 million proxies make the others wait.
    fused = all(p.device.type in ("cpu", "cuda", "mps") for parameters, _ in members.values() for p in parameters)
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=fused)


def rate_schedule(config: TrainingConfig, steps_per_epoch: int, total_steps: int) -> Callable[[int], float]:
    """The factor on every group's learning rate at step 0 … ``total_steps`` - 1.

    ``step``: multiplied by ``decay_factor`` every ``decay_epochs``. ``cosine``: from 1 to ``cosine_floor``.
    ``constant``: 1. All rise linearly over the first ``warmup_steps``.
    """

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        if config.schedule == "constant":
            return 1.0
        if config.schedule == "step":
            return config.decay_factor ** (step // (config.decay_epochs * steps_per_epoch))
        progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return config.cosine_floor + (1 - config.cosine_floor) * (1 + math.cos(math.pi * progress)) / 2

    return factor


@torch.no_grad()
def step_rows(optimiser: torch.optim.AdamW, proxies: nn.Parameter, rows: Tensor) -> None:
    """Make AdamW's step of some of the proxies [C, E]; the others and their moments are unchanged.

    A proxy that was not drawn has no gradient. AdamW would treat that as a gradient of zero, and move the proxy by its
    old average and the weight decay. Here each row, int64 and once, has its own number of steps, as if it were a
    parameter that exists only in the steps that drew it. The gradient is removed, so that the optimiser's own step
    skips the proxies.
    """
    gradient, proxies.grad = proxies.grad, None
    assert gradient is not None  # noqa: S101  # there was a backward
    group = next(each for each in optimiser.param_groups if any(member is proxies for member in each["params"]))
    state = optimiser.state[proxies]
    if not state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(proxies), torch.zeros_like(proxies)
        state["step"] = torch.zeros(len(proxies), 1)
    state["step"] = state["step"].to(proxies.device)  # a loaded one is on the CPU
    gradient = gradient[rows]
    (beta, beta_of_squares), steps = group["betas"], state["step"][rows] + 1
    average = state["exp_avg"][rows].lerp(gradient, 1 - beta)
    squares = state["exp_avg_sq"][rows].lerp(gradient.square(), 1 - beta_of_squares)
    spread = (squares / (1 - beta_of_squares**steps)).sqrt() + group["eps"]
    kept = proxies[rows] * (1 - group["lr"] * group["weight_decay"])
    proxies[rows] = kept - group["lr"] * average / (1 - beta**steps) / spread
    state["step"][rows], state["exp_avg"][rows], state["exp_avg_sq"][rows] = steps, average, squares


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
