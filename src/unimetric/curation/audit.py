"""An audit: all checks of measured images, and their findings."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray

from unimetric.curation import labels as label_checks
from unimetric.curation.copies import Copy, best_of, exact_copies, grouped, members, near_copies
from unimetric.curation.findings import LEAST_DOUBT, Finding, ordered
from unimetric.curation.measurements import Measurements
from unimetric.curation.unusable import unusable
from unimetric.data.catalog import Dataset, Item
from unimetric.data.splits import split_datasets
from unimetric.errors import UserError
from unimetric.evaluation.neighbours import nearest_neighbours

Sides = Mapping[Item, str]
"""``train``, ``query``, ``gallery``, or ``test`` for both of the last, for the images of datasets that are split."""

_PLACEHOLDER_CLASSES = 3

_FEWEST_FOR_STRANGERS = 20

_TILE = 1024

_LEAST_AGREEMENT = 0.5
"""Share of the images that the classifier must assign to their class for its findings to be of use."""


@dataclass(frozen=True)
class Findings:
    """The result of an audit.

    Attributes:
        findings: In the order of the table.
        notes: Remarks on what could not be checked, one line each.
        doubts: Probability that the label of an image is wrong, from `LEAST_DOUBT`, without those of the test side.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]
    doubts: Mapping[Item, float]


def find_all(measured: Measurements, sides: Sides) -> Findings:
    """Run every check on measured images."""
    exact = exact_copies(measured)
    copies = [*exact, *near_copies(measured, exact)]
    groups = grouped([copy for copy in copies if copy.exact or copy.same_colours], len(measured.items))
    found = [*unusable(measured)]
    found += _copy_findings(measured, copies, groups, sides)
    label_findings, notes, doubts = _label_findings(measured, groups)
    known = {(f.images[0], f.kind) for f in found if f.kind in ("contradiction", "blank")}
    blamed = {item for item, _ in known}
    found += [f for f in label_findings if f.kind not in ("wrong-label", "stranger") or f.images[0] not in blamed]
    trained = {item: doubt for item, doubt in doubts.items() if sides.get(item, "train") == "train"}
    return Findings(tuple(ordered(found)), tuple(notes), trained)


def sides_of(datasets: Sequence[Dataset], strategy: str) -> tuple[Sides, list[str]]:
    """Return the side of every image, as training would split the datasets, and remarks."""
    sides: dict[Item, str] = {}
    notes = []
    for dataset in datasets:
        if not any(item.label for item in dataset.items):
            notes.append(f"leaks between train and test are not looked for in {dataset.name}, which has no labels")
            continue
        try:
            split = split_datasets([dataset], strategy=strategy)
        except UserError as error:
            notes.append(f"leaks between train and test are not looked for: {error}")
            continue
        sides |= dict.fromkeys((*split.train, *split.validation), "train")
        queries, gallery = set(split.query), set(split.gallery)
        sides |= dict.fromkeys(queries - gallery, "query") | dict.fromkeys(gallery - queries, "gallery")
        sides |= dict.fromkeys(queries & gallery, "test")
    return sides, notes


def _copy_findings(
    measured: Measurements, copies: Sequence[Copy], groups: NDArray[np.int64], sides: Sides
) -> Iterator[Finding]:
    of_group = defaultdict(list)
    for copy in copies:
        of_group[groups[copy.one]].append(copy)
    for rows in members(groups):
        best = best_of(measured, rows)
        others = [row for row in rows if row != best]
        items = tuple(measured.items[row] for row in (best, *others))
        known = [copy for copy in of_group[groups[best]] if copy.exact or copy.same_colours]
        yield from _group_findings(items, known, sides)
    for copy in copies:
        if not copy.exact and not copy.same_colours and groups[copy.one] != groups[copy.other]:
            pair = tuple(measured.items[row] for row in (copy.one, copy.other))
            reason = f"The same picture in other colours, or a variant of the product ({copy.how})."
            yield Finding("near-copy", copy.agreement / 2, pair, reason)


def _group_findings(items: tuple[Item, ...], copies: Sequence[Copy], sides: Sides) -> Iterator[Finding]:
    exact = all(copy.exact for copy in copies)
    edits = sorted({copy.how for copy in copies})
    confidence = min(copy.agreement for copy in copies)
    classes = sorted({(item.dataset, item.label) for item in items if item.label})
    within = len({dataset for dataset, _ in classes}) == 1
    if len(classes) >= _PLACEHOLDER_CLASSES and exact:
        reason = f"One picture has {len(classes)} classes, as placeholders do."
        yield Finding("placeholder", confidence, items, reason, drop=items)
        return
    if len(classes) > 1 and within and _contradict(items):
        reason = "One picture has the labels " + " and ".join(label for _, label in classes) + "."
        yield Finding("contradiction", confidence, items, reason, drop=items)
    places = {(item.dataset, sides[item]) for item in items if item in sides}
    split_by_query = any(side == "query" and (dataset, "gallery") in places for dataset, side in places)
    if split_by_query or len({side == "train" for _, side in places}) > 1:
        listed = sorted(f"{side} of {dataset}" for dataset, side in places)
        reason = f"One picture ({', '.join(edits)}) is in {' and in '.join(listed)}."
        trained = tuple(item for item in items if sides.get(item) == "train")
        yield Finding("leak", confidence, items, reason, drop=trained)
    kind = "exact-copy" if exact else "near-copy"
    reason = f"{len(items)} images of one picture: {', '.join(edits)}."
    yield Finding(kind, confidence, items, reason, drop=items[1:])


def _contradict(items: Sequence[Item]) -> bool:
    """Return true if two of the labelled images share no label."""
    labelled = [item for item in items if item.label]
    return any(not one.is_right_for(other) for one, other in combinations(labelled, 2))


@dataclass(frozen=True)
class _Collection:
    """One dataset of an audit: rows [N], labels [N] and unit vectors [N, E] of its readable images.

    ``sides`` are those of the given split that have images of a class.
    """

    measured: Measurements
    rows: NDArray[np.int64]
    labels: list[str]
    vectors: NDArray[np.float32]
    members: dict[str, NDArray[np.int64]]
    sides: dict[str, set[str | None]]

    @classmethod
    def of(cls, measured: Measurements, rows: NDArray[np.int64]) -> "_Collection":
        labels = [measured.items[row].label for row in rows.tolist()]
        classes, given = label_checks.numbered_classes(labels)
        members = dict(zip(classes, label_checks.places_by_class(given), strict=True))
        sides: dict[str, set[str | None]] = defaultdict(set)
        for row, label in zip(rows.tolist(), labels, strict=True):
            sides[label].add(_given_side(measured.items[row]))
        return cls(measured, rows, labels, measured.vectors[rows], members, sides)

    def item(self, place: int) -> Item:
        return self.measured.items[int(self.rows[place])]

    def nearest_of(self, label: str, place: int) -> list[Item]:
        """Return the two images of a class that are most similar to an image, without the image itself."""
        others = self.members[label][self.members[label] != place]
        nearest = np.argsort(-(self.vectors[others] @ self.vectors[place]), kind="stable")[:2]
        return [self.item(int(others[index])) for index in nearest]


def _label_findings(
    measured: Measurements, groups: NDArray[np.int64]
) -> tuple[list[Finding], list[str], dict[Item, float]]:
    found: list[Finding] = []
    notes: list[str] = []
    unsure: list[str] = []
    doubts: dict[Item, float] = {}
    by_dataset: dict[str, list[int]] = defaultdict(list)
    for row in measured.readable.tolist():
        by_dataset[measured.items[row].dataset].append(row)
    for name, rows in by_dataset.items():
        collection = _Collection.of(measured, np.array(rows, dtype=np.int64))
        ids = list(range(len(rows)))
        tensor = torch.from_numpy(collection.vectors)
        similarities, nearest = nearest_neighbours(tensor, tensor, 3, query_ids=ids, gallery_ids=ids)
        found += _strangers(collection, similarities[:, 0].numpy())
        several = any(measured.items[row].labels for row in rows)
        judgement = (
            None
            if several or not all(collection.labels)
            else label_checks.judged(collection.vectors, collection.labels, collection.rows, groups)
        )
        if several:
            notes.append(f"labels of {name} are not checked: some images have several")
            continue
        if judgement is None:
            notes.append(f"labels of {name} are not checked: that takes two classes of two different images")
            continue
        if judgement.agreement < _LEAST_AGREEMENT:
            unsure.append(f"{name} ({judgement.agreement:.0%})")
        found += _wrong_labels(collection, judgement)
        found += _classes(collection, judgement, nearest.numpy())
        doubtful = label_checks.wrong_labels(judgement, LEAST_DOUBT)
        doubts |= {collection.item(place): probability for place, _, probability in doubtful}
    if unsure:
        notes.append(
            f"labels of {', '.join(unsure)} can hardly be checked: the percentages are of images that these embeddings "
            "classify as labelled; name a --model that was trained on such images"
        )
    return found, notes, doubts


def _wrong_labels(collection: _Collection, judgement: label_checks.Judged) -> Iterator[Finding]:
    for place, better, confidence in label_checks.wrong_labels(judgement):
        item = collection.item(place)
        shown = (*collection.nearest_of(better, place), *collection.nearest_of(item.label, place))
        reason = f"Labelled {item.label}; a classifier that has not seen this image predicts {better}."
        if (side := _given_side(item)) in (None, *collection.sides[better]):
            yield Finding("wrong-label", confidence, (item,), reason, relabel=better, shown=shown)
        else:  # With the new label, both sides of the split would have the class.
            reason += f" The {side} side has no such class, so this image would have to be removed."
            yield Finding("wrong-label", confidence, (item,), reason, drop=(item,), shown=shown)


def _given_side(item: Item) -> str | None:
    """Return the side on which the source puts an image, wherever its class is: train, validation or test."""
    return "test" if item.role in ("query", "gallery") else item.role


def _classes(collection: _Collection, judgement: label_checks.Judged, nearest: NDArray[np.int64]) -> Iterator[Finding]:
    for label, other, confidence in label_checks.one_class(judgement):
        items = tuple(collection.item(int(collection.members[each][0])) for each in (label, other))
        yield Finding("one-class", confidence, items, f"{label} and {other} cannot be distinguished by their pictures.")
    for label, part, confidence in label_checks.two_classes(collection.vectors, collection.labels, nearest):
        rest = np.setdiff1d(collection.members[label], part)[:4]
        reason = f"These images of {label} differ from its others more than classes of this collection do."
        items, shown = (tuple(collection.item(int(place)) for place in places) for places in (part, rest))
        yield Finding("two-classes", confidence, items, reason, shown=shown)


def _strangers(collection: _Collection, nearest: NDArray[np.float64]) -> Iterator[Finding]:
    if len(collection.rows) < _FEWEST_FOR_STRANGERS:
        return
    own = np.full(len(collection.rows), -np.inf)
    for places in collection.members.values():
        if len(collection.members) == 1:
            own = nearest
        elif len(places) > 1:
            own[places] = _nearest_similarities(collection.vectors[places])
    for place, confidence in label_checks.strangers(nearest, own):
        reason = "Unlike all other images of its class and of its collection."
        yield Finding("stranger", confidence, (collection.item(place),), reason)


def _nearest_similarities(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the similarity [N] of every vector to the most similar other one."""
    nearest = np.empty(len(vectors), np.float32)
    for start in range(0, len(vectors), _TILE):
        products = vectors[start : start + _TILE] @ vectors.T
        products[np.arange(len(products)), start + np.arange(len(products))] = -np.inf
        nearest[start : start + _TILE] = products.max(axis=1)
    return nearest
