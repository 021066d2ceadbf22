"""The cost of vectors that do not depend on the batch: image by image against batches, at 112 and 224 px.

The same inference form, in turns: whole batches at once with all threads, and image by image with one thread per call,
which is what `Embedder.encode` and `ExportedEmbedder.encode` use on a CPU. For a batch of 32 and for a single query,
wall time and processor time. Targets: at most 1.15 times the time of batches, a single query no slower, and vectors of
the batch equal to those of single queries to the bit.

    python benchmarks/one_vector.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from machine import write_result
from unimetric.cpu import available_cores
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.inference import fuse
from unimetric.models.onnx_export import onnx_graph
from unimetric.models.onnx_runtime import OnnxNetwork, open_session

Vectors = NDArray[np.float32]
Encode = Callable[[list[torch.Tensor]], Vectors]

LARGEST_RATIO = 1.15
WAYS = ("batches", "image by image", "single query, batches", "single query, image by image")


def main() -> None:
    """Measure at every size and precision, print a line for each, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-sizes", type=int, nargs="+", default=[112, 224])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repetitions", type=int, default=9)
    arguments = parser.parse_args()
    rows = [
        measure(size, precision, arguments)
        for size in arguments.image_sizes
        for precision in ("bf16", "fp32", "exported fp32")
    ]
    result = {"target_ratio": LARGEST_RATIO, "threads": torch.get_num_threads(), "batch": arguments.batch}
    print(write_result("one_vector", result | {"results": rows}))


def measure(size: int, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median milliseconds per image of every way, and their ratios, at one input size."""
    embedder = Embedder(make_backbone("dinov2-small", weights="random", image_size=size), "puma").eval()
    generator = torch.Generator().manual_seed(0)
    images = list(torch.randint(0, 256, (arguments.batch, 3, size, size), dtype=torch.uint8, generator=generator))
    batched, by_image = exported_ways(embedder) if precision == "exported fp32" else ways(embedder, precision)
    together, alone = by_image(images), np.concatenate([by_image([image]) for image in images])
    calls: dict[str, Callable[[], object]] = {
        WAYS[0]: lambda: batched(images),
        WAYS[1]: lambda: by_image(images),
        WAYS[2]: lambda: batched(images[:1]),
        WAYS[3]: lambda: by_image(images[:1]),
    }
    wall, processor = interleaved(calls, arguments.repetitions)
    row: dict[str, Any] = {
        "image_size": size,
        "precision": precision,
        "equal_to_the_bit": bool(np.array_equal(together, alone)),
        "largest_difference_in_batches": float(np.abs(batched(images) - alone).max()),
    }
    for kind, times in (("wall", wall), ("processor", processor)):
        row[f"{kind}_ms"] = {
            way: round(1000 * seconds / (1 if way.startswith("single") else arguments.batch), 2)
            for way, seconds in times.items()
        }
        row[f"{kind}_ratio"] = round(times[WAYS[1]] / times[WAYS[0]], 3)
        row[f"{kind}_ratio_single"] = round(times[WAYS[3]] / times[WAYS[2]], 3)
    print(row, flush=True)
    return row


def ways(embedder: Embedder, precision: str) -> tuple[Encode, Encode]:
    """Whole batches in one forward pass with all threads, and image by image."""
    model, form = fuse(embedder, precision), embedder.inference_form(precision)

    @torch.inference_mode()
    def batched(images: list[torch.Tensor]) -> Vectors:
        vectors: Vectors = model(model.backbone.transform.normalise(torch.stack(images))).numpy()
        return vectors

    return batched, form.embed_pixels


def exported_ways(embedder: Embedder) -> tuple[Encode, Encode]:
    """The same for an exported file, run by onnxruntime."""
    import onnxruntime

    content = onnx_graph([embedder]).SerializeToString()
    network = OnnxNetwork(open_session(content), available_cores())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = available_cores()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def pixels(images: list[torch.Tensor]) -> Vectors:
        return np.asarray(embedder.transform.normalise(torch.stack(images)).numpy())

    return lambda images: session.run(["embeddings"], {"images": pixels(images)})[0], lambda images: network(
        pixels(images)
    )


def interleaved(calls: dict[str, Callable[[], object]], repetitions: int) -> tuple[dict[str, float], dict[str, float]]:
    """Median wall and processor seconds of every call; all are made in turn, over and over."""
    wall: dict[str, list[float]] = {way: [] for way in calls}
    processor: dict[str, list[float]] = {way: [] for way in calls}
    for call in calls.values():
        call()
    for _ in range(repetitions):
        for way, call in calls.items():
            start, used = time.perf_counter(), time.process_time()
            call()
            wall[way].append(time.perf_counter() - start)
            processor[way].append(time.process_time() - used)
    medians = [{way: statistics.median(times) for way, times in kind.items()} for kind in (wall, processor)]
    return medians[0], medians[1]


if __name__ == "__main__":
    main()
