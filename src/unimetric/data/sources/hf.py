"""Hugging Face ``datasets``: sets saved with ``save_to_disk``, folders of Parquet files, and sets in its cache.

Images inside tables are written to files in the user's cache, once, since every command reads images by path.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from unimetric.data.catalog import Dataset, Item, Unusable
from unimetric.data.images.formats import HEAD_BYTES, content_format, is_image_name
from unimetric.data.labels import clean_label, label_notes
from unimetric.data.sources.hf_tables import LABEL_NAMES, SplitTables, open_splits
from unimetric.data.sources.split_names import split_role
from unimetric.errors import UserError, nearest_names, shown
from unimetric.files import cache_folder, explain_os_error, make_folder, write_json
from unimetric.progress import log_status

_OPTIONS = ("image", "label", "split")
_IMAGE_NAMES = ("image", "img", "picture", "photo", "jpg", "png")
_ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "GIF": ".gif", "BMP": ".bmp", "TIFF": ".tif"}


@dataclass(frozen=True)
class _Wanted:
    """The place of a set, and its columns and splits as typed."""

    place: Path
    image: str | None = None
    label: str | None = None
    splits: tuple[str, ...] = ()


def read_hf(path: Path, name: str | None = None, *, classes: bool = True) -> list[Dataset]:
    """Read a set of the library ``datasets``.

    Args:
        path: A folder of ``save_to_disk`` or of Parquet files, or the name of a set, ``owner/name``, which the library
            finds in its cache or fetches. ``?image=COLUMN&label=COLUMN&split=NAME,NAME`` may follow.
        name: The dataset's name; by default the folder's.
        classes: Refuse rows without a label.

    Raises:
        UserError: the library is not installed, the set cannot be read, a column is ambiguous or does not exist, a
            split's name means no role, or a row has no label.
    """
    wanted = _parse(path)
    name = name or clean_label(wanted.place.resolve().name) or "root"
    opened = open_splits(wanted.place)
    chosen = _chosen_splits(wanted, opened.splits)
    # Before the images are written.
    labelled_by = {
        _column(wanted, split, "label", wanted.label, split.labels, LABEL_NAMES) for split in chosen if classes
    }
    folder = cache_folder() / "hf" / hashlib.sha256(f"{opened.version}|{wanted}".encode()).hexdigest()[:24]
    listing = folder / "rows.json"
    if not listing.is_file():
        make_folder(folder)
        log_status(f"{wanted.place}: writing its images to {folder}, once")
        write_json(listing, [row for split in chosen for row in _rows(wanted, split, folder)])
    with explain_os_error(listing, "read"):
        rows = json.loads(listing.read_text(encoding="utf-8"))
    roles = _roles(wanted, chosen)
    items, unusable, written = [], [], set()
    for part, number, place, labels in rows:
        if place is None:
            unusable.append(Unusable(wanted.place / f"{part}-{number}", "the row has no image"))
            continue
        if classes and not labels:
            raise UserError(f"{wanted.place}, split {part!r}, row {number}: it has no label; choose other splits with "
                            f"hf:{wanted.place}?split=NAME, or remove the row")  # fmt: skip
        written.update(labels)
        several = tuple(labels) if len(labels) > 1 else ()
        items.append(Item(Path(place), "|".join(labels), name, roles[part], several))
    if not items:
        raise UserError(f"{wanted.place} has no images in the splits {', '.join(split.name for split in chosen)}")
    guessed = sorted(labelled_by - {"label", wanted.label})
    notes = [f"{wanted.place}: column {column!r} is read as the label" for column in guessed]
    if classes:
        notes += label_notes(f"dataset {name!r}", written)
    return [Dataset(name, tuple(items), notes=tuple(notes), unusable=tuple(unusable))]


def _parse(path: Path) -> _Wanted:
    place, mark, query = path.name.partition("?")
    if not mark or path.exists():
        return _Wanted(path)
    given = parse_qsl(query, keep_blank_values=True)
    options = dict(given)
    if len(options) < len(given):
        raise UserError(f"hf:{path}: an option is there twice; write several splits as split=train,test")
    if unknown := [option for option in options if option not in _OPTIONS]:
        raise UserError(f"hf:{path}: unknown option {unknown[0]!r}; {nearest_names(unknown[0], _OPTIONS)}")
    splits = tuple(filter(None, options.get("split", "").split(",")))
    return _Wanted(path.with_name(place), options.get("image"), options.get("label"), splits)


def _chosen_splits(wanted: _Wanted, splits: Sequence[SplitTables]) -> list[SplitTables]:
    names = [split.name for split in splits]
    for name in wanted.splits:
        if name not in names:
            raise UserError(f"{wanted.place} has no split {name!r}; {nearest_names(name, names)}")
    return [split for split in splits if not wanted.splits or split.name in wanted.splits]


def _roles(wanted: _Wanted, chosen: Sequence[SplitTables]) -> dict[str, str | None]:
    """Return the role of each split; a single one is divided by its classes, whatever its name."""
    if len(chosen) == 1:
        return {chosen[0].name: None}
    roles = {split.name: split_role(split.name) for split in chosen}
    if unknown := [name for name, role in roles.items() if role is None]:
        known = ",".join(name for name in roles if name not in unknown) or "NAME"
        raise UserError(
            f"{wanted.place}: the split {unknown[0]!r} is neither train nor validation nor test; choose with "
            f"hf:{wanted.place}?split={known}"
        )
    return roles


def _rows(wanted: _Wanted, split: SplitTables, folder: Path) -> Iterator[tuple[str, int, str | None, list[str]]]:
    """Write a split's images and yield for every row the split, its number, the image's path and the labels."""
    image = _column(wanted, split, "image", wanted.image, split.images, _IMAGE_NAMES)
    label = None
    if wanted.label is not None or split.labels:
        label = _column(wanted, split, "label", wanted.label, split.labels, LABEL_NAMES)
    names = split.class_names.get(label or "")
    target = make_folder(folder / f"split-{split.name}")
    number = 0
    for batch in split.batches([image] if label is None else [image, label]):
        images = batch.column(image).to_pylist()
        labels = [None] * len(images) if label is None else batch.column(label).to_pylist()
        for content, value in zip(images, labels, strict=True):
            place = _write(content, target / f"{number:08d}", wanted.place)
            values = value if isinstance(value, list) else [value]
            yield split.name, number, place, sorted({clean_label(_label_text(each, names)) for each in values} - {""})
            number += 1


def _column(
    wanted: _Wanted, split: SplitTables, kind: str, typed: str | None, likely: Sequence[str], usual: Sequence[str]
) -> str:
    if typed is not None:
        if typed not in split.columns:
            raise UserError(f"{wanted.place} has no column {typed!r}; {nearest_names(typed, split.columns)}")
        return typed
    if len(likely) == 1:
        return likely[0]
    if found := [name for name in usual if name in likely][:1]:
        return found[0]
    among = ", ".join(map(shown, likely or split.columns))
    raise UserError(
        f"{wanted.place}: which column is the {kind}? there are {among}; write hf:{wanted.place}?{kind}=COLUMN"
    )


def _write(content: Any, target: Path, place: Path) -> str | None:
    """Write one image and return its path; that of a file that exists already is taken as it is."""
    if isinstance(content, dict):
        data, path = content.get("bytes"), content.get("path")
    else:
        data, path = (content, None) if isinstance(content, bytes) else (None, content)
    if data is None:
        return None if not path else str((place / path).absolute())
    ending = Path(path).suffix.lower() if path and is_image_name(path) else ""
    file = target.with_suffix(ending or _ENDINGS.get(content_format(data[:HEAD_BYTES]) or "", ".jpg"))
    with explain_os_error(file, "write"):
        file.write_bytes(data)
    return str(file)


def _label_text(value: Any, names: Sequence[str] | None) -> str:
    if value is None or (names is not None and isinstance(value, int) and not 0 <= value < len(names)):
        return ""  # -1 marks a label that is not published
    return str(value) if names is None else names[value]
