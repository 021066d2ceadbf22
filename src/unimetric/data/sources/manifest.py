"""Manifests: a CSV or Parquet table with the columns ``path,label[,dataset][,split]``, one row per image."""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath

from unimetric.data.catalog import Clash, Dataset, Item, unique_items
from unimetric.data.images import with_box
from unimetric.data.labels import MISSING_WORDS, WRITTEN_LIST, clean_label, label_notes
from unimetric.data.sources.locating import locate_images
from unimetric.data.sources.remote import local_names, uri_of
from unimetric.data.sources.split_names import SPLIT_NAMES, split_role
from unimetric.data.sources.table import CsvTable, ParquetTable, Table, open_table
from unimetric.errors import UserError, nearest_names, shown
from unimetric.files import read_bytes

_ALIASES: dict[str, tuple[tuple[str, ...], ...]] = {
    "path": (
        ("file_name", "file", "file_path", "image_path", "img_path", "image_name", "image", "img"),
        ("image_id", "img_id", "id"),
    ),
    "label": (
        ("class", "class_name", "category", "category_name", "label_name", "labels"),
        ("class_id", "category_id", "label_id", "target"),
    ),
    "dataset": (),
    "split": (),
}
"""The columns read, and other names that are taken for them: the first group before the second."""
_BOX = ("x", "y", "width", "height")
"""Columns that cut an object out of its picture, where a manifest has all four."""
_SPLIT_LIKE = ("set", "subset", "partition", "phase", "usage", "fold", "is_train", "is_test")
_ROLE_LIKE = ("is_query", "is_gallery")
_BOX_LIKE = (
    ("xmin", "ymin", "xmax", "ymax"),
    ("x_min", "y_min", "x_max", "y_max"),
    ("x1", "y1", "x2", "y2"),
    ("x_1", "y_1", "x_2", "y_2"),
    ("left", "top", "right", "bottom"),
    ("left", "top", "width", "height"),
    ("x", "y", "w", "h"),
    ("x_center", "y_center", "width", "height"),
    ("center_x", "center_y", "width", "height"),
    ("cx", "cy", "w", "h"),
    ("bbox",),
    ("box",),
    ("bounding_box",),
    ("bbox_x", "bbox_y", "bbox_w", "bbox_h"),
    ("bbox_x", "bbox_y", "bbox_width", "bbox_height"),
    ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2"),
)


@dataclass(frozen=True)
class Columns:
    """The places of a table's columns; None where it has no such column."""

    path: int
    label: int | None
    dataset: int | None
    split: int | None
    box: tuple[int, ...] | None
    """The places of x, y, width and height."""
    notes: tuple[str, ...]

    @property
    def used(self) -> set[int]:
        """The places of all columns that the table has."""
        places = (self.path, self.label, self.dataset, self.split, *(self.box or ()))
        return {place for place in places if place is not None}


@dataclass(frozen=True)
class Rows:
    """The rows of a manifest, before their images are looked for."""

    table: Table
    columns: Columns
    paths: tuple[str, ...]
    labels: tuple[str, ...]
    label_sets: tuple[tuple[str, ...], ...]
    """All labels of a row, where the column is called ``labels`` or is one of lists; else empty."""
    written_labels: tuple[str, ...]
    """The labels before `clean_label`."""
    datasets: tuple[str, ...]
    roles: tuple[str | None, ...]


def read_manifest(file: Path, name: str | None = None, *, classes: bool = True) -> list[Dataset]:
    """Read a manifest; datasets in the order of their names, items in the order of the rows.

    Paths are relative to the manifest's folder, or absolute (see `locate_images`), or URIs of object storage, whose
    objects are copied into the cache (see `remote`). Labels and datasets are text, in the
    form of `clean_label`; whole numbers in Parquet become their digits. ``split`` is one of `SPLIT_NAMES`, or empty.
    Columns ``x,y,width,height``, where there are all four, cut the image out of its picture (see `with_box`). Other
    columns are not read. A label column called ``labels`` may name several, separated by ``|`` or in several rows of
    one image, and so may a Parquet column of lists; see `Item`. A row that repeats an image with the same label and
    split is left out, and its path listed in `Dataset.ignored`. For formats, see `open_table`; for names of columns,
    `find_columns`.

    Args:
        file: the manifest, ``.csv``, ``.tsv``, ``.parquet`` or ``.pq``.
        name: the dataset's name; by default the file's name without its suffix. With a column ``dataset``,
            the front part of the names: ``name/dataset``.
        classes: refuse rows without a label.

    Raises:
        UserError: the file is missing, unreadable, damaged or empty; a column is missing; a row is ragged,
            has an empty path or label, or a split of another name; images are missing; one image has two
            labels, or splits that must not share images.
    """
    rows, items, notes = load_manifest(file, name, classes=classes)
    if rows.label_sets:
        items, more = _with_all_labels(rows, items)
        notes = (*notes, *more)
    numbers_of: dict[str, list[int]] = {}
    for number, item in enumerate(items):
        numbers_of.setdefault(item.dataset, []).append(number)
    datasets = []
    for dataset, numbers in sorted(numbers_of.items()):
        try:
            kept, repeated = unique_items([items[number] for number in numbers])
        except Clash as clash:
            first, second = (
                rows.table.row_place(next(number for number in numbers if items[number] is item))
                for item in clash.items
            )
            raise UserError(f"the manifest {file}, {first} and {second}: {clash}") from clash
        written = {rows.written_labels[number] for number in numbers}
        if rows.label_sets:
            written, repeated = {label for number in numbers for label in rows.label_sets[number]}, ()
        remarks = label_notes(f"dataset {dataset!r}", written)
        datasets.append(Dataset(dataset, kept, repeated, (*notes, *remarks)))
        notes = ()
    return datasets


def load_manifest(
    file: Path, name: str | None = None, *, classes: bool = True
) -> tuple[Rows, list[Item], tuple[str, ...]]:
    """Read the rows of a manifest and find their images: the rows, an item for each, and remarks.

    For arguments and errors see `read_manifest`.
    """
    rows = parse_manifest(uri_of(file) or file, read_bytes(file), name, classes=classes)
    paths, notes = locate_images(file, local_names(file, rows.paths), rows.table.row_place)
    return rows, list(map(Item, paths, rows.labels, rows.datasets, rows.roles)), (*rows.columns.notes, *notes)


def _with_all_labels(rows: Rows, items: Sequence[Item]) -> tuple[list[Item], list[str]]:
    """Return the items with all labels that the rows of their image name, and a note on them."""
    found: dict[tuple[str, Path, str | None], set[str]] = {}
    for item, labels in zip(items, rows.label_sets, strict=True):
        found.setdefault((item.dataset, item.path, item.role), set()).update(labels)
    joined = {key: tuple(sorted(labels)) for key, labels in found.items()}
    several = sum(len(labels) > 1 for labels in joined.values())
    all_labels = [joined[item.dataset, item.path, item.role] for item in items]
    note = f"{several} images have several labels" if several else ""
    if not several and any("," in text or ";" in text for text in rows.written_labels):
        note = "every image has one label, since | separates several, not , or ;"
    return [
        replace(item, label="|".join(labels), labels=labels if len(labels) > 1 else ())
        for item, labels in zip(items, all_labels, strict=True)
    ], [f"the manifest {rows.table.place}: {note}"] if note else []


def parse_manifest(file: PurePath | str, content: bytes, name: str | None = None, *, classes: bool = True) -> Rows:
    """Read the rows of a manifest from its bytes; ``file`` is its path or address, otherwise as `read_manifest`."""
    table = open_table(file, content, lambda names: sum(bool(_find(names, wanted)) for wanted in ("path", "label")))
    if not table.names:
        raise UserError(f"the manifest {file} is empty; give it one row per image")
    columns = find_columns(table, classes=classes)
    if isinstance(table, CsvTable):
        table.check_length(max(columns.used))
    count = len(table)
    if not count:
        raise UserError(f"the manifest {file} is empty; give it one row per image")
    written, label_sets = _labels(table, columns.label)
    labels = ["|".join(members) for members in label_sets] or [clean_label(label) for label in written]
    if classes:
        _check_filled(table, "label", labels)
    datasets = [name or clean_label(PurePath(file).stem) or PurePath(file).stem] * count
    if columns.dataset is not None:
        inner = [clean_label(text) for text in table.texts(columns.dataset)]
        _check_filled(table, "dataset", inner)
        datasets = [f"{name}/{dataset}" if name else dataset for dataset in inner]
    roles = [None] * count if columns.split is None else _roles(table, table.texts(columns.split))
    paths = table.texts(columns.path)
    _check_filled(table, "path", paths)
    if columns.box is not None:
        boxes = zip(*(table.texts(place, floats=True) for place in columns.box), strict=True)
        paths = [_in_box(table, row, path, box) for row, (path, box) in enumerate(zip(paths, boxes, strict=True))]
    return Rows(
        table, columns, tuple(paths), tuple(labels), tuple(label_sets), tuple(written), tuple(datasets), tuple(roles)
    )


def _labels(table: Table, place: int | None) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return the label of each row as written, and where rows may have several, all of its labels."""
    if place is None:
        return [""] * len(table), []
    lists = table.text_lists(place) if isinstance(table, ParquetTable) else None
    if lists is None:
        written = table.texts(place)
        if _key(table.names[place]) != "labels":
            return written, []
        for row, text in enumerate(written):
            if WRITTEN_LIST.match(text):
                raise UserError(f"the manifest {table.place}, {table.row_place(row)}: the labels are {shown(text)}; "
                                "write several labels as a|b")  # fmt: skip
        lists = [text.split("|") for text in written]
    sets = [tuple(sorted({clean_label(part) for part in parts} - {""})) for parts in lists]
    return ["|".join(members) for members in sets], sets


def find_columns(table: Table, *, classes: bool = True) -> Columns:
    """Find the columns of a manifest by their names, in capitals or small letters.

    Where there is no ``path`` or no ``label``, one other column of a usual name is taken (`_ALIASES`), and a note
    names it.

    Raises:
        UserError: a column is missing (``label`` may be, without ``classes``), or several may be meant.
    """
    path, label, dataset, split = (_find_one(table, wanted) for wanted in _ALIASES)
    if path is None or (label is None and classes):
        raise _missing(table, "path" if path is None else "label")
    notes = [
        f"the manifest {table.place}: column {table.names[place]!r} is read as {wanted!r}"
        for place, wanted in ((path, "path"), (label, "label"))
        if place is not None and _key(table.names[place]) != wanted
    ]
    like = [name for name in table.names if _key(name) in _SPLIT_LIKE]
    like += difflib.get_close_matches("split", table.names, n=1, cutoff=0.8)
    if split is None and like:
        notes.append(
            f"the manifest {table.place}: column {like[0]!r} is not read; if it divides train from test, call it split"
        )
    if any(_key(name) in _ROLE_LIKE for name in table.names):
        notes.append(
            f"the manifest {table.place}: {' and '.join(_ROLE_LIKE)} are not read; write query or gallery in the "
            "column split"
        )
    box = tuple(place for name in _BOX for place, other in enumerate(table.names) if _key(other) == name)
    if len(box) != len(_BOX):
        keys = {_key(name) for name in table.names}
        if unread := next((names for names in _BOX_LIKE if keys.issuperset(names)), None):
            notes.append(
                f"the manifest {table.place}: {' and '.join(unread)} are not read, whole pictures are; to cut objects "
                f"out, give {', '.join(_BOX)} in pixels"
            )
        return Columns(path, label, dataset, split, None, tuple(notes))
    notes.append(f"the manifest {table.place}: images are cut out by the columns {', '.join(_BOX)}")
    return Columns(path, label, dataset, split, box, tuple(notes))


def _in_box(table: Table, row: int, path: str, cells: Sequence[str]) -> str:
    """Return the path of the object in a row's box; that of the whole picture where all cells are empty."""
    if all(cell.strip().casefold() in {"", *MISSING_WORDS} for cell in cells):
        return path
    try:
        x, y, across, down = map(float, cells)
        # Both edges are rounded, so that a box that ends at the picture's edge still does.
        left, top, right, bottom = round(x), round(y), round(x + across), round(y + down)
        are_shares = max(x, y, across, down) <= 1
    except (ValueError, OverflowError):
        left = top = right = bottom = -1
        are_shares = False
    width, height = right - left, bottom - top
    if min(left, top) < 0 or min(width, height) < 1 or are_shares:
        raise UserError(
            f"the manifest {table.place}, {table.row_place(row)}: x, y, width, height are {shown(', '.join(cells))}; "
            "give pixels of the upright picture, from its upper left corner, or leave all four empty"
        )
    return with_box(path, (left, top, width, height))


def _find_one(table: Table, wanted: str) -> int | None:
    found = _find(table.names, wanted)
    if len(found) > 1:
        first, second = (table.names[place] for place in found[:2])
        if first == second:
            raise UserError(f"the manifest {table.place} has two columns {first!r}; remove one")
        raise UserError(
            f"the manifest {table.place} has no column {wanted!r}, but {first!r} and {second!r}; rename one to {wanted}"
        )
    return found[0] if found else None


def _find(names: Sequence[str], wanted: str) -> list[int]:
    """Return the places of the columns that may be the wanted one: the best match, or several as good."""
    exact = [place for place, name in enumerate(names) if name == wanted]
    keys = [_key(name).replace("_", "") for name in names]  # ImageId as image_id
    for group in ((wanted,), *_ALIASES[wanted]):
        alike = {name.replace("_", "") for name in group}
        if found := exact or [place for place, key in enumerate(keys) if key in alike]:
            return found
    return []


def _key(name: str) -> str:
    return re.sub(r"[\s-]+", "_", name.casefold())


def _missing(table: Table, wanted: str) -> UserError:
    names = [name for name in table.names if name]
    listed = ", ".join([shown(name) for name in names[:10]] + ["..."] * (len(names) > 10)) or "none with a name"
    close = difflib.get_close_matches(wanted, names, n=1, cutoff=0.5)
    remedy = f"rename {shown(close[0])}" if close else "add it, rename another, or name the columns in the first row"
    return UserError(f"the manifest {table.place} has no column {wanted!r}, only {listed}; {remedy}")


def _check_filled(table: Table, column: str, texts: Sequence[str]) -> None:
    for row, text in enumerate(texts):
        if not text or text.isspace():
            raise UserError(f"the manifest {table.place}, {table.row_place(row)}: the {column} is empty")


def _roles(table: Table, texts: list[str]) -> list[str | None]:
    roles = {text: split_role(text) for text in set(texts)}
    for row, text in enumerate(texts):
        if roles[text] is None and text.strip():
            names = [name for names in SPLIT_NAMES.values() for name in names]
            raise UserError(
                f"the manifest {table.place}, {table.row_place(row)}: unknown split {shown(text)}; "
                f"{nearest_names(text.strip().casefold(), names)}, or empty"
            )
    return [roles[text] for text in texts]
