"""Make a dataset of the images that annotation files list: check paths, labels and files."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from unimetric.data.catalog import Dataset, Item
from unimetric.data.sources.benchmarks.finding import download_remedy
from unimetric.data.sources.benchmarks.published import PUBLISHED, count_differences
from unimetric.errors import UserError


class Listed(NamedTuple):
    """One image as an annotation file lists it."""

    path: str
    """Relative to the folder of images, with forward slashes."""
    label: str
    role: str


class Listing(NamedTuple):
    """The images that the annotation files of one copy of a dataset list."""

    images: Path
    """The folder that their paths are relative to."""
    file: Path
    """The annotation files, for messages."""
    listed: Sequence[Listed]
    """The images, in the order of the files."""
    notes: Sequence[str] = ()


def make_dataset(source: str, name: str | None, listing: Listing, *, require_images: bool) -> Dataset:
    """Return the dataset of listed images, called ``name``, or else like its source.

    Differences from the published counts are added to its notes.

    Raises:
        UserError: a path leads out of the folder, an image is listed with two labels or in two splits, or images
            are absent though they are required.
    """
    images, file, listed, notes = listing
    called = name or source
    kept: dict[str, Listed] = {}
    repeated: list[Path] = []
    for entry in listed:
        other = kept.setdefault(entry.path, entry)
        if other is entry:
            _check_inside(file, images, entry.path)
        elif other == entry:
            repeated.append(images / entry.path)
        else:
            raise UserError(
                f"{file} lists {entry.path} twice, as {other.label!r} ({other.role}) and {entry.label!r} "
                f"({entry.role}); download it again"
            )
    items = tuple(Item(images / entry.path, entry.label, called, entry.role) for entry in kept.values())
    if require_images and (absent := absent_images(items)):
        raise _absent(source, images, file, absent, len(items))
    remarks = [f"dataset {called!r}: {note}" for note in notes]
    if differences := count_differences(source, items):
        remarks.append(
            f"dataset {called!r} differs from {PUBLISHED[source].title} as published: {'; '.join(differences)}"
        )
    return Dataset(called, items, tuple(repeated), tuple(remarks))


def absent_images(items: Iterable[Item]) -> list[Path]:
    """Return the items' paths at which there is no file, in their order; a `UserError` if a folder cannot be read.

    Each folder is listed once, which is many times faster than checking every file.
    """
    files: dict[str, set[str]] = {}
    absent = []
    for item in items:
        folder, name = os.path.split(item.path)
        if folder not in files:
            files[folder] = _files_in(folder)
        if name not in files[folder]:
            absent.append(item.path)
    return absent


def readable_names(names: Mapping[int, str]) -> dict[int, str]:
    """Return class names with spaces for underscores; equal ones get their numbers, as in "Wren (7)"."""
    plain = {number: " ".join(name.replace("_", " ").split()) or str(number) for number, name in names.items()}
    numbered = {number: f"{name} ({number})" for number, name in plain.items()}
    count = Counter(plain.values())
    labels = {number: name if count[name] == 1 else numbered[number] for number, name in plain.items()}
    # A class may have the name that another one gets by its number.
    return labels if len(set(labels.values())) == len(labels) else numbered


def _files_in(folder: str) -> set[str]:
    try:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if _is_file(entry)}
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a zero byte in the name
        return set()
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}; make it readable") from error


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False  # a link to itself


def _check_inside(file: Path, images: Path, path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or Path(path).is_absolute():
        raise UserError(f"{file} lists {path!r}, which leads out of {images}; download it again")


def _absent(source: str, images: Path, file: Path, absent: Sequence[Path], count: int) -> UserError:
    if len(absent) == count:
        what = f"none of the {count} images that {file} lists is there; the first would be {absent[0]}"
    else:
        are = "is" if len(absent) == 1 else "are"
        what = f"{len(absent)} of the {count} images that {file} lists {are} absent, the first is {absent[0]}"
    if other := _spelt_otherwise(absent[0]):
        return UserError(f"{what}, where {other.name} is instead; rename the images as they are listed")
    return UserError(f"{what}; {download_remedy(source, images)}")


def _spelt_otherwise(path: Path) -> Path | None:
    """Return the file of which the name differs from the path's in case only, or None."""
    try:
        beside = [other for other in path.parent.iterdir() if other.name != path.name]
    except (OSError, ValueError):
        return None  # there is no such folder
    return next((other for other in beside if other.name.lower() == path.name.lower()), None)
