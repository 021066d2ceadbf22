"""AdamW's groups of parameters, and the learning rate as a function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from unimetric.config import TrainingConfig
from unimetric.models.embedder import Embedder


def make_optimiser(embedder: Embedder, loss: nn.Module, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with a group each for method, backbone, head and proxies; empty groups are left out.

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

    ``step``: multiplied by ``decay_factor`` every ``decay_epochs``. ``cosine``: from 1 to 0. Both rise linearly
    over the first ``warmup_steps``.
    """

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / (config.warmup_steps + 1)
        if config.schedule == "step":
            return config.decay_factor ** (step // (config.decay_epochs * steps_per_epoch))
        progress = (step - config.warmup_steps) / max(1, total_steps - config.warmup_steps)
        return (1 + math.cos(math.pi * progress)) / 2

    return factor
