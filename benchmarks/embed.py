"""Images per second of `Embedder.encode`, from files, against the bare backbone's forward; target: at least 0.75.

The bare backbone is timm's model on tensors that are in memory already, in the same precision and batch size;
`encode` decodes, resizes, runs PUMA's adapters and prompts, and normalises as well.

    python benchmarks/embed.py FOLDER_OF_IMAGES
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from machine import interleaved_medians, write_result
from unimetric.data.images import is_image_name
from unimetric.models.backbone import make_backbone
from unimetric.models.devices import choose_device, choose_precision, compute_dtype
from unimetric.models.embedder import Embedder

TARGET = 0.75


def main() -> None:
    """Measure at 112 and 224 px, print a line for each, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.rglob("*") if is_image_name(path))
    paths = paths[:: max(1, len(paths) // arguments.images)][: arguments.images]
    rows = [measure(size, paths, arguments) for size in arguments.image_sizes]
    settings = {"images": len(paths), "batch": arguments.batch, "source": arguments.folder.name}
    print(write_result("embed", {"target": TARGET, "settings": settings, "results": rows}))


def measure(image_size: int, paths: list[Path], arguments: argparse.Namespace) -> dict[str, float | int | str]:
    """Median images per second and their ratio at one input size."""
    device = choose_device()
    precision, dtype = choose_precision("auto", device), compute_dtype("auto", device)
    embedder = Embedder(make_backbone("dinov2-small", image_size=image_size), "puma").to(device).eval()
    batch = torch.randn(arguments.batch, 3, image_size, image_size, device=device)

    def bare() -> None:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            for _ in range(0, len(paths), arguments.batch):
                embedder.backbone.vit(batch)

    seconds = interleaved_medians(
        {"bare": bare, "encode": lambda: embedder.encode(paths, batch_size=arguments.batch)}, arguments.repetitions
    )
    rounded = -(-len(paths) // arguments.batch) * arguments.batch
    rates = {"bare": rounded / seconds["bare"], "encode": len(paths) / seconds["encode"]}
    ratio = rates["encode"] / rates["bare"]
    print(
        f"{image_size} px, {precision}: encode {rates['encode']:.1f} images/s, bare {rates['bare']:.1f} images/s, "
        f"ratio {ratio:.2f} (target at least {TARGET})"
    )
    return {"image_size": image_size, "precision": precision, **rates, "ratio": ratio}


if __name__ == "__main__":
    main()
