"""Time and memory of an audit of many images that are measured already, with planted structure.

"Measured already" is the state after the first pass: every image was decoded once, and its vector, hashes, checksums
and grey values of 64 x 64 are on the disk. The rest is timed: copies (pictures of promising pairs are decoded, at 224
px), labels, strangers, the table and the page. All images are of one dataset, with a class for every twelve.

    python benchmarks/audit_scale.py 60000 --width 128 --work runs/audit-scale
"""

from __future__ import annotations

import argparse
import resource
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from machine import write_result
from unimetric.curation import copies
from unimetric.curation.audit import find_all
from unimetric.curation.findings import write_findings
from unimetric.curation.measurements import Measurements
from unimetric.curation.page import review_page
from unimetric.data.catalog import Item
from unimetric.files import write_text

CLASS_SIZE = 12


def main() -> None:
    """Make the measurements, audit them, and write the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--work", type=Path, required=True)
    arguments = parser.parse_args()
    work = arguments.work / f"{arguments.count}-{arguments.width}"
    measured = synthetic(arguments.count, arguments.width, work)
    (work / "pairs.jsonl").unlink(missing_ok=True)
    before = _resident()
    seconds = {}
    started = time.perf_counter()
    rows = measured.shows_something
    for name, proposed in (("hashes", copies._alike_by_hash), ("vectors", copies._alike_by_embedding)):
        begun = time.perf_counter()
        seconds[f"pairs by {name}"] = len(set(proposed(measured, rows))) and time.perf_counter() - begun
    separately = time.perf_counter() - started
    started = time.perf_counter()
    findings = find_all(measured, dict.fromkeys(measured.items[::2], "train")).findings
    seconds["all checks"] = time.perf_counter() - started
    begun = time.perf_counter()
    write_findings(work / "audit.csv", findings)
    write_text(work / "audit.html", review_page(findings, "scale", "", [], "0"))
    seconds["table and page"] = time.perf_counter() - begun
    result = {
        "images": arguments.count,
        "width": arguments.width,
        "classes": arguments.count // CLASS_SIZE,
        "torch_threads": torch.get_num_threads(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "seconds_in_all": round(time.perf_counter() - started, 1),
        "seconds_of_steps_timed_before": round(separately, 1),
        "vectors_mb": round(measured.vectors.nbytes / 1e6),
        "peak_mb_above_start": round((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e6),
        "pairs_compared": sum(1 for _ in (work / "pairs.jsonl").open()) - 1,
        "findings": Counter(finding.kind for finding in findings),
    }
    print(result)
    write_result(f"audit_scale_{arguments.count}", result)


def synthetic(count: int, width: int, work: Path) -> Measurements:
    """Classes of similar pictures and vectors; 2 % near copies, 1 % exact copies and 5 % wrong labels."""
    random = np.random.default_rng(0)
    made = (work / "done").is_file()
    (work / "pictures").mkdir(parents=True, exist_ok=True)
    given = np.arange(count) // CLASS_SIZE
    wrong = random.random(count) < 0.05
    labels = np.where(wrong, random.integers(0, given[-1] + 1, count), given)
    items = tuple(Item(work / "pictures" / f"{n:07}.jpg", f"{labels[n]:06}", "scale") for n in range(count))
    shapes = {
        "files": (32,),
        "pixels": (32,),
        "hashes": (2, 32),
        "grey": (64, 64),
        "numbers": (4,),
        "vectors": (width,),
    }
    kinds = dict.fromkeys(shapes, np.uint8) | {"numbers": np.float32, "vectors": np.float32}
    arrays = {
        name: np.load(work / f"{name}.npy", mmap_mode="r")
        if made
        else np.lib.format.open_memmap(work / f"{name}.npy", "w+", kinds[name], (count, *shape))
        for name, shape in shapes.items()
    }
    if not made:
        _fill(arrays, given, items, random)
        (work / "done").touch()
    return Measurements(items, work, f"{count} {width}", {}, **arrays)


def _fill(
    arrays: dict[str, np.ndarray], given: np.ndarray, items: tuple[Item, ...], random: np.random.Generator
) -> None:
    count, width = arrays["vectors"].shape
    centres = random.normal(size=(given[-1] + 1, width))
    shared = 2 * random.normal(size=width)
    for row in range(count):
        earlier = row - 1 if row % 50 == 49 else None
        exact = row % 100 == 49
        if earlier is None:
            vector = shared + centres[given[row]] + 0.5 * random.normal(size=width)
            class_picture = np.random.default_rng(given[row]).integers(0, 255, (8, 8))
            own_picture = random.integers(0, 255, (32, 32))
            arrays["grey"][row] = 0.5 * class_picture.repeat(8, 0).repeat(8, 1) + 0.5 * own_picture.repeat(2, 0).repeat(
                2, 1
            )
            arrays["hashes"][row] = random.integers(0, 256, (2, 32))
            arrays["pixels"][row] = arrays["files"][row] = random.integers(0, 256, 32)
            arrays["vectors"][row] = vector / np.linalg.norm(vector)
        else:
            for name in ("grey", "hashes", "vectors", "pixels", "files"):
                arrays[name][row] = arrays[name][earlier]
            if not exact:
                arrays["pixels"][row] = random.integers(0, 256, 32)
                arrays["hashes"][row, :, 0] ^= 3
        arrays["numbers"][row] = (224, 224, arrays["grey"][row].std(), 1)
        Image.fromarray(arrays["grey"][row]).resize((224, 224)).save(items[row].path, quality=80)


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


if __name__ == "__main__":
    main()
