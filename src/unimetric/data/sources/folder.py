"""Folders of class folders: the name of the folder is the label of the images in it.

Three layouts are told apart by where the images lie:

- ``root/class/**/image``: one dataset;
- ``root/dataset/class/**/image``: one dataset per child, where no child of the root holds images itself;
  where some do, but most images lie deeper, and one child has several folders of them, it is refused;
- ``root/train/class/**/image`` and ``root/test/class/...``, where all children of a dataset's folder are
  named as splits, and there are two at least: the splits are kept as `Item.role`. Split names are train,
  val, valid, validation, test, query, gallery, in lower case.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from unimetric.data.catalog import Dataset, Item, identities, unique_items
from unimetric.data.images import SUFFIXES, is_image_name
from unimetric.errors import UserError

SPLIT_FOLDERS = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
    "query": "query",
    "gallery": "gallery",
}
"""The role that each split folder's name stands for."""

_CLUTTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "lost+found"})
"""What operating systems leave lying about, besides names with a leading dot."""


@dataclass(frozen=True, slots=True)
class _Folder:
    path: Path
    images: tuple[Path, ...]
    others: tuple[Path, ...]
    children: tuple[_Folder, ...]

    def all_images(self) -> Iterator[Path]:
        yield from self.images
        for child in self.children:
            yield from child.all_images()

    def all_others(self) -> Iterator[Path]:
        yield from self.others
        for child in self.children:
            yield from child.all_others()

    def class_folders(self) -> list[_Folder]:
        return [child for child in self.children if any(child.all_images())]


def read_folder(root: Path, name: str | None = None) -> list[Dataset]:
    """Read a folder of class folders, in one of the layouts above.

    Order: datasets by name, items by label and then path, both by code point. Hidden files and folders are
    skipped. Links are followed, except one that leads back to a folder it lies in. An image reached twice
    in one class is taken once; the second path, other files, and images outside of any class folder are
    listed in `Dataset.ignored`. Paths start with ``root`` as it is given.

    Args:
        root: the folder.
        name: the dataset's name; by default, that of the folder. With several datasets, the front part
            of their names: ``name/child``.

    Raises:
        UserError: the folder is missing, unreadable or no folder, holds no images or only images outside
            of class folders, mixes split folders with others or images with class folders, or one image lies
            in two classes.
    """
    tree = _read_tree(root)
    if not tree.class_folders():
        raise UserError(
            f"{root} holds {len(tree.images)} images but no class folders; put each class in a folder of its own"
        )
    _refuse_mixture(tree)
    return _datasets(tree, root, name)


def _datasets(tree: _Folder, root: Path, name: str | None) -> list[Dataset]:
    if not _holds_datasets(tree):
        return [_dataset(tree, name or root.resolve().name or "root", ())]
    datasets = []
    # Files that belong to no dataset are recorded with the first one.
    strays = [*tree.images, *tree.others]
    strays += [path for child in tree.children if not any(child.all_images()) for path in child.all_others()]
    prefix = f"{name}/" if name else ""
    for child in tree.class_folders():
        datasets.append(_dataset(child, f"{prefix}{child.path.name}", strays))
        strays = []
    return datasets


def read_images(root: Path, name: str | None = None) -> list[Dataset]:
    """Read every image below a folder, for uses that need no classes.

    As `read_folder`, except that images outside of class folders are kept, with an empty label, and that images
    beside class folders are no reason to refuse.

    Args:
        root: the folder, with or without class folders.
        name: as for `read_folder`.

    Raises:
        UserError: as `read_folder` does, but not for a lack of class folders.
    """
    tree = _read_tree(root)
    datasets = _datasets(tree, root, name) if tree.class_folders() else []
    taken = set(identities(item.path for dataset in datasets for item in dataset.items))
    images = list(tree.all_images())
    whole = name or root.resolve().name or "root"
    loose, repeated = unique_items(
        [
            Item(path, "", whole)
            for path, identity in zip(images, identities(images), strict=True)
            if identity not in taken
        ]
    )
    if not datasets:
        return [Dataset(whole, loose, tuple(sorted({*tree.others, *repeated})))]
    found = {item.path for item in loose}
    datasets = [replace(dataset, ignored=tuple(p for p in dataset.ignored if p not in found)) for dataset in datasets]
    if not loose:
        return datasets
    # With one dataset, the loose images belong to it; with several, they are one more.
    if len(datasets) == 1 and datasets[0].name == whole:
        return [replace(datasets[0], items=(*datasets[0].items, *loose))]
    return [*datasets, Dataset(whole, loose)]


def _read_tree(root: Path) -> _Folder:
    _check_folder(root)
    tree = _scan(root, ())
    if not any(path.suffix.lower() in SUFFIXES for path in tree.all_images()):
        raise UserError(_no_images(tree))
    return tree


def _check_folder(root: Path) -> None:
    try:
        root.stat()
    except PermissionError as error:
        raise UserError(f"cannot read the folder {root}: no permission") from error
    except (OSError, ValueError) as error:
        raise UserError(f"there is no folder {root}; check the path") from error
    if not root.is_dir():
        raise UserError(f"{root} is a file, not a folder; give the folder that holds the class folders")


def _scan(path: Path, ancestors: tuple[tuple[int, int], ...]) -> _Folder:
    """Everything below a folder, sorted. ``ancestors`` are the (device, inode) pairs of the folders above."""
    images, others, children = [], [], []
    try:
        status = path.stat()
        with os.scandir(path) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror}; make it readable or move it away") from error
    above = (*ancestors, (status.st_dev, status.st_ino))
    for entry in found:
        if entry.name.startswith(".") or entry.name in _CLUTTER:
            continue
        _check_name(entry)
        child = path / entry.name
        if _is_folder(entry):
            target = child.stat()
            if (target.st_dev, target.st_ino) in above:
                others.append(child)
            else:
                children.append(_scan(child, above))
        elif is_image_name(entry.name) and _is_file(entry):
            images.append(child)
        else:
            others.append(child)
    return _Folder(path, tuple(images), tuple(others), tuple(children))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def _check_name(entry: os.DirEntry[str]) -> None:
    """A name that is not text cannot be written to a report or an index later on."""
    try:
        entry.name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"the file name {entry.path!a} is not valid UTF-8; rename it") from None


def _no_images(tree: _Folder) -> str:
    suffixes = " ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    counts = Counter(path.suffix.lower() or "(no suffix)" for path in (*tree.all_images(), *tree.all_others()))
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(3))
    found = f"{sum(counts.values())} other files ({kinds})" if counts else "no files at all"
    return f"no images in {tree.path}: found {found}; looked for files that end in {suffixes}"


def _split_children(folder: _Folder) -> list[_Folder]:
    """The split folders of a dataset, or none if its children are classes.

    Raises:
        UserError: it cannot be told which of the two they are.
    """
    children = folder.class_folders()
    splits = [child for child in children if child.path.name in SPLIT_FOLDERS]
    with_classes = [child for child in splits if child.class_folders()]
    if len(splits) < 2 or not with_classes:
        return []
    if len(splits) < len(children):
        other = next(child for child in children if child not in splits)
        raise UserError(
            f"{folder.path} holds split folders ({splits[0].path.name}, {splits[1].path.name}) "
            f"beside {other.path.name!r}; move that one away, or rename the split folders if they are classes"
        )
    if len(with_classes) < len(splits):
        flat = next(child for child in splits if child not in with_classes)
        raise UserError(
            f"the split folder {flat.path} holds images but no class folders; "
            "put each class in a folder of its own, or use a manifest"
        )
    return splits


def _refuse_mixture(tree: _Folder) -> None:
    """Refuse a tree that one stray image turns from several datasets into one.

    Raises:
        UserError: some children hold images themselves, as classes do, yet most images lie deeper, and one
            child at least has most of its own in several folders, as datasets have.
    """
    children = tree.class_folders()
    direct = {child.path: len(child.images) for child in children}
    deep = {child.path: sum(1 for _ in child.all_images()) - len(child.images) for child in children}
    if not any(direct.values()) or sum(direct.values()) >= sum(deep.values()) or _split_children(tree):
        return
    like_datasets = [c for c in children if len(c.class_folders()) > 1 and direct[c.path] < deep[c.path]]
    if not like_datasets:
        return
    holders = [child for child in children if child.images]
    stray = next((child for child in holders if child.class_folders()), holders[0]).images[0]
    raise UserError(
        f"cannot tell whether the folders in {tree.path} are datasets or classes: {stray} lies beside folders, but "
        f"{like_datasets[0].path} holds {len(like_datasets[0].class_folders())} folders of images; move it into a "
        "class folder, or use a manifest"
    )


def _holds_datasets(tree: _Folder) -> bool:
    """Whether the children are datasets: none holds images itself, and one at least holds class folders."""
    if any(child.images for child in tree.children) or _split_children(tree):
        return False
    return any(
        bool(_split_children(child)) or any(grandchild.images for grandchild in child.children)
        for child in tree.children
    )


def _dataset(folder: _Folder, name: str, strays: list[Path] | tuple[Path, ...]) -> Dataset:
    splits = _split_children(folder)
    ignored = [*strays, *folder.images, *folder.all_others()]
    groups: list[tuple[_Folder, str | None]] = [(folder, None)]
    if splits:
        groups = [(split, SPLIT_FOLDERS[split.path.name]) for split in splits]
        ignored += [path for split in splits for path in split.images]
    items = [
        Item(path, child.path.name, name, role)
        for group, role in groups
        for child in group.children
        for path in child.all_images()
    ]
    items.sort(key=lambda item: (item.label, str(item.path)))
    kept, repeated = unique_items(items)
    return Dataset(name, kept, tuple(sorted({*ignored, *repeated})))
