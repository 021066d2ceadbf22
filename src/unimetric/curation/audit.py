"""An audit: all checks of measured images, and their findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from unimetric.curation import labels as label_checks
from unimetric.curation.copies import Copy, Groups, best_of, exact_copies, grouped, near_copies
from unimetric.curation.findings import Finding, ordered
from unimetric.curation.measurements import Measurements
from unimetric.curation.unusable import unusable
from unimetric.data.catalog import Dataset, Item
from unimetric.data.splits import split_datasets
from unimetric.errors import UserError
from unimetric.evaluation.neighbours import nearest_neighbours

Sides = Mapping[Item, str]
"""``train`` or ``test`` for the images of datasets that are split."""

_PLACEHOLDER_CLASSES = 3


@dataclass(frozen=True)
class Findings:
    """The result of an audit.

    Attributes:
        findings: In the order of the table.
        notes: Remarks on what could not be checked, one line each.
    """

    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


def find_all(measured: Measurements, sides: Sides) -> Findings:
    """Run every check on measured images."""
    exact = exact_copies(measured)
    copies = [*exact, *near_copies(measured, exact)]
    groups = grouped(copies, lambda copy: copy.exact or copy.same_colours)
    found = [*unusable(measured)]
    found += _copy_findings(measured, copies, groups, sides)
    label_findings, notes = _label_findings(measured, groups)
    known = {(f.images[0], f.kind) for f in found if f.kind in ("contradiction", "blank")}
    blamed = {item for item, _ in known}
    found += [f for f in label_findings if f.kind not in ("wrong-label", "stranger") or f.images[0] not in blamed]
    return Findings(tuple(ordered(found)), tuple(notes))


def sides_of(datasets: Sequence[Dataset], strategy: str) -> tuple[Sides, list[str]]:
    """Return the side of every image, as training would split the datasets, and remarks."""
    sides: dict[Item, str] = {}
    notes = []
    for dataset in datasets:
        try:
            split = split_datasets([dataset], strategy=strategy)
        except UserError as error:
            notes.append(f"leaks between train and test are not looked for: {error}")
            continue
        sides |= dict.fromkeys((*split.train, *split.validation), "train")
        sides |= dict.fromkeys((*split.query, *split.gallery), "test")
    return sides, notes


def _copy_findings(measured: Measurements, copies: Sequence[Copy], groups: Groups, sides: Sides) -> Iterator[Finding]:
    of_pair = defaultdict(list)
    for copy in copies:
        of_pair[groups.find(copy.one)].append(copy)
    for rows in groups.all():
        best = best_of(measured, rows)
        others = [row for row in rows if row != best]
        items = tuple(measured.items[row] for row in (best, *others))
        known = [copy for copy in of_pair[groups.find(best)] if copy.exact or copy.same_colours]
        yield from _group_findings(items, known, sides)
    for copy in copies:
        if not copy.exact and not copy.same_colours and groups.find(copy.one) != groups.find(copy.other):
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
    if len(classes) > 1 and within:
        reason = "One picture has the labels " + " and ".join(label for _, label in classes) + "."
        yield Finding("contradiction", confidence, items, reason, drop=items)
    places = sorted({f"{side} of {item.dataset}" for item in items if (side := sides.get(item))})
    crossing = {sides[item] for item in items if item in sides}
    if len(crossing) > 1:
        reason = f"One picture ({', '.join(edits)}) is in {' and in '.join(places)}."
        trained = tuple(item for item in items if sides.get(item) == "train")
        yield Finding("leak", confidence, items, reason, drop=trained)
    kind = "exact-copy" if exact else "near-copy"
    reason = f"{len(items)} images of one picture: {', '.join(edits)}."
    yield Finding(kind, confidence, items, reason, drop=items[1:])


def _label_findings(measured: Measurements, groups: Groups) -> tuple[list[Finding], list[str]]:
    found: list[Finding] = []
    notes: list[str] = []
    by_dataset: dict[str, list[int]] = defaultdict(list)
    for row in measured.readable.tolist():
        by_dataset[measured.items[row].dataset].append(row)
    for name, listed in by_dataset.items():
        rows = np.array(listed, dtype=np.int64)
        labels = [measured.items[row].label for row in listed]
        vectors = np.asarray(measured.vectors[rows])
        ids = list(range(len(rows)))
        tensor = torch.from_numpy(vectors)
        similarities, nearest = nearest_neighbours(tensor, tensor, 3, query_ids=ids, gallery_ids=ids)
        found += _strangers(measured, rows, labels, vectors, similarities[:, 0].numpy())
        judgement = label_checks.judged(vectors, labels, rows, groups) if all(labels) else None
        if judgement is None:
            notes.append(f"labels of {name} are not checked: that takes two classes of two different images")
            continue
        found += _wrong_labels(measured, judgement, labels, vectors)
        found += _classes(measured, judgement, labels, vectors, nearest.numpy())
    return found, notes


def _wrong_labels(
    measured: Measurements, judgement: label_checks.Judged, labels: list[str], vectors: NDArray[np.float32]
) -> Iterator[Finding]:
    for place, better, confidence in label_checks.wrong_labels(judgement):
        item = measured.items[int(judgement.rows[place])]
        examples = _nearest_of(vectors, labels, place, better), _nearest_of(vectors, labels, place, item.label)
        shown = tuple(measured.items[int(judgement.rows[p])] for part in examples for p in part)
        reason = f"Labelled {item.label}; a classifier that has not seen this image predicts {better}."
        yield Finding("wrong-label", confidence, (item,), reason, relabel=better, shown=shown)


def _nearest_of(vectors: NDArray[np.float32], labels: list[str], place: int, label: str) -> list[int]:
    members = np.array([other for other, own in enumerate(labels) if own == label and other != place], dtype=np.int64)
    nearest = np.argsort(-(vectors[members] @ vectors[place]), kind="stable")[:2]
    return [int(members[index]) for index in nearest]


def _classes(
    measured: Measurements,
    judgement: label_checks.Judged,
    labels: list[str],
    vectors: NDArray[np.float32],
    nearest: NDArray[np.int64],
) -> Iterator[Finding]:
    rows = judgement.rows
    for one, other, confidence in label_checks.one_class(judgement):
        shown = [rows[labels.index(label)] for label in (one, other)]
        items = tuple(measured.items[int(row)] for row in shown)
        yield Finding("one-class", confidence, items, f"{one} and {other} cannot be distinguished by their pictures.")
    for label, part, confidence in label_checks.two_classes(vectors, labels, nearest):
        items = tuple(measured.items[int(rows[place])] for place in part)
        rest = [place for place, own in enumerate(labels) if own == label and place not in part]
        shown_items = tuple(measured.items[int(rows[place])] for place in rest[:4])
        reason = f"These images of {label} differ from its others more than classes of this collection do."
        yield Finding("two-classes", confidence, items, reason, shown=shown_items)


def _strangers(
    measured: Measurements,
    rows: NDArray[np.int64],
    labels: list[str],
    vectors: NDArray[np.float32],
    nearest: NDArray[np.float64],
) -> Iterator[Finding]:
    if len(rows) < 20:
        return
    own = np.full(len(rows), -np.inf)
    for label in set(labels):
        places = np.array([place for place, each in enumerate(labels) if each == label], dtype=np.int64)
        if len(places) > 1:
            products = vectors[places] @ vectors[places].T
            np.fill_diagonal(products, -np.inf)
            own[places] = products.max(axis=1)
    for place, confidence in label_checks.strangers(nearest, own):
        item = measured.items[int(rows[place])]
        yield Finding("stranger", confidence, (item,), "Unlike all other images of its class and of its collection.")
