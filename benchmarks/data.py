"""Images per second from disk to a normalised training batch, against torchvision's ImageFolder and DataLoader.

The same images, crops, batch size and workers for all. Two cases: the photographs as they are, and the same
enlarged to 1 to 4 megapixels and saved as JPEG (quality 90), since what a camera gives has that size. Target: with
a cache, at least 2 times ImageFolder; and more than the model takes (the bare backbone's forward).

    python benchmarks/data.py FOLDER_OF_CLASS_FOLDERS
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from machine import interleaved_medians, write_result
from unimetric.data.cache import CacheKind, ImageReader, image_reader
from unimetric.data.catalog import Item
from unimetric.data.cropping import resized_side
from unimetric.data.images import decode_image, is_image_name
from unimetric.data.loading import training_loader
from unimetric.data.preparing import prepare_cache
from unimetric.data.transforms import EvaluationTransform, TrainingTransform
from unimetric.models.backbone import make_backbone
from unimetric.models.devices import choose_device, choose_precision, compute_dtype

TARGET = 2.0
HALVES = (0.5,) * 3


class InOrder:
    """A sampler for `training_loader`: every image once, batch by batch."""

    def __init__(self, count: int, batch: int) -> None:
        self.count, self.batch = count, batch

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for start in range(0, self.count, self.batch):
            yield [(0, number) for number in range(start, min(start + self.batch, self.count))]

    def __len__(self) -> int:
        return -(-self.count // self.batch)


def main() -> None:
    """Measure both cases, print a line for each way, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repetitions", type=int, default=3)
    arguments = parser.parse_args()
    paths = sorted(path for path in arguments.folder.rglob("*") if is_image_name(path))
    paths = paths[:: max(1, len(paths) // arguments.images)][: arguments.images]
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for case, enlarge in (("as they are", False), ("enlarged to 1 to 4 megapixels", True)):
            root = Path(scratch) / ("large" if enlarge else "small")
            rows.append({"case": case, **measure(copied(paths, root, enlarge), root, arguments)})
    settings = {name: getattr(arguments, name) for name in ("image_size", "batch", "workers")}
    result = {"target": TARGET, "unit": "images per second", "settings": {**settings, "images": len(paths)}}
    print(write_result("data", {**result, "results": rows}))


def copied(paths: list[Path], root: Path, enlarge: bool) -> list[Path]:
    """The images in class folders of their own, as ImageFolder wants them; enlarged ones as JPEG."""
    written = []
    for number, path in enumerate(paths):
        target = root / f"class{number % 8}" / f"{number}{'.jpg' if enlarge else path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        if enlarge:
            image = decode_image(path)
            factor = ((1 + number % 4) * 1e6 / (image.width * image.height)) ** 0.5
            size = (round(image.width * factor), round(image.height * factor))
            image.resize(size, Image.Resampling.BICUBIC).save(target, quality=90)
        else:
            target.write_bytes(path.read_bytes())
        written.append(target)
    return written


def measure(paths: list[Path], root: Path, arguments: argparse.Namespace) -> dict[str, object]:
    """Images per second of every way, and the ratios to ImageFolder's."""
    size = arguments.image_size
    readers = {"files": ImageReader(), "files, reduced decode": image_reader(None, True, size, "cache")}
    disk = {}
    for kind in ("jpeg", "raw"):
        folder = root.parent / f"{root.name}-{kind}"
        prepared = prepare_cache(paths, folder, CacheKind(resized_side(size), kind), threads=arguments.workers)
        readers[f"{kind} cache"] = image_reader(str(folder), False, size, "cache")
        disk[kind] = prepared.bytes / prepared.source_bytes
    ways: dict[str, Callable[[], object]] = {"ImageFolder": plain_loader(root, arguments)}
    for name, read in readers.items():
        ways[name] = own_loader(paths, read, arguments)
    ways["bare forward"], precision = forward(arguments)
    seconds = interleaved_medians(ways, arguments.repetitions)
    rates = {name: len(paths) / value for name, value in seconds.items() if name != "bare forward"}
    rates["bare forward"] = arguments.batch / seconds["bare forward"]
    ratios = {name: rate / rates["ImageFolder"] for name, rate in rates.items()}
    for name, rate in rates.items():
        print(f"{root.name}: {name} {rate:.1f} images/s, {ratios[name]:.2f} times ImageFolder (target {TARGET})")
    return {"precision": precision, "rates": rates, "ratios": ratios, "cache_bytes_per_source_byte": disk}


def plain_loader(root: Path, arguments: argparse.Namespace) -> Callable[[], object]:
    """Torchvision's own way."""
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(
                arguments.image_size, scale=(0.2, 1.0), interpolation=v2.InterpolationMode.BICUBIC, antialias=True
            ),
            v2.RandomHorizontalFlip(),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(HALVES, HALVES),
        ]
    )
    folder = ImageFolder(str(root), transform)
    loader = DataLoader(folder, arguments.batch, num_workers=arguments.workers, persistent_workers=True)
    return lambda: [images.sum() for images, _ in loader]


def own_loader(paths: list[Path], read: ImageReader, arguments: argparse.Namespace) -> Callable[[], object]:
    """The loader of training, and the normalisation that the training step does."""
    transform = TrainingTransform(arguments.image_size)
    items = [Item(path, path.parent.name, "a") for path in paths]
    sampler = InOrder(len(items), arguments.batch)
    loader = training_loader(items, [0] * len(items), transform, sampler, seed=0, workers=arguments.workers, read=read)
    normalise = EvaluationTransform(arguments.image_size, HALVES, HALVES).normalise
    return lambda: [normalise(batch.images).sum() for batch in loader]


def forward(arguments: argparse.Namespace) -> tuple[Callable[[], object], str]:
    """One batch through the bare backbone."""
    device = choose_device()
    vit = make_backbone("dinov2-small", image_size=arguments.image_size).to(device).eval().vit
    images = torch.randn(arguments.batch, 3, arguments.image_size, arguments.image_size, device=device)
    dtype = compute_dtype("auto", device)

    def run() -> object:
        with torch.inference_mode(), torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            return vit(images)

    return run, choose_precision("auto", device)


if __name__ == "__main__":
    main()
