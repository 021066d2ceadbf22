"""Time and memory of an audit's steps for a million vectors: whole steps, or a share of the tiles of a step.

The vectors are random clusters, the hashes random bits. A step whose time grows with the square of the images is run
for the first tiles only, against all images; its time is the measured one times the number of tiles.

    python benchmarks/audit_million.py 1000000 --width 128 --work runs/audit-million
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from audit_scale import peak_memory
from machine import write_result
from unimetric.cpu import available_cores
from unimetric.curation import labels
from unimetric.curation.whitening import whitened
from unimetric.evaluation.neighbours import nearest_neighbours

CLASS_SIZE = 12

CLASSES = 1000
"""Classes for the classification, whose time grows with images times classes."""


def main() -> None:
    """Make the vectors, run the steps, and write the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--queries", type=int, default=8192, help="images of which the neighbours are looked for")
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    count, queries = arguments.count, arguments.queries
    vectors = clustered(count, arguments.width, arguments.work)
    ids = list(range(count))
    steps: dict[str, dict[str, Any]] = {}

    def step(name: str, share: float, function: Callable[[], Any]) -> Any:
        with peak_memory() as memory:
            started = time.perf_counter()
            result = function()
            seconds = time.perf_counter() - started
        steps[name] = {
            "share": share,
            "seconds": round(seconds, 1),
            "of_all": round(seconds / share),
            "peak_mb": memory,
        }
        print(name, steps[name], flush=True)
        return result

    def neighbours(of: np.ndarray) -> None:
        nearest_neighbours(of[:queries], of, 3, query_ids=ids[:queries], gallery_ids=ids)

    signs = np.random.default_rng(1).integers(0, 2, (count, 256), np.uint8).astype(np.float32) * 2 - 1
    white = step("whitening", 1.0, lambda: whitened(vectors, np.arange(count)))
    step("neighbours by whitened vectors", queries / count, lambda: neighbours(white))
    step("neighbours by vectors", queries / count, lambda: neighbours(vectors))
    step("pairs by hashes, one of two ways", queries / count, lambda: neighbours(signs))
    names = [f"{number % CLASSES}" for number in range(count)]
    judgement = step(
        f"classification, {CLASSES} classes",
        1.0,
        lambda: labels.judged(vectors, names, np.arange(count), np.arange(count)),
    )
    step("wrong labels", 1.0, lambda: labels.wrong_labels(judgement))
    result = {
        "images": count,
        "width": arguments.width,
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "vectors_mb": round(vectors.nbytes / 1e6),
        "steps": steps,
    }
    write_result(f"audit_million_{count}", result)


def clustered(count: int, width: int, work: Path) -> np.ndarray:
    """Return unit vectors around random centres, twelve for each, memory-mapped."""
    path = work / f"vectors-{count}-{width}.npy"
    if not path.is_file():
        work.mkdir(parents=True, exist_ok=True)
        random = np.random.default_rng(0)
        array = np.lib.format.open_memmap(path, "w+", np.float32, (count, width))
        for start in range(0, count, 12 * CLASS_SIZE * 500):
            tile = array[start : start + 12 * CLASS_SIZE * 500]
            centres = random.normal(size=(len(tile) // CLASS_SIZE + 1, width))
            found = np.repeat(centres, CLASS_SIZE, axis=0)[: len(tile)] + 0.5 * random.normal(size=tile.shape)
            tile[:] = found / np.linalg.norm(found, axis=1, keepdims=True)
        array.flush()
    return np.load(path, mmap_mode="r")


if __name__ == "__main__":
    main()
