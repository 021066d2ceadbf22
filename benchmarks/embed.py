"""Cost of embedding beside the bare backbone, at 112 and 224 px, from tensors and from files.

In turns, on the same batch: timm's untouched model in eager float32; the bare backbone in the inference form; PUMA and
LoRA in the inference form; on a CPU the three with int8 products; PUMA as it is trained, under autocast with the frozen
weights held; and `Embedder.encode` of PUMA from files, which decodes and resizes as well. Targets for PUMA's form: at
most 1.13 times the bare backbone's time in the same form and precision, and at least 2.5 times the images per second of
timm's eager float32. What int8 costs in Recall@1 is measured by ``int8.py``.

    python benchmarks/embed.py FOLDER_OF_IMAGES
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from machine import interleaved_medians, write_result
from unimetric.data.images import is_image_name
from unimetric.models.backbone import make_backbone
from unimetric.models.devices import choose_device, choose_precision, compute_dtype
from unimetric.models.embedder import Embedder
from unimetric.models.inference import fuse

ARCHITECTURE = "vit_small_patch14_dinov2"
LARGEST_RATIO, SMALLEST_SPEEDUP = 1.13, 2.5


def main() -> None:
    """Measure at every size, print a table for each, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.rglob("*") if is_image_name(path))
    files = 2 * arguments.batch
    paths = paths[:: max(1, len(paths) // files)][:files]
    rows = [measure(size, paths, arguments) for size in arguments.image_sizes]
    result = {
        "targets": {"form_to_bare": LARGEST_RATIO, "form_speedup": SMALLEST_SPEEDUP},
        "settings": {
            "backbone": ARCHITECTURE,
            "batch": arguments.batch,
            "files": len(paths),
            "source": arguments.folder.name,
        },
        "results": rows,
    }
    print(write_result("embed", result))


def measure(size: int, paths: list[Path], arguments: argparse.Namespace) -> dict[str, Any]:
    """Median images per second of every way, and the ratios, at one input size."""
    device = choose_device()
    precision = choose_precision("auto", device)
    puma = embedder("puma", size, device)
    pixels = list(torch.randint(0, 256, (arguments.batch, 3, size, size), dtype=torch.uint8))
    images = puma.transform.normalise(torch.stack(pixels)).to(device)
    bare, form = fuse(embedder("frozen", size, device), precision), puma.inference_form(precision)
    untouched = timm.create_model(ARCHITECTURE, num_classes=0, img_size=size).eval().to(device)
    lora = fuse(embedder("lora", size, device), precision)
    dtype = compute_dtype(precision, device)
    ways: dict[str, Callable[[], object]] = {
        "timm, eager fp32": lambda: untouched(images),
        "bare form": lambda: bare(images),
        "PUMA form": lambda: form.embed_pixels(pixels),
        "LoRA form": lambda: lora(images),
        "PUMA, autocast": lambda: autocast(puma, images, dtype),
        "encode, from files": lambda: puma.encode(paths, batch_size=arguments.batch),
        **(int8_ways(size, pixels) if device.type == "cpu" else {}),
    }
    with torch.inference_mode():
        medians = interleaved_medians(ways, arguments.repetitions)
    counts = {"encode, from files": len(paths)}
    seconds = {name: value / counts.get(name, arguments.batch) for name, value in medians.items()}  # of an image
    reference = seconds["timm, eager fp32"]
    own = {name: seconds["bare form, int8" if name.endswith("int8") else "bare form"] for name in seconds}
    print(f"{size} px, {precision}, batch {arguments.batch}, the form is: {form.describe()}")
    for name, value in seconds.items():
        ratios = f"{reference / value:5.2f} x timm, time {value / own[name]:5.2f} x bare form"
        print(f"  {name:24} {1 / value:8.1f} images/s, {ratios}")
    return {
        "image_size": size,
        "precision": precision,
        "images_per_second": {name: round(1 / value, 2) for name, value in seconds.items()},
        "speedup_to_timm": {name: round(reference / value, 3) for name, value in seconds.items()},
        "time_to_bare_form": {name: round(value / own[name], 3) for name, value in seconds.items()},
    }


def int8_ways(size: int, pixels: list[Tensor]) -> dict[str, Callable[[], object]]:
    """The forms with int8 products."""
    methods = {"bare form, int8": "frozen", "PUMA form, int8": "puma", "LoRA form, int8": "lora"}
    forms = {
        name: embedder(method, size, torch.device("cpu")).inference_form("int8") for name, method in methods.items()
    }
    return {name: partial(form.embed_pixels, pixels) for name, form in forms.items()}


def embedder(method: str, size: int, device: torch.device) -> Embedder:
    """A model whose adapters add something."""
    torch.manual_seed(0)
    model = Embedder(make_backbone(ARCHITECTURE, weights="random", image_size=size), method)
    for parameter in model.method.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    return model.to(device).eval()


def autocast(model: Embedder, images: Tensor, dtype: torch.dtype) -> Tensor:
    """The model as it is trained."""
    with (
        model.backbone.holding(dtype, trained_too=True),
        torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32),
    ):
        return model(images)


if __name__ == "__main__":
    main()
