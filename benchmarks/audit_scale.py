"""Time and memory of an audit of many pictures that are measured already, with planted copies and wrong labels.

The pictures are distinct quarters of a folder's photographs, turned by 0, 90, 180 or 270 degrees (of which no two are
copies) and with other colour balances, 224 px. Every fiftieth is an edited copy of the one before: re-encoded, smaller,
cropped, mirrored, recoloured, framed or watermarked. Pictures of one class, quarter and angle are a class here, and 5 %
have the label of another one. "Measured already" is the state after the first pass, which decodes and embeds each
picture once; everything else is timed: copies, labels, strangers, the table and the page.

Without photographs, the pictures are made up: those of a class have coarse blocks in common and noise of their own, and
their vectors are random clusters. They are made quickly, but look less alike, and less different, than photographs do.

    python benchmarks/audit_scale.py 60000 --photographs FOLDER_OF_DOMAINS --work runs/audit-scale
    python benchmarks/audit_scale.py 60000 --width 128 --work runs/audit-scale
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from machine import write_result
from unimetric.cpu import available_cores
from unimetric.curation import audit, copies, labels
from unimetric.curation.findings import Finding, write_findings
from unimetric.curation.measurements import Measurements, measure
from unimetric.curation.page import review_page
from unimetric.data.catalog import Item
from unimetric.data.sources import read_sources
from unimetric.files import write_text
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder

SIDE = 224

MADE_UP_CLASS = 12
"""Pictures in each class of made-up ones."""

EVERY = 50
"""One picture in so many is a copy of the one before."""


def main() -> None:
    """Make and measure the pictures in another process, audit them in this one, and write the times."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--photographs", type=Path, help="folder of domains; without it, pictures are made up")
    parser.add_argument("--width", type=int, default=128, help="numbers of a made-up vector")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--prepare", action="store_true", help="only make and measure the pictures")
    arguments = parser.parse_args()
    folder, count = arguments.photographs, arguments.count
    work = arguments.work / (f"{count}" if folder else f"{count}-{arguments.width}")

    def prepared() -> Measurements:
        return measured_pictures(folder, count, work) if folder else made_up(count, arguments.width, work)

    if arguments.prepare:
        prepared()
        return
    subprocess.run([sys.executable, *sys.argv, "--prepare"], check=True)
    measured = prepared()
    (measured.folder / "pairs.jsonl").unlink(missing_ok=True)
    with stages() as seconds, peak_memory() as memory:
        started = time.perf_counter()
        findings = audit.find_all(measured, dict.fromkeys(measured.items[::2], "train")).findings
        seconds["table and page"] = -time.perf_counter()
        write_findings(work / "audit.csv", findings)
        write_text(work / "audit.html", review_page(findings, "scale", "", [], "0"))
        seconds["table and page"] += time.perf_counter()
        seconds["in all"] = time.perf_counter() - started
    result = {
        "images": count,
        "pictures": "parts of photographs" if folder else "made up",
        "width": measured.vectors.shape[1],
        "classes": len({item.label for item in measured.items}),
        "cores": available_cores(),
        "torch_threads": torch.get_num_threads(),
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "vectors_mb": round(measured.vectors.nbytes / 1e6),
        "peak_mb_above_start": memory,
        "pairs_compared": sum(1 for _ in (measured.folder / "pairs.jsonl").open()) - 1,
        "findings": Counter(finding.kind for finding in findings),
    }
    if folder:
        result["copies"] = planted_copies(measured, findings)
    print(result)
    write_result(f"audit_scale_{count}{'_photographs' if folder else ''}", result)


def measured_pictures(folder: Path, count: int, work: Path) -> Measurements:
    """Write the pictures that are missing and measure those that are not measured."""
    datasets = read_sources([str(folder)])
    photographs = [item for dataset in datasets for item in dataset.items]
    random = np.random.default_rng(0)
    wrong = random.random(count) < 0.05
    other = random.integers(0, count, count)
    items, names = [], []
    (work / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(count):
        source = number - (number % EVERY == EVERY - 1)
        names.append(class_of(photographs, source))
        path = work / "pictures" / f"{number:07}.jpg"
        items.append((path, source))
        if not path.is_file():
            image = picture(photographs, source)
            if source != number:
                image = list(EDITS.values())[number // EVERY % len(EDITS)](image)
            image.save(path, quality=60 if source != number else 90)
    labelled = tuple(
        Item(path, names[other[number]] if wrong[number] else names[number], "scale")
        for number, (path, _) in enumerate(items)
    )
    embedder = Embedder(make_backbone("dinov2-small", image_size=56), "frozen")
    return measure(labelled, embedder, embedder.fingerprint, work / "measurements", "auto")


def made_up(count: int, width: int, work: Path) -> Measurements:
    """Classes of similar pictures and vectors; 2 % near copies, 1 % exact copies and 5 % wrong labels."""
    random = np.random.default_rng(0)
    made = (work / "done").is_file()
    (work / "pictures").mkdir(parents=True, exist_ok=True)
    given = np.arange(count) // MADE_UP_CLASS
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


def class_of(photographs: list[Item], number: int) -> str:
    """Return the class of a picture."""
    turn, place = divmod(number, len(photographs))
    item = photographs[place]
    return f"{item.dataset} {item.label} {turn}"


def picture(photographs: list[Item], number: int) -> Image.Image:
    """Return a quarter of a photograph, turned, in another colour balance."""
    turn, place = divmod(number, len(photographs))
    if turn >= 16:
        raise SystemExit(f"{len(photographs)} photographs make {16 * len(photographs)} pictures, not {number + 1}")
    image = Image.open(photographs[place].path).convert("RGB")
    width, height = image.width // 2, image.height // 2
    left, top = turn % 2 * width, turn // 2 % 2 * height
    quarter = image.crop((left, top, left + width, top + height)).rotate(90 * (turn // 4), expand=True)
    gains = np.random.default_rng(number).uniform(0.85, 1.1, 3)
    values = np.asarray(quarter.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) * gains
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def watermarked(image: Image.Image) -> Image.Image:
    """Return the picture under a half transparent bar."""
    marked = image.copy()
    ImageDraw.Draw(marked).rectangle((SIDE // 5, 3 * SIDE // 7, 4 * SIDE // 5, 4 * SIDE // 7), fill="white")
    return Image.blend(image, marked, 0.5)


EDITS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "re-encoded": lambda image: image,
    "smaller": lambda image: image.resize((7 * SIDE // 10, 7 * SIDE // 10)),
    "cropped to 80 %": lambda image: image.crop((0, round(0.105 * SIDE), round(0.895 * SIDE), SIDE)),
    "mirrored": ImageOps.mirror,
    "recoloured": lambda image: ImageEnhance.Color(ImageEnhance.Brightness(image).enhance(1.1)).enhance(0.3),
    "framed": lambda image: ImageOps.expand(image, SIDE // 16, "white"),
    "watermarked": watermarked,
}


def planted_copies(measured: Measurements, findings: tuple[Finding, ...]) -> dict[str, Any]:
    """Return the share of planted copies that are found, by edit, and the findings that have no planted copy."""
    rows = {item: row for row, item in enumerate(measured.items)}
    found = [{rows[item] for item in f.images} for f in findings if f.kind in ("near-copy", "exact-copy")]
    together: dict[int, set[int]] = defaultdict(set)
    for group in found:
        for row in group:
            together[row] |= group
    kinds = list(EDITS)
    hits = defaultdict(list)
    planted = set()
    for row in range(EVERY - 1, len(measured.items), EVERY):
        hits[kinds[row // EVERY % len(kinds)]].append(row - 1 in together[row])
        planted |= {row - 1, row}
    others = sum(1 for group in found if len(group & planted) < 2)
    recall = {kind: round(sum(values) / len(values), 3) for kind, values in sorted(hits.items())}
    return {"recall": recall, "findings": len(found), "of them without a planted copy": others}


@contextmanager
def stages() -> Iterator[dict[str, float]]:
    """Yield the seconds of each step, which add up while the block runs."""
    seconds: dict[str, float] = defaultdict(float)
    parts: list[tuple[ModuleType, str, str]] = [
        (audit, "exact_copies", "exact copies"),
        (copies, "_proposed", "pairs by hash and embedding"),
        (audit, "near_copies", "near copies in all"),
        (audit, "nearest_neighbours", "nearest neighbours"),
        (labels, "judged", "classification"),
        (labels, "two_classes", "classes that are two"),
        (audit, "_label_findings", "labels and strangers in all"),
    ]
    before = {(module, name): getattr(module, name) for module, name, _ in parts}
    for module, name, stage in parts:
        setattr(module, name, timed(before[module, name], stage, seconds))
    try:
        yield seconds
    finally:
        for (module, name), function in before.items():
            setattr(module, name, function)


def timed(function: Callable[..., Any], stage: str, seconds: dict[str, float]) -> Callable[..., Any]:
    """Return a function that adds its time to a stage; one that yields is run to its end."""

    def call(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments, **options)
        if isinstance(result, Iterator):
            result = list(result)
        seconds[stage] += time.perf_counter() - started
        return result

    return call


@contextmanager
def peak_memory() -> Iterator[dict[str, int]]:
    """Yield the largest growth of the memory in MB: all of it, and without mapped files, which can be dropped."""
    grown = {"all": 0, "without mapped files": 0}
    start, done = _resident(), threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            now = _resident()
            for name in grown:
                grown[name] = max(grown[name], round((now[name] - start[name]) / 1e6))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield grown
    finally:
        done.set()
        watcher.join()


def _resident() -> dict[str, int]:
    _, everything, shared = Path("/proc/self/statm").read_text().split()[:3]
    page = resource.getpagesize()
    return {"all": int(everything) * page, "without mapped files": (int(everything) - int(shared)) * page}


if __name__ == "__main__":
    main()
