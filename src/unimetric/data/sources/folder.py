"""Folders of class folders: the name of the folder is the label of the images in it.

The layout follows from where the images lie and from the names of splits (`SPLIT_NAMES`, in any case):

- ``root/class/**/image``: one dataset;
- ``root/dataset/class/**/image``: one dataset per child, where no child of the root holds images itself;
- ``train`` and ``test`` (two splits at least) above the classes, above the datasets, or within each class: the splits
  are kept as `Item.role`. Names may share another part, as in ``cars_train`` and ``cars_test``, or ``train2017`` and
  ``val2017``; where there are several such parts, each is a dataset;
- a folder between a dataset or a split and its classes that has their name, or one of `WHOLE`, is passed over.

Ambiguous layouts are refused, or noted where one reading is far more likely.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unimetric.cpu import no_garbage_collection
from unimetric.data.catalog import Dataset, Item, identities, unique_items
from unimetric.data.labels import clean_label, label_notes
from unimetric.data.sources.split_names import split_parts
from unimetric.data.sources.table import SUFFIXES
from unimetric.data.sources.tree import Folder, read_tree
from unimetric.errors import UserError, escaped

WHOLE = frozenset({"images", "image", "img", "imgs", "jpegimages", "jpg", "png", "photos", "pictures", "masks"})
"""Names of folders that hold the images of all classes, in small letters."""


@dataclass(frozen=True)
class _Layout:
    """One dataset in a tree: its name, the folders of which all is its, and its class folders with label and role."""

    name: str
    folders: list[Folder]
    classes: Sequence[tuple[Folder, str, str | None]]


@no_garbage_collection()
def read_folder(root: Path, name: str | None = None) -> list[Dataset]:
    """Read a folder of class folders, in one of the layouts above.

    Order: datasets by name, items by label and then path, both by code point. Labels have the form of `clean_label`.
    Hidden files and folders are skipped. Links are followed, except one that leads back to a folder it lies in. An
    image reached twice in one class is taken once; the second path and images outside of any class folder are listed in
    `Dataset.ignored`; pipes, broken links and names that are not text in `Dataset.unusable`. Paths start with ``root``
    as it is given.

    Args:
        root: the folder.
        name: the dataset's name; by default, that of the folder. With several datasets, the front part
            of their names: ``name/child``.

    Raises:
        UserError: the folder is missing, unreadable or not a folder, holds no images or only images outside
            of class folders, mixes split folders with others or images with class folders, or one image lies
            in two classes.
    """
    tree = read_tree(root)
    if not tree.class_folders():
        raise UserError(
            f"{root} holds {len(tree.images)} image{'s' * (len(tree.images) > 1)} but no class folders; "
            f"put each class in a folder of its own, or {_manifest_remedy(tree)}"
        )
    _refuse_mixture(tree)
    return _read_datasets(tree, name, strict=True)


@no_garbage_collection()
def read_images(root: Path, name: str | None = None) -> list[Dataset]:
    """Read every image below a folder, with or without class folders, for uses that need no classes.

    As `read_folder`, except that images outside of class folders are kept, with an empty label, and that no layout is
    refused.

    Raises:
        UserError: the folder is missing, unreadable or not a folder, holds no images, or one image lies in two
            classes.
    """
    tree = read_tree(root)
    whole = _name(tree, name)
    datasets = _read_datasets(tree, name, strict=False) if tree.class_folders() else []
    datasets = [dataset for dataset in datasets if dataset.items]
    loose, repeated = _loose_images(tree, [item.path for dataset in datasets for item in dataset.items], whole)
    if not datasets:
        return [Dataset(whole, loose, repeated, unusable=tuple(tree.all_unusable()))]
    found = {item.path for item in loose}
    datasets = [replace(dataset, ignored=tuple(p for p in dataset.ignored if p not in found)) for dataset in datasets]
    if not loose:
        return datasets
    # With one dataset, the loose images belong to it; with several, they are one more.
    if len(datasets) == 1 and datasets[0].name == whole:
        return [replace(datasets[0], items=(*datasets[0].items, *loose))]
    return [*datasets, Dataset(whole, loose)]


def _loose_images(tree: Folder, taken: list[Path], dataset: str) -> tuple[tuple[Item, ...], tuple[Path, ...]]:
    """Return the images that are not taken yet, as items without a label; and those that are reached a second time."""
    images = list(tree.all_images())
    if not tree.linked:
        known = set(taken)
        return tuple(Item(path, "", dataset) for path in images if path not in known), ()
    known_files = set(identities(taken))
    free = [path for path, file in zip(images, identities(images), strict=True) if file not in known_files]
    return unique_items([Item(path, "", dataset) for path in free])


def _read_datasets(tree: Folder, name: str | None, *, strict: bool) -> list[Dataset]:
    layouts = _layouts(tree, name, strict=strict)
    first, *others = (_dataset(layout, linked=tree.linked) for layout in layouts)
    # What belongs to no dataset is recorded with the first one.
    rest = list(tree.walk({folder for layout in layouts for folder in layout.folders}))
    ignored = sorted([*first.ignored, *(path for folder in rest for path in folder.image_paths())])
    unusable = (*(entry for folder in rest for entry in folder.unusable), *first.unusable)
    return [replace(first, ignored=tuple(ignored), unusable=unusable), *others]


def _layouts(tree: Folder, name: str | None, *, strict: bool) -> list[_Layout]:
    """Return the datasets of a tree, sorted by name."""
    whole, prefix = _name(tree, name), f"{name}/" if name else ""
    if groups := _splits(tree, strict=strict):
        layouts = []
        for rest, sides in sorted(groups.items()):
            title = whole if len(groups) == 1 else f"{prefix}{rest or tree.path.name}"
            parts: defaultdict[str, list[tuple[Folder, str]]] = defaultdict(list)
            for side, role in sides:
                for child in side.class_folders():
                    parts[child.path.name].append((child, role))
            if _are_datasets([child for members in parts.values() for child, _ in members]):
                front = prefix if len(groups) == 1 else f"{title}/"
                layouts += [_of_sides(front + part, parts[part]) for part in sorted(parts)]
            else:
                layouts.append(_of_sides(title, sides))
        return layouts
    children = _inner(tree).class_folders()
    if _splits_within(tree) or not _are_datasets(children, strict=strict):
        return [_one(tree, whole, strict=strict)]
    # Beside datasets with splits, a single split folder is the only side of its dataset, and not a class.
    lone = any(_splits(child, strict=strict) for child in children)
    return [_one(child, f"{prefix}{child.path.name}", strict=strict, lone=lone) for child in children]


def _one(folder: Folder, name: str, *, strict: bool, lone: bool = False) -> _Layout:
    """Return the layout of a folder that is one dataset; with ``lone``, one split folder is enough."""
    groups = _splits(folder, strict=strict, fewest=1 if lone else 2)
    if len(groups) == 1:
        (sides,) = groups.values()
        return replace(_of_sides(name, sides), folders=[folder])
    inner = _inner(folder)
    if roles := _splits_within(folder):
        within = [(part, child.path.name, roles[part]) for child in inner.class_folders() for part in child.children]
        return _Layout(name, [folder], [entry for entry in within if entry[0].image_count])
    return _Layout(name, [folder], [(child, child.path.name, None) for child in inner.children])


def _inner(folder: Folder) -> Folder:
    """Return the only folder in a folder, if it holds all classes by its name (``images``, or the same again)."""
    found = folder.class_folders()
    if len(found) == 1 and not (folder.images or found[0].images):
        name = found[0].path.name.casefold()
        if name in WHOLE or name == folder.path.name.casefold():
            return _inner(found[0])
    return folder


def _of_sides(name: str, sides: Sequence[tuple[Folder, str]]) -> _Layout:
    classes = [(child, child.path.name, role) for side, role in sides for child in side.children]
    return _Layout(name, [side for side, _ in sides], classes)


def _splits(folder: Folder, *, strict: bool, fewest: int = 2) -> dict[str, list[tuple[Folder, str]]]:
    """Return the split folders of a dataset with their roles, by the rest of their names; empty if there are none."""
    folder = _inner(folder)
    children = folder.class_folders()
    groups: defaultdict[str, list[tuple[Folder, str]]] = defaultdict(list)
    for child in children:
        if parts := split_parts(child.path.name):
            groups[parts[0]].append((child, parts[1]))
    named = sum(map(len, groups.values()))
    if len(groups) == named and all(rest.isdecimal() for rest in groups):
        groups = defaultdict(list, {"": [side for sides in groups.values() for side in sides]})  # 1_train, 2_test
    with_sides = [rest for rest, sides in groups.items() if len({role for _, role in sides}) > 1]
    if strict:
        _refuse_flat(folder, [side for rest in with_sides if rest for side, _ in groups[rest]])
    if named < len(children):
        if strict:
            _refuse_others(folder, groups[""], children)
        return {}
    if with_sides and "" not in groups:
        fewest = 1  # beside a dataset with splits in its folders' names, one may have a single side
    elif strict and len(groups) > 1 and "" in groups and len({role for s in groups.values() for _, role in s}) > 1:
        raise UserError(
            f"cannot determine which split folders in {folder.path} belong together: "
            f"{', '.join(escaped(child.path.name) for child in children)}; rename those of one dataset alike, as in "
            "train and test, move the others away, or write a manifest"
        )
    if not groups or any(len({role for _, role in sides}) < fewest for sides in groups.values()):
        return {}
    sides = [side for group in groups.values() for side, _ in group]
    if strict and not all(side.class_folders() for side in sides):
        if set(groups) != {""}:
            return {}  # classes that are named nearly as splits, which is noted
        _refuse_flat(folder, sides)
    if strict:
        _refuse_whole(sides)
    return {rest: [(_inner(side), role) for side, role in group] for rest, group in groups.items()}


def _refuse_flat(folder: Folder, sides: list[Folder]) -> None:
    """Refuse split folders that hold their images themselves, as COCO's do."""
    if flat := [side for side in sides if not side.class_folders()]:
        raise UserError(
            f"the split folder {flat[0].path} holds images but no class folders; put each class in a folder of its "
            f"own, {_manifest_remedy(folder)}, or rename the folder if it is a class"
        )


def _refuse_whole(sides: list[Folder]) -> None:
    """Refuse split folders of which one has a folder of all its images in the place of class folders."""
    for side in sides:
        match side.class_folders():
            case [only] if only.images and only.path.name.casefold() in WHOLE:
                raise UserError(
                    f"the split folder {side.path} holds all images in {only.path.name!r}, not in class folders; put "
                    f"each class in a folder of its own, or {_manifest_remedy(side)}"
                )


def _refuse_others(folder: Folder, splits: list[tuple[Folder, str]], children: list[Folder]) -> None:
    if len({role for _, role in splits}) < 2 or not any(child.class_folders() for child, _ in splits):
        return
    names = [child.path.name for child, _ in splits]
    other = next(child for child in children if child.path.name not in names)
    raise UserError(
        f"{folder.path} holds split folders ({names[0]}, {names[1]}) "
        f"beside {other.path.name!r}; move that one away, or rename the split folders if they are classes"
    )


def _manifest_remedy(folder: Folder) -> str:
    """Return the advice to give a manifest: one of those that lie beside the images, if there are any."""
    found = [name for name in folder.others if name.lower().endswith(SUFFIXES)]
    return f"give the manifest {escaped(folder.path / found[0])}" if found else "write a manifest"


def _splits_within(folder: Folder) -> dict[Folder, str]:
    """Return the role of each split folder within the classes of a dataset; empty if its classes have none."""
    roles: dict[Folder, str] = {}
    for child in _inner(folder).class_folders():
        for part in child.class_folders():
            parts = split_parts(part.path.name)
            if child.images or part.class_folders() or parts is None or parts[0]:
                return {}
            roles[part] = parts[1]
    return roles if len(set(roles.values())) > 1 else {}


def _are_datasets(children: list[Folder], *, strict: bool = False) -> bool:
    """Return true if no child holds images itself, as classes do, and one at least holds class folders."""
    if any(child.images for child in children):
        return False
    return any(
        any(grandchild.images for grandchild in _inner(child).children)
        or bool(_splits(child, strict=strict))
        or bool(_splits_within(child))
        for child in children
    )


def _refuse_mixture(tree: Folder) -> None:
    """Refuse a tree that one stray image turns from several datasets into one.

    Raises:
        UserError: some children hold images themselves, as classes do, yet most images lie deeper, and one
            child at least has most of its own in several folders, as datasets have.
    """
    children = _inner(tree).class_folders()
    direct = {child.path: len(child.images) for child in children}
    deep = {child.path: child.image_count - len(child.images) for child in children}
    if not any(direct.values()) or sum(direct.values()) >= sum(deep.values()) or _splits(tree, strict=True):
        return
    like_datasets = [c for c in children if len(c.class_folders()) > 1 and direct[c.path] < deep[c.path]]
    if not like_datasets:
        return
    holders = [child for child in children if child.images]
    holder = next((child for child in holders if child.class_folders()), holders[0])
    stray = holder.path / holder.images[0]
    raise UserError(
        f"cannot determine whether the folders in {tree.path} are datasets or classes: {stray} lies beside folders, "
        f"but {like_datasets[0].path} holds {len(like_datasets[0].class_folders())} folders of images; move it into a "
        "class folder, or use a manifest"
    )


def _dataset(layout: _Layout, *, linked: bool) -> Dataset:
    name = clean_label(layout.name) or layout.name
    labelled = [(clean_label(text) or text, folder, role) for folder, text, role in layout.classes]
    labelled.sort(key=lambda entry: (entry[0], str(entry[1].path)))
    items = [Item(path, label, name, role) for label, folder, role in labelled for path in _class_images(folder)]
    kept, repeated = unique_items(items) if linked else (tuple(items), ())
    classes = {folder for folder, *_ in layout.classes}
    rest = [part for folder in layout.folders for part in folder.walk(classes)]
    ignored = {*repeated, *(path for folder in rest for path in folder.image_paths())}
    unusable = tuple(entry for folder in layout.folders for entry in folder.all_unusable())
    notes = label_notes(f"dataset {name!r}", {text for folder, text, _ in layout.classes if folder.image_count})
    return Dataset(name, kept, tuple(sorted(ignored)), (*notes, *_deep_classes(layout)), unusable)


def _deep_classes(layout: _Layout) -> list[str]:
    """Return a remark if images lie in folders of folders of the classes only, as if those were datasets."""
    classes = [folder for folder, *_ in layout.classes if folder.image_count]
    if any(folder.images or any(child.images for child in folder.children) for folder in classes):
        return []
    inner = next((child for folder in classes for child in folder.children if len(child.class_folders()) > 1), None)
    if inner is None:
        return []
    return [
        f"dataset {layout.name!r}: all images in {inner.path} are of the class {classes[0].path.name!r}; if the "
        f"{len(inner.class_folders())} folders in it are the classes, name it as a source"
    ]


def _class_images(folder: Folder) -> Iterable[Path]:
    """Return the images of a class, sorted by path."""
    if folder.image_count == len(folder.images):
        return folder.image_paths()
    return sorted(folder.all_images(), key=str)


def _name(tree: Folder, name: str | None) -> str:
    return name or clean_label(tree.path.resolve().name) or "root"
