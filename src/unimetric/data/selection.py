"""Selection of datasets and of train images: few-shot draws and limits by dataset.

A draw depends on the seed, the dataset's name, the label and the images' paths below the class, and on nothing
else: not on other datasets, other classes, the order of the items, or the place of the whole on the disk. Draws of
different sizes are nested: the images of 1 per class are among those of 2.
"""

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from unimetric.data.catalog import Item
from unimetric.data.splits import Split
from unimetric.errors import UserError, nearest_names

OTHERS = "*"
"""In place of a dataset's name: every dataset that is not named."""


def check_names(option: str, names: Iterable[str], datasets: Iterable[str]) -> None:
    """Refuse an option that names an unknown dataset."""
    known = list(datasets)
    for name in names:
        if name not in known:
            raise UserError(f"--{option} names a dataset {name!r} that is in no source; {nearest_names(name, known)}")


def select_train(
    split: Split, *, few_shot: int | None = None, train_images: Mapping[str, int] | None = None, seed: int = 0
) -> Split:
    """Keep some of the train images; the other sides stay as they are, and so does the order.

    Of each train class, ``few_shot`` images are kept; a class that has fewer keeps all. Then ``train_images`` has the
    most of a dataset, by its name, spread evenly over its classes; `OTHERS` is every dataset that is not named.
    Validation classes have been taken out already. Notes are added for each dataset that has classes with fewer images
    than ``few_shot``, and for each whose limit leaves classes without an image.
    """
    if few_shot is None and not train_images:
        return split
    ranked = _rank(split.train, seed)
    # An image that is listed twice counts once.
    train, notes = list(dict.fromkeys(split.train)), []
    if few_shot is not None:
        notes += _too_small(train, few_shot)
        train = [item for item in train if ranked[item][0] < few_shot]
    limits = train_images or {}
    members: defaultdict[str, list[Item]] = defaultdict(list)
    for item in train:
        members[item.dataset].append(item)
    kept: set[Item] = set()
    for dataset, items in members.items():
        # The first image of every class, the classes in an order of their own, then the second of every class, ...
        taken = sorted(items, key=ranked.__getitem__)[: limits.get(dataset, limits.get(OTHERS))]
        notes += _without_images(dataset, items, taken)
        kept.update(taken)
    return replace(split, train=tuple(item for item in train if item in kept), notes=(*split.notes, *notes))


def _rank(items: Sequence[Item], seed: int) -> dict[Item, tuple[int, str]]:
    """Return each item's place in the draw from its class, from 0, and a key of its class within the dataset."""
    by_class: defaultdict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in dict.fromkeys(items):
        by_class[item.dataset, item.label].append(item)
    ranked: dict[Item, tuple[int, str]] = {}
    for (dataset, label), members in by_class.items():
        class_key = _hash(seed, dataset, label)
        paths = [item.path.as_posix() for item in members]
        # Without the folders that all have in common, such as the place of the whole on this machine.
        common = os.path.commonprefix(paths).rfind("/") + 1  # noqa: RUF071 - cut at a slash right here
        drawn = sorted((_hash(class_key, path[common:]), number) for number, path in enumerate(paths))
        ranked |= {members[number]: (place, class_key) for place, (_, number) in enumerate(drawn)}
    return ranked


def _hash(*parts: object) -> str:
    # Written as a list, so that no two lists of parts read the same.
    return hashlib.sha256(repr(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _too_small(train: Sequence[Item], few_shot: int) -> list[str]:
    classes = Counter((item.dataset, item.label) for item in train)
    small = Counter(dataset for (dataset, _), count in classes.items() if count < few_shot)
    total = Counter(dataset for dataset, _ in classes)
    return [
        f"dataset {dataset!r}: {count} of {total[dataset]} train classes have fewer than {few_shot} images, "
        "and give all they have"
        for dataset, count in small.items()
    ]


def _without_images(dataset: str, items: Sequence[Item], taken: Sequence[Item]) -> list[str]:
    lost = len({item.label for item in items}) - len({item.label for item in taken})
    if not lost:
        return []
    classes = "1 class" if lost == 1 else f"{lost} classes"
    return [f"dataset {dataset!r}: a limit of {len(taken)} train images leaves {classes} without any"]
