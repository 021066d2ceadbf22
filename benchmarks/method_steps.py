"""A training step of every method, against full fine-tuning's on the same batch, in turn in one process.

What the table of a benchmark says about time depends on what else the machine did; this does not. The step is forward,
CurricularFace, backward, gradient clipping and AdamW, in bf16 autocast; the first round is not counted.

    python benchmarks/method_steps.py
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from machine import interleaved_medians, write_result
from unimetric.config import TrainingConfig
from unimetric.losses import make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.optimiser import make_optimiser

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "linear head": ("linear", {}),
    "VPT-deep": ("vpt-deep", {}),
    "BitFit": ("bitfit", {}),
    "LoRA": ("lora", {}),
    "LoRA on all products": ("lora", {"targets": "all"}),
    "AdaptFormer": ("adaptformer", {"bottleneck": 128}),
    "PUMA": ("puma", {"adapter_drop": 0.2}),
    "PUMA without prompts": ("puma", {"adapter_drop": 0.2, "prompts": 0}),
    "full": ("full", {}),
}


def main() -> None:
    """Measure, print a line for each, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--image-size", type=int, default=84)
    parser.add_argument("--classes", type=int, default=234)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with ExitStack() as held:
        steps = {name: make_step(*method, arguments, device, held) for name, method in METHODS.items()}
        seconds = interleaved_medians(steps, arguments.repetitions)
    ratios = {name: value / seconds["full"] for name, value in seconds.items()}
    for name, value in seconds.items():
        print(f"{name}: {value * 1e3:.0f} ms, {ratios[name]:.2f} of full fine-tuning")
    settings = {"batch": arguments.batch, "image_size": arguments.image_size, "classes": arguments.classes}
    print(write_result("method_steps", {"settings": settings, "seconds": seconds, "ratios_to_full": ratios}))


def make_step(
    method: str, options: dict[str, Any], arguments: argparse.Namespace, device: torch.device, held: ExitStack
) -> Callable[[], None]:
    """One optimiser step on a random batch; the backbone is its own, held in bf16 until ``held`` ends."""
    torch.manual_seed(0)
    size = arguments.image_size
    embedder = Embedder(make_backbone("dinov2-small", image_size=size), method, options).to(device).train()
    loss = make_loss("curricularface", arguments.classes, embedder.embedding_size).to(device)
    optimiser = make_optimiser(embedder, loss, TrainingConfig())
    learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    images = torch.randn(arguments.batch, 3, size, size, device=device)
    labels = torch.randint(arguments.classes, (arguments.batch,), device=device)
    held.enter_context(embedder.backbone.holding(torch.bfloat16))

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            embeddings = embedder(images)
        penalty = embedder.method.penalty()
        total = loss(embeddings, labels)
        (total if penalty is None else total + penalty).backward()
        nn.utils.clip_grad_value_(learned, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


if __name__ == "__main__":
    main()
