"""Planted faults for `audit.py`: edited copies, leaks and blank pictures as files, and wrong labels in manifests."""

from __future__ import annotations

import csv
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps
from sklearn.covariance import ledoit_wolf

from unimetric.data.catalog import Item
from unimetric.data.sources import read_sources
from unimetric.data.splits import split_datasets

SHARES = {"wrong": 0.05, "copy": 0.02, "leak": 0.01, "blank": 0.01}
"""Share of the photographs with each fault."""


@dataclass(frozen=True)
class Planted:
    """A collection with planted pictures.

    Attributes:
        items: Photographs and planted pictures, with the side of the split as their role.
        originals: Number of photographs; they come first.
        kinds: Kind of each planted picture, by path: ``smaller``, ``cropped``, ``mirrored``, ``leak`` or ``blank``.
        sources: The photograph that it was made of, by path; none for blank pictures.
    """

    items: tuple[Item, ...]
    originals: int
    kinds: dict[Path, str]
    sources: dict[Path, Path]


def plant_pictures(source: Path, folder: Path) -> Planted:
    """Write copies, leaks and blank pictures of a folder of domains into another folder."""
    split = split_datasets(read_sources([str(source)]))
    originals = [replace(i, role=side) for side, part in (("train", split.train), ("test", split.query)) for i in part]
    draw = random.Random(0)
    chosen = draw.sample(originals, len(originals))
    count = {kind: round(share * len(originals)) for kind, share in SHARES.items()}
    labels = _labels_by_side(originals)
    planted: list[tuple[Item, str]] = []
    folder.mkdir(parents=True, exist_ok=True)
    edits: list[tuple[str, Callable[[Image.Image], Image.Image]]] = [
        ("smaller", _smaller),
        ("cropped", _cropped),
        ("mirrored", ImageOps.mirror),
    ]

    sources = {}

    def add(item: Item, kind: str, picture: Image.Image, quality: int) -> None:
        path = folder / f"{len(planted):04}-{kind}.jpg"
        if not path.is_file():  # a new time stamp would have everything measured again
            picture.save(path, quality=quality)
        planted.append((replace(item, path=path), kind))
        if kind != "blank":
            sources[path] = item.path

    for number in range(count["copy"]):
        kind, edit = edits[number % 3]
        add(item := chosen.pop(), kind, edit(_opened(item)), 60)
    for _ in range(count["leak"]):
        item = chosen.pop()
        side = "test" if item.role == "train" else "train"
        label = draw.choice(labels[item.dataset, side])
        add(replace(item, role=side, label=label), "leak", _opened(item), 70)
    for _ in range(count["blank"]):
        add(chosen.pop(), "blank", Image.new("RGB", (128, 128), draw.choice(["white", "black", "gray"])), 90)
    items = (*originals, *(item for item, _ in planted))
    return Planted(items, len(originals), {item.path: kind for item, kind in planted}, sources)


def wrong_labels(planted: Planted, vectors: NDArray[np.float32], choice: str) -> dict[Path, str]:
    """Return wrong labels for 5 % of the photographs, of the same dataset and the same side of its split.

    Args:
        planted: The collection.
        vectors: A vector of every image, which decide on the most similar class.
        choice: ``random``; ``similar`` for the most similar class; ``both`` for one and the other.
    """
    if choice == "both":
        return wrong_labels(planted, vectors, "similar") | wrong_labels(planted, vectors, "random")
    draw = random.Random(f"wrong labels, {choice}")
    originals = planted.items[: planted.originals]
    similar = _most_similar(originals, vectors[: planted.originals])
    labels = _labels_by_side(originals)
    wrong = {}
    for item in draw.sample(originals, round(SHARES["wrong"] * len(originals))):
        others = [label for label in labels[item.dataset, item.role] if label != item.label]
        wrong[item.path] = similar[item.dataset, item.label] if choice == "similar" else draw.choice(others)
    return wrong


def relabelled(planted: Planted, wrong: dict[Path, str]) -> list[Item]:
    """Return the collection with wrong labels."""
    return [replace(item, label=wrong.get(item.path, item.label)) for item in planted.items]


def write_manifest(path: Path, items: Sequence[Item]) -> None:
    """Write items with their roles as the manifest that `unimetric` reads."""
    with path.open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(("path", "label", "dataset", "split"))
        table.writerows((item.path.absolute(), item.label, item.dataset, item.role) for item in items)


def _labels_by_side(items: Sequence[Item]) -> dict[tuple[str, str | None], list[str]]:
    labels = defaultdict(set)
    for item in items:
        labels[item.dataset, item.role].add(item.label)
    return {place: sorted(found) for place, found in labels.items()}


def _most_similar(items: Sequence[Item], vectors: NDArray[np.float32]) -> dict[tuple[str, str], str]:
    """Return the class whose centre is nearest, after whitening within classes, on the same side of the split."""
    nearest = {}
    for dataset in sorted({item.dataset for item in items}):
        rows = np.array([row for row, item in enumerate(items) if item.dataset == dataset])
        names, number = np.unique([items[row].label for row in rows], return_inverse=True)
        side = {items[row].label: items[row].role for row in rows}
        centres = np.stack([vectors[rows[number == label]].mean(axis=0) for label in range(len(names))])
        covariance = ledoit_wolf(vectors[rows] - centres[number], assume_centered=True)[0]
        white = centres @ np.linalg.inv(np.linalg.cholesky(covariance)).T
        distances = ((white[:, None] - white[None]) ** 2).sum(-1)
        for one, name in enumerate(names):
            others = [j for j in np.argsort(distances[one]) if j != one and side[names[j]] == side[name]]
            nearest[dataset, str(name)] = str(names[others[0]])
    return nearest


def _opened(item: Item) -> Image.Image:
    return Image.open(item.path).convert("RGB")


def _smaller(image: Image.Image) -> Image.Image:
    return image.resize((max(8, image.width * 7 // 10), max(8, image.height * 7 // 10)))


def _cropped(image: Image.Image) -> Image.Image:
    """80 % of the area, in the lower right."""
    left, top = int(image.width * 0.105), int(image.height * 0.105)
    return image.crop((left, top, image.width, image.height))
