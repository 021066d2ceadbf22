"""Time and memory that each sampler takes to start an epoch over millions of images.

Synthetic labels with a long tail: the size of a class falls with its rank, and so does the number of classes of a
dataset. The reference of the same run is a plain ``numpy`` permutation of as many images. Each sampler is measured in
a process of its own. Its memory is the peak of all that Python and numpy allocate for it, from its making to the
hundredth batch, in a pass of its own; the labels it is given are not counted.

    python benchmarks/sampler.py
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np

from unimetric.data.sampling import SAMPLERS, Share, make_sampler

TARGET_SECONDS, TARGET_MIB = 5.0, 1024


def main() -> None:
    """Measure every sampler and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=3_000_000)
    parser.add_argument("--classes", type=int, default=350_000)
    parser.add_argument("--datasets", type=int, default=8)
    parser.add_argument("--batch", type=int, default=180)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--only", choices=sorted(SAMPLERS), help="measure one, and print it as JSON")
    arguments = parser.parse_args()
    if arguments.only:
        print(json.dumps(measure(arguments.only, arguments)))
        return
    # It imports torch, whose memory is none of the sampler's.
    from machine import write_result

    rows = [measured_apart(name) for name in sorted(SAMPLERS)]
    for row in rows:
        print(
            f"{row['sampler']:17} made in {row['make_seconds']:.2f} s, epoch starts in {row['start_seconds']:.2f} s "
            f"(target {TARGET_SECONDS:.0f}), {row['ratio']:.1f} times a permutation, "
            f"{row['batch_microseconds']:.0f} us a batch, peak {row['peak_mib']:.0f} MiB (target {TARGET_MIB})"
        )
    settings = {name: getattr(arguments, name) for name in ("images", "classes", "datasets", "batch", "epochs")}
    targets = {"start_seconds": TARGET_SECONDS, "peak_mib": TARGET_MIB}
    print(write_result("sampler", {"targets": targets, "settings": settings, "results": rows}))


def measured_apart(name: str) -> dict[str, float | str]:
    """`measure` in a fresh process."""
    command = [sys.executable, str(Path(__file__)), *sys.argv[1:], "--only", name]
    row: dict[str, float | str] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return row


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float | str]:
    """Median times of one sampler, their ratio to a permutation, and the its peak of memory."""
    classes, datasets = synthetic_labels(arguments.images, arguments.classes, arguments.datasets)
    began = time.perf_counter()
    sampler = make_sampler(name, {}, classes, datasets, arguments.batch, share=Share(0, 1))
    made = time.perf_counter() - began
    starts, batches, permutations = [], [], []
    # The first round is not counted.
    for epoch in range(arguments.epochs + 1):
        began = time.perf_counter()
        sampler.start(epoch)
        iterator = iter(sampler)
        next(iterator)
        starts.append(time.perf_counter() - began)
        began = time.perf_counter()
        count = sum(1 for _ in zip(range(99), iterator, strict=False))
        batches.append((time.perf_counter() - began) / count)
        began = time.perf_counter()
        np.random.default_rng(epoch).permutation(arguments.images)
        permutations.append(time.perf_counter() - began)
    start, permutation = statistics.median(starts[1:]), statistics.median(permutations[1:])
    return {
        "sampler": name,
        "make_seconds": made,
        "start_seconds": start,
        "permutation_seconds": permutation,
        "ratio": start / permutation,
        "batch_microseconds": statistics.median(batches[1:]) * 1e6,
        "peak_mib": peak_mib(name, classes, datasets, arguments.batch),
    }


def synthetic_labels(images: int, classes: int, datasets: int) -> tuple[list[int], list[str]]:
    """Class of every image in random order, and dataset of every class; every class has an image at least."""
    random = np.random.default_rng(0)
    weights = 1 / np.arange(1, classes + 1) ** 0.8
    more = random.choice(classes, images - classes, p=weights / weights.sum())
    numbers = random.permutation(np.concatenate([np.arange(classes), more]))
    parts = 1 / np.arange(1, datasets + 1)
    owners = random.choice(datasets, classes, p=parts / parts.sum())
    return numbers.tolist(), [f"dataset {owner}" for owner in owners.tolist()]


def peak_mib(name: str, classes: list[int], datasets: list[str], batch: int) -> float:
    """The most memory that making a sampler and starting an epoch take at once."""
    tracemalloc.start()
    sampler = make_sampler(name, {}, classes, datasets, batch, share=Share(0, 1))
    for _ in zip(range(100), sampler, strict=False):
        pass
    return tracemalloc.get_traced_memory()[1] / 2**20


if __name__ == "__main__":
    main()
