"""Sources of images and labels, one file per format; a source is named by a string.

A source string is ``[NAME=][FORMAT:]PATH``:

- ``PATH``: a folder of class folders (see `folder`), or a manifest ``.csv``, ``.tsv``, ``.parquet``, ``.pq`` (see
  `manifest`); ``~`` is the home folder;
- ``FORMAT``: one of `SOURCES`, where it does not follow from the path; the folder of a benchmark dataset is
  recognised by its annotation files;
- ``NAME``: the dataset's name, or the front part of the names where the source holds several;
- ``hf:PATH``: a set of the library ``datasets`` (see `hf`);
- a URI of object storage, ``s3://bucket/birds``, in the place of ``PATH``: its objects are copied into the cache (see
  `remote`);
- the bare word ``demo``: the demo collections, built on first use (a folder of that name is ``./demo``).

An existing path that contains ``=`` or ``:`` is read as a path.
"""

import re
import stat
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from unimetric.data.catalog import Dataset
from unimetric.data.images import is_image_name
from unimetric.data.labels import clean_label, near_twins
from unimetric.data.sources.benchmarks import BENCHMARKS, read_benchmark, refuse_neighbours
from unimetric.data.sources.benchmarks.finding import recognise
from unimetric.data.sources.benchmarks.published import PUBLISHED
from unimetric.data.sources.folder import WHOLE, read_folder, read_images
from unimetric.data.sources.hf import read_hf
from unimetric.data.sources.manifest import read_manifest
from unimetric.data.sources.metadata import Metadata, read_metadata
from unimetric.data.sources.remote import is_remote, local_copy
from unimetric.data.sources.split_names import named_as_splits
from unimetric.data.sources.table import SUFFIXES
from unimetric.errors import UserError, nearest_names, shown
from unimetric.files import path_exists, user_path


def read_demo(folder: Path | None, name: str | None = None) -> list[Dataset]:
    """Read the demo collections, built first where ``folder`` (by default in the cache) lacks them.

    Raises:
        UserError: the demo's packages are not installed, or the folder cannot be written.
    """
    # Its packages are an extra, and slow to import.
    from unimetric.data.sources.demo import build_demo

    return read_folder(build_demo(folder), name)


SOURCES: dict[str, Callable[[Path, str | None], list[Dataset]]] = {
    "folder": read_folder,
    "manifest": read_manifest,
    "demo": read_demo,
    "hf": read_hf,
    **{source: partial(read_benchmark, source) for source in BENCHMARKS},
}
"""The reader of every format: it takes the path and the name given, or None."""

# No separators or colons, so that neither a path that holds "=" nor a format is taken for a name.
_NAME = re.compile(r"([^=/\\:]*)=(.*)", re.DOTALL)
# Two letters at least: "C:" is a Windows drive.
_FORMAT = re.compile(r"([A-Za-z][A-Za-z0-9_-]+):(.*)", re.DOTALL)


def read_source(text: str, *, classes: bool = True) -> list[Dataset]:
    """Read the datasets that one source string names (see above); with ``classes``, refuse images without a label.

    Raises:
        UserError: the string is malformed, the format unknown, the path missing, or its content wrong.
    """
    name, format_name, place = _parse(text)
    if format_name == "demo":
        return read_demo(user_path(place) if place else None, name)
    if not place:
        raise UserError(f"the source {text!r} names no path; write [NAME=][FORMAT:]PATH")
    path = local_copy(place) if is_remote(place) else user_path(place)
    if format_name is None:
        format_name = _format_of(path)
        if format_name == "folder" and classes:
            refuse_neighbours(path)
    if format_name == "folder" and not classes:
        return read_images(path, name)
    if format_name == "manifest":
        return read_manifest(path, name, classes=classes)
    if format_name == "hf":
        return read_hf(path, name, classes=classes)
    return SOURCES[format_name](path, name)


def read_source_metadata(text: str, texts: Collection[str] = ()) -> Metadata:
    """Read the further columns of a source (see `read_metadata`, with ``texts``); only manifests have some.

    Raises:
        UserError: as `read_manifest`.
    """
    name, format_name, place = _parse(text)
    if format_name == "demo":
        return Metadata({})
    path = local_copy(place) if is_remote(place) else user_path(place)
    return read_metadata(path, name, texts) if (format_name or _format_of(path)) == "manifest" else Metadata({})


def read_sources(texts: Sequence[str], *, classes: bool = True) -> list[Dataset]:
    """Read all sources, in the given order; ``classes`` as for `read_source`.

    Raises:
        UserError: none is given, two datasets have the same name, or one source cannot be read.
    """
    if not texts:
        raise UserError("no source is given; name a folder of class folders, a .csv or .parquet manifest, or demo")
    datasets: list[Dataset] = []
    origin: dict[str, str] = {}
    for text in texts:
        for dataset in read_source(text, classes=classes):
            if dataset.name in origin:
                raise UserError(
                    f"the sources {origin[dataset.name]!r} and {text!r} both hold a dataset "
                    f"{dataset.name!r}; give one of them another name, as in NAME=PATH"
                )
            origin[dataset.name] = text
            datasets.append(dataset)
    notes = (*datasets[-1].notes, *_doubtful_names(datasets))
    return [*datasets[:-1], replace(datasets[-1], notes=notes)]


def _doubtful_names(datasets: Sequence[Dataset]) -> Iterator[str]:
    """Yield remarks on datasets and classes that are named as splits, and on datasets with the same names."""
    for twins in near_twins(dataset.name for dataset in datasets):
        yield f"the datasets {' and '.join(map(shown, twins))} have nearly the same name; join them if they are one"
    alike: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for dataset in datasets:
        alike[dataset.labels].append(dataset.name)
    for classes, names in alike.items():
        # Numbers count the classes of each set.
        if len(names) > 1 < len(classes) and not all(map(str.isdecimal, classes)):
            first = " and ".join([*map(shown, names[:3]), *["others"] * (len(names) > 3)])
            yield (
                f"the datasets {first} have classes of the same names, which count as different classes; put "
                "the images of a class into one folder if they are one dataset"
            )
    without_split = [dataset.name for dataset in datasets if all(item.role is None for item in dataset.items)]
    if named := [name for names in named_as_splits(without_split).values() for name in names]:
        are = f"dataset {shown(named[0])} is" if len(named) == 1 else f"datasets {' and '.join(map(shown, named))} are"
        yield f"{are} named as a split but divided by classes; to keep the split, give the folder above {named[0]!r}"
    for dataset in datasets:
        labels = [label for found in named_as_splits(dataset.labels).values() for label in found]
        if len(labels) > 1:
            yield f"dataset {dataset.name!r}: {' and '.join(map(shown, labels))} are read as classes, not as splits"
        all_images = [item.label for item in dataset.items if item.label.casefold() in WHOLE]
        if all_images and 2 * len(all_images) >= len(dataset.items):
            yield (
                f"dataset {dataset.name!r}: the class {shown(all_images[0])} is named as a folder of all images; if "
                "their labels are in other files, write a manifest"
            )


def _parse(text: str) -> tuple[str | None, str | None, str]:
    """Split a source string into name, format and path; the first two may be None, the last may be empty."""
    name: str | None = None
    if path_exists(text) and text != "demo":
        return None, None, text
    if match := _NAME.fullmatch(text):
        name, text = clean_label(match[1]), match[2]
        if not name:
            raise UserError(f"the source {match.group()!r} has an empty name before '='; write NAME=PATH")
    if text == "demo":
        return name, "demo", ""
    if not is_remote(text) and not path_exists(text) and (match := _FORMAT.fullmatch(text)):
        if match[1].lower() in ("http", "https"):
            raise UserError(f"cannot read {text}: images at {match[1]}:// are not downloaded; download them first")
        if match[1] not in SOURCES:
            raise UserError(f"unknown format {match[1]!r} in the source {text!r}; {nearest_names(match[1], SOURCES)}")
        return name, match[1], match[2]
    return name, None, text


def _format_of(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except PermissionError as error:
        raise UserError(f"cannot read {path}: no permission; make its folder readable") from error
    except (OSError, ValueError):
        mode = None
    if mode is not None and stat.S_ISDIR(mode):
        return _folder_format(path)
    if path.suffix.lower() in SUFFIXES:
        return "manifest"
    if mode is None:
        raise UserError(f"there is no file or folder {path}; check the path, or write 'demo' for the demo data")
    if path.suffix.lower() in (".xlsx", ".xls", ".ods", ".json", ".jsonl", ".ndjson", ".xml", ".txt", ".mat"):
        raise UserError(
            f"cannot read {path}: save it as a table {' or '.join(SUFFIXES)} with the columns path and label, and "
            "x, y, width, height for boxes"
        )
    if path.suffix.lower() in (".tar", ".tgz", ".gz", ".zip", ".7z", ".rar"):
        raise UserError(f"cannot read {path}: unpack it, or embed the images of a .tar with unimetric embed --shard")
    if is_image_name(path):
        raise UserError(f"{path} is one image; give the folder that holds it, or a manifest")
    raise UserError(
        f"cannot determine the format of {path}: it is not a folder, and does not end in "
        f"{' or '.join(SUFFIXES)}; write FORMAT:PATH with one of {', '.join(SOURCES)}"
    )


def _folder_format(path: Path) -> str:
    benchmarks = recognise(path)
    if len(benchmarks) > 1:
        titles = " and ".join(PUBLISHED[name].title for name in benchmarks)
        raise UserError(
            f"cannot determine the format of {path}: it holds annotation files of {titles}; "
            f"write FORMAT:PATH with one of {', '.join(benchmarks)}"
        )
    return benchmarks[0] if benchmarks else "folder"
