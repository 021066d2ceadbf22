"""Speed and memory of embedding and training on a device, for `gpu.py`."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from gpu_report import Report, Sizes
from unimetric.config import TrainingConfig
from unimetric.losses import make_loss
from unimetric.training.optimiser import make_optimiser


def embedding_speed(report: Report, sizes: Sizes) -> None:
    """Measure embedding from pixels in memory, in calls of 256 images."""
    report.section("Embedding", "what", "images/s", "peak memory, MiB")
    images = sizes.images(4 * sizes.batch)
    for method in ("frozen", "lora", "puma"):
        for precision in ("fp32", "bf16"):
            form = sizes.embedder(method).to(sizes.device).inference_form(precision)
            seconds, memory = measured(partial(form.embed_pixels, images), sizes)
            report.row(f"{method}, {precision}, {sizes.image_size} px", f"{len(images) / seconds:.0f}", memory)


def training_speed(report: Report, sizes: Sizes) -> None:
    """Measure training steps (forward, backward, AdamW) in bf16 against the card's own matrix product."""
    side = 8192 if sizes.device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=sizes.device, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * side**3 / measured(partial(torch.mm, left, right), sizes)[0]
    report.section(
        f"Training steps; a bf16 product of {side} x {side} matrices: {peak / 1e12:.1f} TFLOP/s",
        "what", "ms a step", "images/s", "TFLOP a step", "share of the product's rate", "peak memory, MiB",
    )  # fmt: skip
    shapes = ((84, 16), (224, 180)) if sizes.device.type == "cuda" else ((sizes.image_size, sizes.batch),)
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "puma": ("puma", {}), "lora": ("lora", {}), "ours (lora, targets all)": ("lora", {"targets": "all"}),
        "full": ("full", {}),
    }  # fmt: skip
    for image_size, batch in shapes:
        for name, (method, options) in methods.items():
            step = training_step(replace(sizes, image_size=image_size, batch=batch), method, options)
            counter = FlopCounterMode(display=False)
            with counter:
                step()
            seconds, memory = measured(step, sizes)
            work = counter.get_total_flops()
            report.row(
                f"{name}, {image_size} px, batches of {batch}", f"{seconds * 1e3:.1f}", f"{batch / seconds:.0f}",
                f"{work / 1e12:.3f}", f"{work / seconds / peak:.3f}", memory,
            )  # fmt: skip


def training_step(sizes: Sizes, method: str, options: dict[str, Any]) -> Callable[[], None]:
    """A step of training on noise, with every part in the form that `unimetric train` uses."""
    embedder = sizes.embedder(method, **options).to(sizes.device).train()
    loss = make_loss("curricularface", 512, embedder.embedding_size).to(sizes.device)
    optimiser = make_optimiser(embedder, loss, TrainingConfig())
    pixels = torch.stack(sizes.images(sizes.batch))
    labels = (torch.arange(sizes.batch) % 512).to(sizes.device)

    def step() -> None:
        batch = embedder.transform.normalise(pixels.to(sizes.device))
        with embedder.backbone.holding(torch.bfloat16), torch.autocast(sizes.device.type, torch.bfloat16):
            embeddings = embedder(batch)
        loss(embeddings.float(), labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def measured(action: Callable[[], object], sizes: Sizes) -> tuple[float, str]:
    """The median of an action's seconds after three warm-up calls, and its peak memory in MiB."""
    for _ in range(3):
        action()
    cuda = sizes.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(sizes.device)
    seconds = []
    for _ in range(sizes.repeats):
        sizes.synchronise()
        started = time.perf_counter()
        action()
        sizes.synchronise()
        seconds.append(time.perf_counter() - started)
    memory = f"{torch.cuda.max_memory_allocated(sizes.device) / 2**20:.0f}" if cuda else "–"
    return median(seconds), memory


SPEEDS = (embedding_speed, training_speed)
