"""Splits into train, validation, query and gallery, with classes that do not overlap.

Classes are sorted by code point ("10" before "2", capitals before small letters); a split depends on the
labels alone, never on the order of the items or on what other datasets there are.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unimetric.data.catalog import Dataset, Item, Unusable, identities
from unimetric.errors import UserError, nearest_names

STRATEGIES = ("auto", "given", "first-half", "random-half", "test-only", "train-only")
"""Ways to split; see `split_datasets`."""


@dataclass(frozen=True, slots=True)
class Split:
    """Items by role, datasets in the order given, items in the order of their source.

    Test items are in both ``query`` and ``gallery``. ``notes`` are warnings for the reader of the numbers,
    one line each. ``unusable`` are entries of the folders that cannot be opened.
    """

    train: tuple[Item, ...]
    validation: tuple[Item, ...]
    query: tuple[Item, ...]
    gallery: tuple[Item, ...]
    notes: tuple[str, ...] = ()
    unusable: tuple[Unusable, ...] = ()


def split_datasets(
    datasets: Sequence[Dataset],
    *,
    strategy: str = "auto",
    seed: int = 0,
    validation_fraction: float = 0.0,
    train_datasets: Collection[str] = (),
    test_datasets: Collection[str] = (),
    needs_train: bool = True,
) -> Split:
    """Split every dataset by its classes.

    Args:
        datasets: of distinct names.
        strategy: "first-half": of a dataset's C sorted classes, the first C // 2 for training, the others for
            testing, as in the literature. "random-half": C // 2 classes drawn at random. "given": as
            `Item.role` has it, for every item. "auto": as given for a dataset where all items have a role,
            else "first-half". "test-only": nothing is for training; where the source's roles (test, query,
            gallery) make both a query and a gallery side, they are kept and the train and validation items left
            out, an item without a role being a test item; elsewhere everything is query and gallery.
            "train-only": everything is for training, whatever its role.
        seed: for "random-half" and for the validation classes.
        validation_fraction: the share, 0 to 0.5, of each dataset's train classes that is held out for
            model selection; at least one class where there are three, and none where there are fewer. A
            dataset whose source gives it validation items keeps those instead.
        train_datasets: the names of those to train on; empty is all. The others have no train and validation items,
            but the same test items as ever, so that numbers stay comparable.
        test_datasets: the names of those to test on; empty is all. The others have no query and gallery items.
        needs_train: refuse a dataset whose source gives it no train items, unless it is only tested on.

    Raises:
        UserError: an unknown ``strategy``; a fraction out of range; no datasets, or two of the same name; roles
            missing on some items; a dataset of one class; a side left empty.
    """
    _check_arguments(datasets, strategy, validation_fraction)
    parts: dict[str, list[Item]] = {"train": [], "validation": [], "query": [], "gallery": []}
    notes: list[str] = []
    for dataset in datasets:
        wanted = _wanted(dataset, strategy, train_datasets, test_datasets)
        if not wanted:
            notes.append(f"dataset {dataset.name!r} is neither trained on nor tested on")
            continue
        roles = _roles(dataset, _resolve(dataset, strategy, wanted), seed)
        if "validation" not in roles:
            roles = _hold_out(dataset, roles, seed, validation_fraction)
        side = {part: items if part in wanted else [] for part, items in _side(dataset, roles).items()}
        _check_sides(dataset, side, wanted if needs_train else wanted - {"train"})
        notes += _notes(dataset, side, left_out=roles.count(""))
        for part, items in side.items():
            parts[part] += items
    notes += _shared_images([*parts["query"], *parts["gallery"]])
    train, validation, query, gallery = (tuple(items) for items in parts.values())
    return Split(train, validation, query, gallery, tuple(notes))


def _check_arguments(datasets: Sequence[Dataset], strategy: str, fraction: float) -> None:
    if strategy not in STRATEGIES:
        raise UserError(f"--data.split is {strategy!r}; {nearest_names(strategy, STRATEGIES)}")
    if not 0 <= fraction <= 0.5:
        raise UserError(f"--data.validation_fraction is {fraction}; use 0 to 0.5")
    if not datasets:
        raise UserError("there are no datasets to split; give one source at least")
    for name, count in Counter(dataset.name for dataset in datasets).items():
        if count > 1:
            raise UserError(f"{count} datasets have the name {name!r}; give each a name of its own")


def _wanted(
    dataset: Dataset, strategy: str, train_datasets: Collection[str], test_datasets: Collection[str]
) -> set[str]:
    """Return the sides that the dataset has to have, and validation."""
    wanted = set()
    if strategy != "test-only" and (not train_datasets or dataset.name in train_datasets):
        wanted |= {"train", "validation"}
    if strategy != "train-only" and (not test_datasets or dataset.name in test_datasets):
        wanted |= {"query", "gallery"}
    return wanted


def _resolve(dataset: Dataset, strategy: str, wanted: Collection[str]) -> str:
    """Return the strategy for this dataset, with "auto" resolved."""
    if not dataset.items:
        raise UserError(f"dataset {dataset.name!r} has no images; leave it out")
    if strategy in ("test-only", "train-only"):
        return strategy
    if len(dataset.labels) == 1 and "train" in wanted:
        raise UserError(
            f"dataset {dataset.name!r} has one class only ({dataset.labels[0]!r}), which cannot be split; "
            f"{'; '.join(['add classes, or leave the dataset out', *dataset.notes])}"
        )
    lacking = sum(item.role is None for item in dataset.items)
    if strategy not in ("auto", "given") or (strategy == "auto" and lacking == len(dataset.items)):
        if any(item.labels for item in dataset.items):
            raise UserError(
                f"dataset {dataset.name!r}: its images have several labels, so that they cannot be divided by classes; "
                "give the manifest a column split, or use --data.split test-only"
            )
        return "first-half" if strategy == "auto" else strategy
    if lacking:
        raise UserError(
            f"dataset {dataset.name!r}: {lacking} of {len(dataset.items)} images have no split; "
            "give all of them one, or none and use --data.split first-half or random-half"
        )
    return "given"


def _roles(dataset: Dataset, strategy: str, seed: int) -> list[str]:
    """Return the role of every item, empty for an unused one."""
    if strategy == "given":
        return [item.role or "" for item in dataset.items]
    if strategy == "test-only":
        given = [item.role or "test" for item in dataset.items]
        kept = [role if role in ("test", "query", "gallery") else "" for role in given]
        return kept if "test" in kept or {"query", "gallery"} <= {*kept} else ["test"] * len(kept)
    if strategy == "train-only":
        return ["train"] * len(dataset.items)
    labels = dataset.labels
    count = len(labels) // 2
    train = set(labels[:count] if strategy == "first-half" else _draw(dataset, labels, count, seed, "half"))
    return ["train" if item.label in train else "test" for item in dataset.items]


def _hold_out(dataset: Dataset, roles: list[str], seed: int, fraction: float) -> list[str]:
    """Turn some train classes into validation classes."""
    labels = sorted({item.label for item, role in zip(dataset.items, roles, strict=True) if role == "train"})
    if fraction == 0 or len(labels) < 3:
        return roles
    count = max(1, int(fraction * len(labels) + 0.5))
    drawn = set(_draw(dataset, labels, count, seed, "validation"))
    return [
        "validation" if role == "train" and item.label in drawn else role
        for item, role in zip(dataset.items, roles, strict=True)
    ]


def _draw(dataset: Dataset, labels: Sequence[str], count: int, seed: int, purpose: str) -> list[str]:
    """Draw ``count`` of the sorted labels, by a generator of the dataset's own."""
    key = hashlib.sha256(f"{purpose}:{seed}:{dataset.name}".encode()).digest()
    generator = np.random.Generator(np.random.PCG64(int.from_bytes(key, "big")))
    return [labels[index] for index in generator.permutation(len(labels))[:count]]


def _side(dataset: Dataset, roles: Sequence[str]) -> dict[str, list[Item]]:
    side: dict[str, list[Item]] = {"train": [], "validation": [], "query": [], "gallery": []}
    for item, role in zip(dataset.items, roles, strict=True):
        for part in ("query", "gallery") if role == "test" else (role,) if role else ():
            side[part].append(item)
    return side


def _check_sides(dataset: Dataset, side: dict[str, list[Item]], wanted: Collection[str]) -> None:
    remedies = {
        "train": "give it train images, leave it out of --data.train_datasets, or evaluate only, with --data.split "
        "test-only",
        "query": "give it test or query images, leave it out of --data.test_datasets, or train only, with "
        "--data.split train-only",
        "gallery": "give it test or gallery images beside its query images",
    }
    for part in ("train", "query", "gallery"):
        if part in wanted and not side[part]:
            remedy = remedies[part]
            if part == "query" and side["validation"]:
                remedy = (
                    "its validation images are not tested on: call their split test, or use --data.split train-only"
                )
            raise UserError(f"dataset {dataset.name!r}: the {part} side is empty; {remedy}")


def _notes(dataset: Dataset, side: dict[str, list[Item]], left_out: int) -> list[str]:
    """Return warnings for the reader of this dataset's numbers."""
    notes = []
    if left_out:
        notes.append(f"{left_out} train or validation images are left out of test-only")
    learned = {label for part in ("train", "validation") for item in side[part] for label in item.all_labels}
    tested = {label for part in ("query", "gallery") for item in side[part] for label in item.all_labels}
    if shared := learned & tested:
        notes.append(f"{_classes(shared)} in both train and test: results on them are not zero-shot")
    if len(tested) == 1:
        notes.append(f"{_classes(tested)} to test on: any neighbour within the dataset is right")
    if lonely := _without_partner(side["query"], side["gallery"]):
        notes.append(f"{_classes(lonely)} cannot be queries: the gallery holds no second image of them")
    for part in ("train", "validation"):
        counts = Counter(item.label for item in side[part])
        if single := {label for label, count in counts.items() if count == 1}:
            notes.append(f"{_classes(single)} with one {part} image")
    return [f"dataset {dataset.name!r}: {note}" for note in notes]


def _shared_images(tested: Sequence[Item]) -> list[str]:
    """Return a warning if one file is tested on in two datasets."""
    owners: defaultdict[str, set[str]] = defaultdict(set)
    paths: dict[str, Path] = {}
    for item, identity in _with_identities(tested):
        owners[identity].add(item.dataset)
        paths.setdefault(identity, item.path)
    shared = [paths[identity] for identity, names in owners.items() if len(names) > 1]
    if not shared:
        return []
    are = "image is" if len(shared) == 1 else "images are"
    return [
        f"{len(shared)} {are} in more than one dataset (first: {shared[0]}): "
        "in the unified gallery each is the other's nearest neighbour, of the wrong dataset"
    ]


def _without_partner(query: Sequence[Item], gallery: Sequence[Item]) -> set[str]:
    """Return the labels of queries that have no other image of their class in the gallery."""
    partners: defaultdict[str, set[str]] = defaultdict(set)
    for item, identity in _with_identities(gallery):
        for label in item.all_labels:
            partners[label].add(identity)
    return {
        item.label
        for item, identity in _with_identities(query)
        if not any(partners[label] - {identity} for label in item.all_labels)
    }


def _with_identities(items: Sequence[Item]) -> Iterable[tuple[Item, str]]:
    return zip(items, identities(item.path for item in items), strict=True)


def _classes(labels: Collection[str], shown: int = 3) -> str:
    """Return the number of classes, and the first few names."""
    names = ", ".join(sorted(labels)[:shown]) + (", ..." if len(labels) > shown else "")
    return f"{len(labels)} {'class' if len(labels) == 1 else 'classes'} ({names})"
