"""Precision and recall of `unimetric audit` on planted faults, beside imagehash alone.

A copy of the folder of domains gets wrong labels (5 %, to a random class, or to the most similar one), re-encoded,
cropped and mirrored copies (2 %), leaks to the other side of the split, and blank pictures. Precision of copies counts
the findings whose removal is suggested; copies that the photographs themselves hold count as wrong.

    python benchmarks/audit.py FOLDER_OF_DOMAINS [--model RUN] [--labels random|similar] [--domains NAME ...]
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from machine import write_result
from unimetric.curation.audit import find_all, sides_of
from unimetric.curation.measurements import Measurements, measure
from unimetric.data.sources import read_sources
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder

Truth = dict[str, set[str]]


def main() -> None:
    """Plant the faults, audit, print the table and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--labels", choices=["random", "similar"], default="random")
    parser.add_argument("--domains", nargs="*", default=[])
    parser.add_argument("--work", type=Path, help="keeps the planted images and the measurements")
    arguments = parser.parse_args()
    embedder = (
        Embedder.from_pretrained(arguments.model)
        if arguments.model
        else Embedder(make_backbone("dinov2-small", image_size=112), "frozen")
    )
    work = arguments.work or Path(tempfile.mkdtemp())
    planted, truth = plant(arguments.folder, work / "images", arguments.domains, embedder, arguments.labels)
    datasets = read_sources([str(planted)])
    items = [item for dataset in datasets for item in dataset.items]
    started = time.perf_counter()
    measured = measure(items, embedder, str(arguments.model), work / "measurements", "auto")
    embedded = time.perf_counter()
    sides, _ = sides_of(datasets, "auto")
    findings = find_all(measured, sides).findings
    ended = time.perf_counter()
    found = {
        "copies": {names(f.images, planted) for f in findings if f.kind in ("near-copy", "exact-copy") and f.drop},
        "leaks": {names(f.images, planted) for f in findings if f.kind == "leak"},
        "wrong labels": {names(f.images[:1], planted) for f in findings if f.kind == "wrong-label"},
        "blank": {names(f.images, planted) for f in findings if f.kind == "blank"},
        "copies, imagehash alone": by_hash_alone(measured, planted),
    }
    rows = {kind: score(groups, truth[kind.split(",")[0]]) for kind, groups in found.items()}
    for kind, row in rows.items():
        print(f"{kind:26}" + "  ".join(f"{name} {value}" for name, value in row.items()))
    write_result(
        f"audit_{arguments.labels}" + ("_trained" if arguments.model else ""),
        {
            "images": len(items),
            "domains": [dataset.name for dataset in datasets],
            "model": "trained" if arguments.model else "dinov2-small at 112 px, frozen",
            "seconds_embedding": round(embedded - started, 1),
            "seconds_otherwise": round(ended - embedded, 1),
            "kinds": rows,
        },
    )


def plant(source: Path, target: Path, domains: list[str], embedder: Embedder, labels: str) -> tuple[Path, Truth]:
    """Copy the domains with faults; return the folder and the names of the faulty images by kind."""
    draw = random.Random(0)
    for domain in domains or sorted(path.name for path in source.iterdir() if path.is_dir()):
        shutil.copytree(source / domain, target / domain)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    similar = _most_similar_classes(files, embedder) if labels == "similar" else {}
    draw.shuffle(files)
    share = len(files) // 100
    wrong, copied, leaked, blanked = (files[a * share : b * share] for a, b in ((0, 5), (5, 7), (7, 8), (8, 9)))
    truth: Truth = {"wrong labels": set(), "copies": set(), "leaks": set(), "blank": set()}
    edits = [("small", _smaller), ("crop", _cropped), ("mirror", ImageOps.mirror)]
    for number, path in enumerate(copied):
        name, edit = edits[number % 3]
        copy = path.with_name(f"planted-{name}-{path.stem}.jpg")
        edit(Image.open(path).convert("RGB")).save(copy, quality=60)
        truth["copies"].add(str(copy.relative_to(target)))
    for path in leaked:
        classes = sorted(entry.name for entry in path.parents[1].iterdir())
        half = len(classes) // 2
        other = classes[half:] if classes.index(path.parent.name) < half else classes[:half]
        copy = path.parents[1] / draw.choice(other) / f"planted-leak-{path.parent.name}-{path.stem}.jpg"
        Image.open(path).convert("RGB").save(copy, quality=70)
        for kind in ("leaks", "copies", "wrong labels"):
            truth[kind].add(str(copy.relative_to(target)))
    for path in blanked:
        blank = path.with_name(f"planted-blank-{path.stem}.png")
        Image.new("RGB", (128, 128), draw.choice(["white", "black", "gray"])).save(blank)
        truth["blank"].add(str(blank.relative_to(target)))
    for path in wrong:
        others = sorted(entry.name for entry in path.parents[1].iterdir() if entry.name != path.parent.name)
        label = similar.get(path.parent, draw.choice(others))
        moved = path.parents[1] / label / f"planted-wrong-{path.parent.name}-{path.name}"
        path.rename(moved)
        truth["wrong labels"].add(str(moved.relative_to(target)))
    return target, truth


def _smaller(image: Image.Image) -> Image.Image:
    return image.resize((max(8, image.width * 7 // 10), max(8, image.height * 7 // 10)))


def _cropped(image: Image.Image) -> Image.Image:
    """80 % of the area, in the lower right."""
    left, top = int(image.width * 0.105), int(image.height * 0.105)
    return image.crop((left, top, image.width, image.height))


def _most_similar_classes(files: list[Path], embedder: Embedder) -> dict[Path, str]:
    vectors = embedder.encode([str(path) for path in files])
    folders = sorted({path.parent for path in files})
    centres = np.stack([vectors[[path.parent == folder for path in files]].mean(axis=0) for folder in folders])
    nearest = {}
    for row, folder in enumerate(folders):
        near = [other for other in np.argsort(-(centres @ centres[row])) if folders[other].parent == folder.parent]
        nearest[folder] = folders[near[1]].name
    return nearest


def names(items: Iterable[Any], root: Path) -> frozenset[str]:
    """Names of a finding's images."""
    return frozenset(str(item.path.relative_to(root)) for item in items)


def by_hash_alone(measured: Measurements, root: Path, distance: int = 32) -> set[frozenset[str]]:
    """Pairs whose hashes differ in at most 32 of 256 bits, as users of imagehash do it."""
    bits = np.unpackbits(measured.hashes[:, 0], axis=1)
    rows = measured.shows_something
    found = set()
    for place, row in enumerate(rows):
        later = rows[place + 1 :]
        for other in later[(bits[later] != bits[row]).sum(axis=1) <= distance]:
            found.add(names((measured.items[row], measured.items[other]), root))
    return found


def score(found: set[frozenset[str]], planted: set[str]) -> dict[str, float | int]:
    """Precision over the findings and recall over the planted images."""
    right = [group for group in found if group & planted]
    seen = {name for group in right for name in group & planted}
    precision = round(len(right) / len(found), 3) if found else 0.0
    return {"precision": precision, "recall": round(len(seen) / len(planted), 3), "found": len(found)}


if __name__ == "__main__":
    main()
