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

import gc
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from unimetric.data.catalog import Dataset, Item, Unusable, identities, unique_items
from unimetric.data.images import SUFFIXES, UNSUPPORTED
from unimetric.data.sources.unusable import LEADS_BACK, defect, is_text, without_text
from unimetric.errors import UserError, escaped

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


_ENDINGS = SUFFIXES | UNSUPPORTED.keys()


@dataclass(frozen=True, slots=True)
class _Folder:
    """What lies in a folder, sorted: names, of which most are never needed as paths, and the folders below."""

    path: Path
    images: list[str]
    others: list[str]
    children: list[_Folder]
    image_count: int
    """Images here and below."""
    unusable: list[Unusable]
    """What lies here and cannot be opened as a file, or named."""
    linked: bool
    """Whether a link lies here or below; without one, no image is reached twice."""

    def all_images(self) -> Iterator[Path]:
        yield from _below(self.path, self.images)
        for child in self.children:
            yield from child.all_images()

    def all_others(self) -> Iterator[Path]:
        yield from _below(self.path, self.others)
        for child in self.children:
            yield from child.all_others()

    def all_unusable(self) -> Iterator[Unusable]:
        yield from self.unusable
        for child in self.children:
            yield from child.all_unusable()

    def class_folders(self) -> list[_Folder]:
        return [child for child in self.children if child.image_count]


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Everything that a scan makes is kept: to look through it for garbage again and again would double its time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@_no_garbage_collection()
def read_folder(root: Path, name: str | None = None) -> list[Dataset]:
    """Read a folder of class folders, in one of the layouts above.

    Order: datasets by name, items by label and then path, both by code point. Hidden files and folders are
    skipped. Links are followed, except one that leads back to a folder it lies in. An image reached twice
    in one class is taken once; the second path, other files, and images outside of any class folder are
    listed in `Dataset.ignored`; what is no file, leads nowhere or has a name that is no text, in
    `Dataset.unusable`. Paths start with ``root`` as it is given.

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
            f"{root} holds {len(tree.images)} image{'s' * (len(tree.images) > 1)} but no class folders; "
            "put each class in a folder of its own"
        )
    _refuse_mixture(tree)
    return _datasets(tree, root, name)


def _datasets(tree: _Folder, root: Path, name: str | None) -> list[Dataset]:
    if not _holds_datasets(tree):
        return [_dataset(tree, name or root.resolve().name or "root", ())]
    datasets = []
    # Files that belong to no dataset are recorded with the first one.
    strays = [*_below(tree.path, tree.images), *_below(tree.path, tree.others)]
    imageless = [child for child in tree.children if not child.image_count]
    strays += [path for child in imageless for path in child.all_others()]
    prefix = f"{name}/" if name else ""
    for child in tree.class_folders():
        datasets.append(_dataset(child, f"{prefix}{child.path.name}", strays))
        strays = []
    unusable = (*tree.unusable, *(entry for child in imageless for entry in child.all_unusable()))
    return [replace(datasets[0], unusable=(*unusable, *datasets[0].unusable)), *datasets[1:]]


@_no_garbage_collection()
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
    whole = name or root.resolve().name or "root"
    loose, repeated = _loose_images(tree, [item.path for dataset in datasets for item in dataset.items], whole)
    if not datasets:
        others = _below(tree.path, tree.others)
        return [Dataset(whole, loose, tuple(sorted({*others, *repeated})), unusable=tuple(tree.all_unusable()))]
    found = {item.path for item in loose}
    datasets = [replace(dataset, ignored=tuple(p for p in dataset.ignored if p not in found)) for dataset in datasets]
    if not loose:
        return datasets
    # With one dataset, the loose images belong to it; with several, they are one more.
    if len(datasets) == 1 and datasets[0].name == whole:
        return [replace(datasets[0], items=(*datasets[0].items, *loose))]
    return [*datasets, Dataset(whole, loose)]


def _loose_images(tree: _Folder, taken: list[Path], dataset: str) -> tuple[tuple[Item, ...], tuple[Path, ...]]:
    """The images that are not taken yet, as items without a label; and those that are reached a second time."""
    images = list(tree.all_images())
    if not tree.linked:
        known = set(taken)
        return tuple(Item(path, "", dataset) for path in images if path not in known), ()
    known_files = set(identities(taken))
    free = [path for path, file in zip(images, identities(images), strict=True) if file not in known_files]
    return unique_items([Item(path, "", dataset) for path in free])


def _read_tree(root: Path) -> _Folder:
    if not is_text(str(root)):
        raise UserError(f"the name of the folder {escaped(root)} is not valid UTF-8; rename it")
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
    try:
        status = path.stat()
        with os.scandir(path) as entries:
            found = list(entries)
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror}; make it readable or move it away") from error
    # Whole lists at a time, because a folder may hold a hundred thousand files. As long as links are not followed,
    # what an entry is was listed with its name.
    plain = [entry.name for entry in found if entry.is_file(follow_symlinks=False)]
    files, unnamed = _wanted(plain)
    images = [name for name in files if name[name.rfind(".") :] in _ENDINGS or _is_image(name)]
    others = [] if len(images) == len(files) else [name for name in files if not _is_image(name)]
    others_found = [] if len(plain) == len(found) else [e for e in found if not e.is_file(follow_symlinks=False)]
    special = {entry.name: entry for entry in others_found}
    special_names, special_unnamed = _wanted(list(special))
    kept = [special[name] for name in special_names]
    folders = [entry.name for entry in kept if entry.is_dir(follow_symlinks=False)]
    links = [entry for entry in kept if not entry.is_dir(follow_symlinks=False)]
    above = (*ancestors, (status.st_dev, status.st_ino))
    unusable = [without_text(path, name) for name in sorted([*unnamed, *special_unnamed])]
    for entry in sorted(links, key=lambda link: link.name):
        folder = _is_folder(entry)
        leads_back = folder and _identity(path / entry.name) in above
        reason = LEADS_BACK if leads_back else None if folder else defect(entry)
        if reason is not None:
            unusable.append(Unusable(path / entry.name, reason))
        else:
            (folders if folder else images if _is_image(entry.name) else others).append(entry.name)
    children = [_scan(child, above) for child in _below(path, sorted(folders))]
    count = len(images) + sum(child.image_count for child in children)
    linked = bool(links) or any(child.linked for child in children)
    return _Folder(path, sorted(images), sorted(others), children, count, unusable, linked)


def _wanted(names: list[str]) -> tuple[list[str], list[str]]:
    """The names of what lies in a folder, without hidden ones and clutter; and those of them that are no text."""
    # No name holds a slash: so joined, all can be looked at at once.
    joined = "/" + "/".join(names)
    if "/." in joined or not _CLUTTER.isdisjoint(names):
        names = [name for name in names if not name.startswith(".") and name not in _CLUTTER]
    if joined.isascii() or is_text(joined):
        return names, []
    return [name for name in names if is_text(name)], [name for name in names if not is_text(name)]


def _below(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """The paths of names in a folder."""
    # `folder / name` parses each name anew, though a name that a scan found needs none: with it, reading a folder of
    # 150,000 images takes almost half as long again. Pathlib's own walks spare themselves that by a method without a
    # public name. Where a Python lacks it, `folder / name` makes equal paths.
    return map(getattr(folder, "_make_child_relpath", folder.__truediv__), names)


def _is_image(name: str) -> bool:
    """As `is_image_name`, of a name without a leading dot, many times faster."""
    ending = name[name.rfind(".") :]
    return ending in _ENDINGS or ending.lower() in _ENDINGS


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself


def _no_images(tree: _Folder) -> str:
    suffixes = " ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    counts = Counter(path.suffix.lower() or "(no suffix)" for path in (*tree.all_images(), *tree.all_others()))
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(3))
    found = f"{sum(counts.values())} other files ({kinds})" if counts else "no files at all"
    first = next(tree.all_unusable(), None)
    if first is not None:
        found += f" and {escaped(first.path)}, {first.reason}"
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
    deep = {child.path: child.image_count - len(child.images) for child in children}
    if not any(direct.values()) or sum(direct.values()) >= sum(deep.values()) or _split_children(tree):
        return
    like_datasets = [c for c in children if len(c.class_folders()) > 1 and direct[c.path] < deep[c.path]]
    if not like_datasets:
        return
    holders = [child for child in children if child.images]
    holder = next((child for child in holders if child.class_folders()), holders[0])
    stray = holder.path / holder.images[0]
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


def _dataset(folder: _Folder, name: str, strays: Iterable[Path]) -> Dataset:
    splits = _split_children(folder)
    ignored = {*strays, *_below(folder.path, folder.images), *folder.all_others()}
    classes: list[tuple[_Folder, str | None]] = [(child, None) for child in folder.children]
    if splits:
        classes = [(child, SPLIT_FOLDERS[split.path.name]) for split in splits for child in split.children]
        # By label; within it by path, as the split folders are sorted already.
        classes.sort(key=lambda part: part[0].path.name)
        ignored.update(path for split in splits for path in _below(split.path, split.images))
    items = [Item(path, part.path.name, name, role) for part, role in classes for path in _class_images(part)]
    unusable = tuple(folder.all_unusable())
    if not folder.linked:
        return Dataset(name, tuple(items), tuple(sorted(ignored)), unusable=unusable)
    kept, repeated = unique_items(items)
    return Dataset(name, kept, tuple(sorted({*ignored, *repeated})), unusable=unusable)


def _class_images(folder: _Folder) -> list[Path]:
    """The images of a class, sorted by path."""
    if folder.image_count == len(folder.images):
        return list(_below(folder.path, folder.images))
    return sorted(folder.all_images(), key=str)
