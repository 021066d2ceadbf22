"""A small database in memory, searched by coarse colours, behind the real service: quick, and without a model."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import date, datetime
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from stubs import StubIndex

from unimetric.search.calibration import POSSIBLE, STRONG, strength_of
from unimetric.search.columns import ColumnSummary
from unimetric.search.items import ItemNotFoundError, Match, StoredItem
from unimetric.search.sorting import in_order

HOSTILE = "<b>O'Brien & sons</b>"
CATALOGUES = ("hats", "shoes", HOSTILE)
SEASONS = ("summer", "it's winter", "spring")


def noise(seed: int, size: tuple[int, int] = (60, 40)) -> Image.Image:
    """Large coloured patches, so that another seed is another picture."""
    pixels = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def vector_of(image: Image.Image) -> NDArray[np.float32]:
    """The colours of 4 × 4 patches, of length 1."""
    colours = np.asarray(image.convert("RGB").resize((4, 4), Image.Resampling.BOX), np.float32).reshape(-1)
    colours -= colours.mean()
    return colours / max(float(np.linalg.norm(colours)), 1e-6)


class Gallery(StubIndex):
    """Items of three catalogues, 48 pictures each in two sizes of likeness, with columns of every kind.

    Items 0 to 11 of a catalogue are alike, and 0 to 2 count as copies of a picture; ``where`` is recorded and otherwise
    ignored.
    """

    def __init__(self, calibrated: bool = True, per_catalogue: int = 48, per_class: int = 1) -> None:
        super().__init__()
        self._per_class = per_class
        self._calibrated = calibrated
        self.metadata_columns = {
            "price": "number",
            "colour": "text",
            "sold": "boolean",
            "made": "date",
            "seen at": "time",
            "season": "text",
        }
        self.embedder.transform.crop = vector_of
        self.conditions: list[str | None] = []
        self.together: list[int] = []
        self._rows: dict[str, tuple[StoredItem, bytes, NDArray[np.float32]]] = {}
        for dataset in CATALOGUES:
            self.fill(dataset, per_catalogue)

    def fill(self, dataset: str, count: int) -> None:
        """Add the first items of a catalogue."""
        for number in range(count):
            self._add(dataset, CATALOGUES.index(dataset), number)

    def _add(self, dataset: str, shift: int, number: int) -> None:
        image = noise(1000 * shift)
        # The first is the picture itself, the next eleven come close, all others are different.
        if number:
            image = Image.blend(image, noise(1000 * shift + number), 0.12 + 0.02 * number if number < 12 else 1.0)
        id = hashlib.md5(f"{dataset}{number}".encode(), usedforsecurity=False).hexdigest()
        metadata: dict[str, Any] = {"price": number + 0.5, "colour": f"shade_{number}", "sold": number % 2 == 0}
        metadata["season"] = SEASONS[number % 3]
        path = f"/data/catalogue-{shift}/{'sub_folder-' * 6}{number}/a_picture.of-it <i>.png"
        item = StoredItem(id, dataset, f"species_no-{number // self._per_class}.of/{dataset}", path, metadata, "0" * 64)
        self._rows[id] = item, png(image), vector_of(image)

    def _embed_pixels(self, pixels: list[Any]) -> Any:
        self.embed(len(pixels))
        return np.stack(pixels)

    def datasets(self) -> dict[str, int]:
        names = [item.dataset for item, _, _ in self._rows.values()]
        return {name: names.count(name) for name in sorted(set(names))}

    def search_vectors(self, vectors: Any, k: int, guarantee: Any = None, **filters: Any) -> list[list[Match]]:
        return [self._nearest(vectors[0], k, (), **filters)]

    def search_item(self, id: str, k: int, **filters: Any) -> list[Match]:
        return self._nearest(self._row(id)[2], k, [id], **filters)

    def search_together(self, vectors: Any, ids: Any, k: int, **filters: Any) -> list[Match]:
        every = [*([] if vectors is None else vectors), *(self._row(id)[2] for id in ids)]
        self.together.append(len(every))
        return self._nearest(np.mean(every, axis=0), k, ids, **filters)

    def _nearest(
        self,
        vector: Any,
        k: int,
        left_out: Any,
        datasets: Any = None,
        where: Any = None,
        exact: bool = False,
        group_copies: bool = False,
    ) -> list[Match]:
        self.conditions.append(where)
        found = []
        for id, (item, _, other) in self._rows.items():
            if id in left_out or (datasets and item.dataset not in datasets):
                continue
            score = float(vector @ other)
            match = Match(id, score, item.dataset, item.label, item.path, item.metadata, None, None)
            if self._calibrated:
                confidence = float(np.interp(score, [0, 0.8, 0.95, 1], [0.05, POSSIBLE, STRONG, 0.97]))
                strength = strength_of(score, 1.0, confidence)
                match = replace(match, is_match=confidence >= POSSIBLE, confidence=confidence, strength=strength)
            found.append(match)
        found.sort(key=lambda match: (-match.score, match.id))
        return (_folded(found) if group_copies else found)[:k]

    def _row(self, id: str) -> tuple[StoredItem, bytes, NDArray[np.float32]]:
        if id not in self._rows:
            raise ItemNotFoundError(f"no item {id!r}; take the id of a match")
        return self._rows[id]

    def item(self, id: str) -> StoredItem:
        return self._row(id)[0]

    def thumbnail(self, id: str) -> bytes:
        return self._row(id)[1]

    def sample(
        self, n: int, seed: int = 0, datasets: Any = None, where: Any = None, order: Any = None, offset: int = 0
    ) -> list[StoredItem]:
        self.conditions.append(where)
        items = [item for item, _, _ in self._rows.values() if not datasets or item.dataset in datasets]
        if order is None:
            items = [items[place] for place in np.random.default_rng(seed).permutation(len(items))]
        else:
            items = in_order(items, lambda item: item.metadata[order.column], order.descending)
        return items[offset : offset + n]

    def columns(self) -> list[ColumnSummary]:
        """The summaries of the columns, as of one with too many colours to choose from."""
        rows = [item.metadata for item, _, _ in self._rows.values()]
        prices = [row["price"] for row in rows]
        seasons = tuple((season, sum(row["season"] == season for row in rows)) for season in SEASONS)
        sold = tuple((value, sum(row["sold"] == value for row in rows)) for value in (True, False))
        content: dict[str, Any] = {
            "price": ((), min(prices, default=None), max(prices, default=None)),
            "season": (seasons, None, None),
            "sold": (sold, None, None),
            "made": ((), date(2020, 1, 1), date(2024, 12, 31)),
            "seen at": ((), datetime(2020, 1, 1, 12, 30), datetime(2024, 12, 31)),
        }
        return [
            ColumnSummary(name, kind, 99, 0, *content.get(name, ((), None, None)))
            for name, kind in self.metadata_columns.items()
        ]

    def first(self, dataset: str = "hats") -> tuple[StoredItem, bytes]:
        """An item that has others like it, and its picture."""
        item, picture, _ = next(row for row in self._rows.values() if row[0].dataset == dataset)
        return item, picture


def _folded(found: list[Match]) -> list[Match]:
    """Fold items 0 to 2 of a catalogue into the most similar of them."""
    first: dict[str, int] = {}
    folded: list[Match] = []
    for match in found:
        if match.metadata["price"] > 2.5:
            folded.append(match)
        elif match.dataset in first:
            place = first[match.dataset]
            folded[place] = replace(folded[place], copies=(*folded[place].copies, match))
        else:
            first[match.dataset] = len(folded)
            folded.append(match)
    return folded
