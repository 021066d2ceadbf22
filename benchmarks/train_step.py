"""One PUMA training step against twice the bare frozen backbone's forward on the same batch; target: at most 1.5.

The bare backbone is timm's model in eval mode without gradients, in the same precision, its weights held in that
precision as well. The step is forward, CurricularFace, backward, gradient clipping and AdamW.

    python benchmarks/train_step.py
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

from machine import interleaved_medians, write_result
from unimetric.config import TrainingConfig
from unimetric.losses import make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.optimiser import make_optimiser

TARGET = 1.5


def main() -> None:
    """Measure in bf16 and fp32, print a line for each, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--classes", type=int, default=235)
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [
        measure(name, dtype, arguments, device) for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32))
    ]
    settings = {"batch": arguments.batch, "image_size": arguments.image_size, "classes": arguments.classes}
    print(write_result("train_step", {"target": TARGET, "settings": settings, "results": rows}))


def measure(
    name: str, dtype: torch.dtype, arguments: argparse.Namespace, device: torch.device
) -> dict[str, float | str]:
    """Median times and their ratio in one precision."""
    torch.manual_seed(0)
    backbone = make_backbone("dinov2-small", image_size=arguments.image_size).to(device)
    bare = backbone.vit
    embedder = Embedder(backbone, "puma").to(device).train()
    loss = make_loss("curricularface", arguments.classes, embedder.embedding_size).to(device)
    optimiser = make_optimiser(embedder, loss, TrainingConfig())
    learned = [parameter for group in optimiser.param_groups for parameter in group["params"]]
    images = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size, device=device)
    labels = torch.randint(arguments.classes, (arguments.batch,), device=device)

    def autocast() -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16)

    def forward() -> None:
        with torch.no_grad(), autocast():
            bare(images)

    def step() -> None:
        with autocast():
            embeddings = embedder(images)
        total = loss(embeddings, labels) + embedder.method.penalty()
        total.backward()
        nn.utils.clip_grad_value_(learned, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    with backbone.holding(dtype):
        seconds = interleaved_medians({"forward": forward, "step": step}, arguments.repetitions)
    ratio = seconds["step"] / (2 * seconds["forward"])
    print(
        f"{name}: step {seconds['step'] * 1e3:.0f} ms, bare forward {seconds['forward'] * 1e3:.0f} ms, "
        f"ratio step / (2 x forward) {ratio:.2f} (target at most {TARGET})"
    )
    return {"precision": name, "step_seconds": seconds["step"], "forward_seconds": seconds["forward"], "ratio": ratio}


if __name__ == "__main__":
    main()
