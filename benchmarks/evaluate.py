"""Seconds of a search by both protocols against the bare float32 matrix products that none can do without.

Synthetic vectors of several datasets, ten images per class. The search is that of `evaluate`: the vectors are checked
and prepared, and every query gets Recall@{1,2,4,8}, MAP@R, R-Precision and its best right and wrong answers, in its
dataset and in the union of all. The bare products are `torch.mm` of the same vectors in tiles of the fastest of some
sizes, into a buffer. Queries are measured in blocks, search and products in turns, so that a slow moment of the machine
hits both; fewer queries than images are blocks from all over them, with their share of the preparation. Targets: at
most 1.35 times the products; at most 1 GB above the vectors, by the peak of resident memory of `evaluate`, with all
that a report holds, in a process of its own.

Beside them, at a size that they can take: FAISS's flat index and pytorch-metric-learning's AccuracyCalculator, whose
figures have to be the same.

    python benchmarks/evaluate.py
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

TARGET_RATIO, TARGET_BYTES = 1.35, 10**9
KS = (1, 2, 4, 8)
TILES = [(512, 4096), (1024, 4096), (2048, 4096), (2048, 8192), (4096, 8192)]


def main() -> None:
    """Measure, print a line for each part, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--datasets", type=int, default=8)
    parser.add_argument("--queries", type=int, help="how many of the images search, all by default")
    parser.add_argument("--blocks", type=int, default=8, help="parts of the queries that are measured in turns")
    parser.add_argument("--beside", type=int, default=20_000, help="images to compare with other libraries on")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--only", choices=["memory"], help="measure the peak of memory, and print it as JSON")
    parser.add_argument("--name", default="evaluate", help="of the result")
    arguments = parser.parse_args()
    arguments.queries = min(arguments.queries or arguments.images, arguments.images)
    if arguments.only:
        print(json.dumps(measure_memory(arguments)))
        return
    from machine import write_result

    load = os.getloadavg()[0]
    speed = measure_speed(arguments)
    print(
        f"search {speed['search_seconds']:.1f} s, products {speed['products_seconds']:.1f} s, "
        f"ratio {speed['ratio']:.2f} (target {TARGET_RATIO})"
    )
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--only", "memory"]
    memory = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    print(f"{memory['bytes_above_vectors'] / 1e9:.2f} GB above the vectors (target {TARGET_BYTES / 1e9:.0f})")
    others = measure_others(arguments)
    for name, seconds in others["seconds"].items():
        print(f"{others['images']} images: {name} {seconds:.1f} s")
    settings = {
        name: getattr(arguments, name)
        for name in ("images", "queries", "width", "datasets", "blocks", "beside", "device")
    }
    result = {
        "targets": {"ratio": TARGET_RATIO, "bytes_above_vectors": TARGET_BYTES},
        "settings": settings,
        "load_before": load,
        "speed": speed,
        "memory": memory,
        "beside": others,
    }
    print(write_result(arguments.name, result))


@dataclass(frozen=True)
class Images:
    """Vectors and what they are of."""

    vectors: Tensor
    labels: list[int]
    datasets: list[str]

    def part(self, first: int, last: int) -> Images:
        """Some of them, in a row."""
        return Images(self.vectors[first:last], self.labels[first:last], self.datasets[first:last])


def some_images(count: int, width: int, datasets: int) -> Images:
    """Unit vectors around the centres of their classes, dataset by dataset; Recall@1 is some 60 % of 200,000."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) // 10
    centres = torch.randn(int(labels[-1]) + 1, width, generator=generator)
    vectors = torch.empty(count, width)
    for start in range(0, count, 10_000):
        part = labels[start : start + 10_000]
        noisy = centres[part] + 1.5 * torch.randn(len(part), width, generator=generator)
        vectors[start : start + 10_000] = torch.nn.functional.normalize(noisy)
    names = [f"dataset {number}" for number in (torch.arange(count) * datasets // count).tolist()]
    return Images(vectors, labels.tolist(), names)


def multiply(queries: Tensor, gallery: Tensor, tile: tuple[int, int], buffer: Tensor) -> None:
    """All products, tile by tile, into the same memory."""
    for left in queries.split(tile[0]):
        for right in gallery.split(tile[1]):
            torch.mm(left, right.T, out=buffer[: len(left) * len(right)].view(len(left), len(right)))
    if queries.is_cuda:
        torch.cuda.synchronize()


def seconds_of(function: Callable[[], object]) -> float:
    """Time of a call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def fastest_tile(queries: Tensor, gallery: Tensor, buffer: Tensor) -> tuple[int, int]:
    """Of some sizes, the one with the least seconds for a part of the products, each tried three times."""
    part = queries[:4096], gallery[:65_536]
    best = {tile: float("inf") for tile in TILES}
    for _ in range(3):
        for tile in TILES:
            best[tile] = min(best[tile], seconds_of(lambda tile=tile: multiply(*part, tile, buffer)))
    return min(best, key=lambda tile: best[tile])


def measure_speed(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds of the search and of the products, block by block in turns."""
    images = some_images(arguments.images, arguments.width, arguments.datasets)
    on_device = images.vectors.to(arguments.device)
    buffer = torch.empty(max(a * b for a, b in TILES), device=arguments.device)
    tile = fastest_tile(on_device, on_device, buffer)
    search = Search(images, arguments.device)
    search.run(slice(0, 100))
    step = -(-arguments.queries // arguments.blocks)
    starts = torch.linspace(0, arguments.images - step, arguments.blocks).long().tolist()
    blocks = []
    for number, first in enumerate(starts):
        rows = slice(first, first + step)
        measured: dict[str, Callable[[], object]] = {
            "products": lambda rows=rows: multiply(on_device[rows], on_device, tile, buffer),
            "search": lambda rows=rows: search.run(rows),
        }
        order = list(measured) if number % 2 else list(reversed(measured))
        seconds = {name: seconds_of(measured[name]) for name in order}
        blocks.append(seconds)
        print(f"block {number}: {seconds}", file=sys.stderr, flush=True)
    searching, products = (sum(block[name] for block in blocks) for name in ("search", "products"))
    preparing = search.preparation_seconds * step * arguments.blocks / arguments.images
    return {
        "tile": tile,
        "search_seconds": searching + preparing,
        "products_seconds": products,
        "ratio": (searching + preparing) / products,
        "preparation_seconds": preparing,
        "blocks": blocks,
    }


class Search:
    """Preparation of vectors and labels in `evaluate`."""

    def __init__(self, images: Images, device: str) -> None:
        from unimetric.evaluation.labels import factorize
        from unimetric.evaluation.neighbours import compared
        from unimetric.evaluation.rows import MEMORY, Tiling

        began = time.perf_counter()
        self.sides = compared(images.vectors, None, ("vectors", ""), "cosine", 1.0, MEMORY)
        (self.datasets,), _ = factorize(images.datasets)
        (self.classes,), _ = factorize(zip(images.datasets, images.labels, strict=True))
        self.preparation_seconds = time.perf_counter() - began
        self.tiling = Tiling(device=device)

    def run(self, rows: slice) -> None:
        """Judge some queries by both protocols."""
        from unimetric.evaluation.metrics import Retrieval, judge_both
        from unimetric.evaluation.rows import SelectedRows

        queries, gallery, distance = self.sides
        numbers = torch.arange(len(self.classes))[rows]
        chosen = SelectedRows(queries, numbers)
        retrieval = Retrieval(chosen, gallery, self.classes[rows], self.classes, numbers, distance)
        judge_both(retrieval, (self.datasets[rows], self.datasets), KS, self.tiling)


def measure_memory(arguments: argparse.Namespace) -> dict[str, Any]:
    """The peak of resident memory of one evaluation, above what was there before."""
    from unimetric.evaluation import evaluate

    images = some_images(arguments.images, arguments.width, arguments.datasets)
    # What is loaded on first use is no memory of the search's.
    warm = images.part(0, 100)
    evaluate(warm.vectors, warm.labels, warm.datasets, ks=KS, device=arguments.device)
    among: dict[str, Any] = {}
    queries = images
    if arguments.queries < arguments.images:
        names = range(arguments.images)
        queries = images.part(0, arguments.queries)
        among = {
            "gallery": (images.vectors, images.labels, images.datasets),
            "ids": names[: arguments.queries],
            "gallery_ids": names,
        }
    before = reset_peak()
    began = time.perf_counter()
    report = evaluate(queries.vectors, queries.labels, queries.datasets, ks=KS, device=arguments.device, **among)
    seconds = time.perf_counter() - began
    return {
        "bytes_above_vectors": peak_bytes() - before,
        "vector_bytes": images.vectors.numel() * images.vectors.element_size(),
        "evaluate_seconds": seconds,
        "unified": dict(report.unified),
        "harmonic": dict(report.harmonic),
    }


def reset_peak() -> int:
    """Resident bytes now, from where the peak counts on."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return peak_bytes()
    return peak_bytes()


def peak_bytes() -> int:
    """The peak of resident memory, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_others(arguments: argparse.Namespace) -> dict[str, Any]:
    """Seconds and figures of other libraries and of `evaluate`, on one dataset, without bootstrap intervals.

    Each is called twice and timed the second time, without its imports.
    """
    from unimetric.evaluation import evaluate

    images = some_images(arguments.beside, arguments.width, 1)
    measured: dict[str, Callable[[], Mapping[str, float]]] = {
        "unimetric": lambda: (
            evaluate(
                images.vectors, images.labels, images.datasets, ks=KS, device=arguments.device, resamples=1
            ).unified
        ),
        "faiss": lambda: by_faiss(images),
        "pytorch-metric-learning": lambda: by_calculator(images),
    }
    found = {name: dict(function()) for name, function in measured.items()}
    seconds = {name: seconds_of(function) for name, function in measured.items()}
    for name, figures in found.items():
        for metric, value in figures.items():
            if abs(value - found["unimetric"][metric]) > 1e-12:
                raise AssertionError(f"{name}: {metric} is {value}, not {found['unimetric'][metric]}")
    return {"images": arguments.beside, "seconds": seconds, "figures": found["unimetric"], "equal": True}


def by_faiss(images: Images) -> dict[str, float]:
    """Recall@k from a flat index of inner products."""
    import faiss

    index = faiss.IndexFlatIP(images.vectors.shape[1])
    index.add(images.vectors.numpy())
    rows = torch.from_numpy(index.search(images.vectors.numpy(), max(KS) + 1)[1])
    everyone, labels = torch.arange(len(rows)), torch.tensor(images.labels)
    # Without the query itself, wherever it stands.
    others = rows != everyone[:, None]
    ranks = others.cumsum(dim=1)
    right = (labels[rows] == labels[:, None]) & others
    return {f"recall@{k}": float((right & (ranks <= k)).any(dim=1).double().mean()) for k in KS}


def by_calculator(images: Images) -> dict[str, float]:
    """Recall@1, R-Precision and MAP@R."""
    from pytorch_metric_learning.utils.accuracy_calculator import AccuracyCalculator

    names = {
        "precision_at_1": "recall@1",
        "r_precision": "r-precision",
        "mean_average_precision_at_r": "map@r",
    }
    calculator = AccuracyCalculator(include=tuple(names), device=torch.device("cpu"))
    accuracy = calculator.get_accuracy(images.vectors, torch.tensor(images.labels))
    return {ours: float(accuracy[theirs]) for theirs, ours in names.items()}


if __name__ == "__main__":
    main()
