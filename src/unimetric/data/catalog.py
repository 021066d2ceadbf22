"""Images and their labels, as plain data: an item, a dataset, and the union of several."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimetric.errors import UserError, escaped, shown

ROLES = ("train", "validation", "test", "query", "gallery")
"""Roles of items. ``test`` items are query and gallery at once."""


@dataclass(frozen=True, slots=True)
class Item:
    """One image with its label and dataset.

    ``label`` is unique within its dataset only; classes are always compared as (dataset, label).
    ``role`` is the split that the source itself prescribes, one of `ROLES`, or None. An image with several labels has
    them in ``labels``, and ``label`` is their text, separated by ``|``.
    """

    path: Path
    label: str
    dataset: str
    role: str | None = None
    labels: tuple[str, ...] = ()

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels, one or several."""
        return self.labels or (self.label,)

    def is_right_for(self, query: "Item") -> bool:
        """Return true if it is of the query's dataset and class, or shares a label with it."""
        return self.dataset == query.dataset and not set(self.all_labels).isdisjoint(query.all_labels)


@dataclass(frozen=True, slots=True)
class Unusable:
    """File, or other entry of a folder, that cannot be read as an image, and the reason in a few words."""

    path: Path
    reason: str


class Clash(UserError):  # noqa: N818 - named after its meaning
    """One image has two labels, or is in two splits that must not share images."""

    def __init__(self, one: Item, other: Item, what: str) -> None:
        paths = (
            escaped(one.path)
            if one.path == other.path
            else f"{escaped(one.path)} (the same file as {escaped(other.path)})"
        )
        super().__init__(f"dataset {shown(one.dataset)}: the image {paths} {what}; keep one of them")
        self.items = (one, other)


@dataclass(frozen=True, slots=True)
class Dataset:
    """The items of one catalogue, in a defined order.

    ``ignored`` are images that are left out: those outside of any class folder, and second appearances of an image (see
    `unique_items`). ``unusable`` are pipes, sockets, devices, broken links and names that are not text. ``notes`` are
    remarks for the reader of the numbers, one line each, such as a difference from the published counts.
    """

    name: str
    items: tuple[Item, ...]
    ignored: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    unusable: tuple[Unusable, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The distinct labels, sorted."""
        return tuple(sorted({item.label for item in self.items}))


@dataclass(frozen=True, slots=True)
class ClassIndex:
    """Numbers of the classes of a union of datasets, 0 to C-1; no two datasets share a class."""

    classes: tuple[tuple[str, str], ...]
    """The (dataset, label) pair of every class number."""

    @classmethod
    def of(cls, items: Sequence[Item]) -> "ClassIndex":
        """Number the classes that occur in ``items``, sorted by dataset, then label."""
        return cls(tuple(sorted({(item.dataset, item.label) for item in items})))

    def __len__(self) -> int:
        return len(self.classes)

    def numbers(self, items: Sequence[Item]) -> list[int]:
        """Return the class number of every item; a `KeyError` if an item's class is not in the index."""
        number = {pair: index for index, pair in enumerate(self.classes)}
        return [number[item.dataset, item.label] for item in items]


def identities(paths: Iterable[Path]) -> list[str]:
    """Return the resolved path of every image: equal for two paths that lead to the same file through links.

    Each folder is resolved once, which makes this many times faster than resolving every path.
    """
    folders: dict[Path, Path] = {}
    resolved = []
    for path in paths:
        folder = path.parent
        # A link, or a last part of "..", leads out of the folder.
        if _is_link(path) or path.name == "..":
            resolved.append(str(path.resolve()))
            continue
        if folder not in folders:
            folders[folder] = folder.resolve()
        resolved.append(str(folders[folder] / path.name))
    return resolved


def item_identities(items: Sequence[Item]) -> list[tuple[str, str]]:
    """Return the identity of every item's image: its dataset and the file behind its path."""
    return [(item.dataset, file) for item, file in zip(items, identities(item.path for item in items), strict=True)]


def unique_items(items: Sequence[Item]) -> tuple[tuple[Item, ...], tuple[Path, ...]]:
    """Take every image of one dataset once, in the given order: (the items kept, the repeated paths).

    One image in both the query and the gallery set stays in both.

    Raises:
        Clash: an image has two labels, or is in two splits that must not share images.
    """
    seen: dict[str, dict[str | None, Item]] = {}
    kept: list[Item] = []
    repeated: list[Path] = []
    for item, identity in zip(items, identities(item.path for item in items), strict=True):
        by_role = seen.setdefault(identity, {})
        for other in by_role.values():
            _check_agreement(other, item)
        if item.role in by_role:
            repeated.append(item.path)
        else:
            by_role[item.role] = item
            kept.append(item)
    return tuple(kept), tuple(repeated)


def _is_link(path: Path) -> bool:
    try:
        return path.is_symlink()
    except OSError:
        return False  # reported when it is opened


def _check_agreement(one: Item, other: Item) -> None:
    if one.label != other.label:
        clash = f"has the labels {shown(one.label)} and {shown(other.label)}"
    elif one.role != other.role and {one.role, other.role} != {"query", "gallery"}:
        clash = f"is in the splits {one.role or '(none)'} and {other.role or '(none)'}"
    else:
        return
    raise Clash(one, other, clash)
