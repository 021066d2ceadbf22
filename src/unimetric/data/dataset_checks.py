"""Checks of the benchmark datasets in a folder: counts, missing and unreadable images, duplicates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.cpu import available_cores
from unimetric.data.catalog import Item
from unimetric.data.copies import find_copies
from unimetric.data.images import ImageError, decode_image
from unimetric.data.pool import in_order
from unimetric.data.sources.benchmarks import read_benchmark
from unimetric.data.sources.benchmarks.finding import folders_above, recognise
from unimetric.data.sources.benchmarks.listing import absent_images
from unimetric.data.sources.benchmarks.published import PUBLISHED, Published, count_differences
from unimetric.errors import UserError
from unimetric.files import check_readable
from unimetric.progress import console as progress_console
from unimetric.progress import track


@dataclass(frozen=True)
class DatasetCheck:
    """Result of checking one benchmark dataset.

    Args:
        name: Its key in `PUBLISHED`, which is also the format in ``cub200:PATH``.
        folder: Its folder; None if it was not found.
        looked_in: The folders that were searched.
        items: The images that its annotation files list.
        differences: From the published counts, one phrase each.
        problem: The reason why it cannot be read, or that it lies above the searched folder, in one line.
        missing: Images that are listed but absent.
        unreadable: Files that are no images, with the reason: all that do not decode where ``decoded`` is set, else the
            empty ones and those that cannot be opened.
        duplicates: Pairs of a train image and a test image (test, query or gallery) of equal content.
        decoded: Every image was decoded.
    """

    name: str
    folder: Path | None
    looked_in: tuple[Path, ...]
    items: tuple[Item, ...] = ()
    differences: tuple[str, ...] = ()
    problem: str | None = None
    missing: tuple[Path, ...] = ()
    unreadable: tuple[tuple[Path, str], ...] = ()
    duplicates: tuple[tuple[Path, Path], ...] = ()
    decoded: bool = False

    @property
    def published(self) -> Published:
        """The dataset's published facts."""
        return PUBLISHED[self.name]

    @property
    def state(self) -> str:
        """``not found``; ``bad``, where something is damaged or missing; ``good``, duplicates and counts aside."""
        if self.folder is None:
            return "not found"
        return "bad" if self.problem or self.missing or self.unreadable else "good"

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return images and classes by role, the roles of the published counts first."""
        roles = dict.fromkeys([*self.published.classes, *(item.role or "none" for item in self.items)])
        counts = {}
        for role in roles:
            members = [item for item in self.items if (item.role or "none") == role]
            counts[role] = (len(members), len({item.label for item in members}))
        return counts

    def as_json(self) -> dict[str, Any]:
        """Return plain values, for ``--json``."""
        return {
            "name": self.name,
            "title": self.published.title,
            "state": self.state,
            "folder": None if self.folder is None else str(self.folder),
            "looked_in": [str(path) for path in self.looked_in],
            "problem": self.problem,
            "images": {role: images for role, (images, _) in self.counts().items()},
            "classes": {role: classes for role, (_, classes) in self.counts().items()},
            "published": _published_counts(self.published),
            "differences": list(self.differences),
            "missing": [str(path) for path in self.missing],
            "decoded": self.decoded,
            "unreadable": [{"path": str(path), "reason": reason} for path, reason in self.unreadable],
            "duplicates": [{"train": str(train), "test": str(test)} for train, test in self.duplicates],
            "download": {"from": self.published.home, "files": list(self.published.download)},
        }


def list_datasets() -> list[dict[str, Any]]:
    """Return the benchmark datasets with their published counts, as plain values."""
    return [
        {"name": name, "title": published.title, **_published_counts(published), "home": published.home}
        for name, published in PUBLISHED.items()
    ]


def check_datasets(root: Path, *, decode: bool = False) -> list[DatasetCheck]:
    """Look for every benchmark dataset in a folder that holds them, or is one, and check those found.

    With ``decode``, every image is decoded, which takes minutes for a hundred thousand.
    """
    places = _places(root)
    return [_check(name, root, places, decode) for name in PUBLISHED]


def exit_code(checks: Sequence[DatasetCheck]) -> int:
    """Return 0 if something was found and all of it is good; else 1."""
    states = [check.state for check in checks]
    return 0 if "good" in states and "bad" not in states else 1


def _places(root: Path) -> dict[Path, list[str]]:
    """Return the folder, its children, and theirs where they are no dataset, with the datasets recognised in each."""
    check_readable(root, "that holds the datasets")
    places = {root: recognise(root)}
    for child in _folders(root):
        places[child] = recognise(child)
        if not places[child] and not places[root]:
            places |= {grandchild: recognise(grandchild) for grandchild in _folders(child)}
    return places


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if not child.name.startswith(".") and child.is_dir())
    except OSError:
        return []  # not among the folders that the user gave


def _check(name: str, root: Path, places: Mapping[Path, Sequence[str]], decode: bool) -> DatasetCheck:
    usual = [root / folder for folder in PUBLISHED[name].folders]
    looked_in = (root, *usual)
    recognised = [place for place, names in places.items() if name in names]
    # By its content first: a folder of the usual name may be half unpacked, or something else.
    found = next((place for place in usual if place in recognised), next(iter(recognised), None))
    found = found or next((place for place in usual if place in places and not places[place]), None)
    if found is None:
        above = next((folder for folder in folders_above(root) if name in recognise(folder)), None)
        too_low = f"{root} is too low for {PUBLISHED[name].title}: it lies in {above}; check that folder"
        return DatasetCheck(name, None, looked_in, problem=too_low if above else None)
    try:
        # Images are checked one by one below.
        (dataset,) = read_benchmark(name, found, require_images=False)
        items, missing = dataset.items, tuple(absent_images(dataset.items))
    except UserError as error:
        return DatasetCheck(name, found, looked_in, problem=str(error))
    absent = set(missing)
    present = [item for item in items if item.path not in absent]
    tested = ("test", "query", "gallery")
    train, test = ([item.path for item in present if (item.role in tested) == side] for side in (False, True))
    copies = find_copies(train, test)
    unreadable = copies.unreadable
    if decode:
        unreadable |= _undecodable(name, [item.path for item in present if item.path not in unreadable])
    return DatasetCheck(
        name,
        found,
        looked_in,
        items=items,
        differences=tuple(count_differences(name, items)),
        missing=missing,
        unreadable=tuple(sorted(unreadable.items())),
        duplicates=copies.pairs,
        decoded=decode,
    )


def _undecodable(name: str, paths: Sequence[Path]) -> dict[Path, str]:
    """Return the reasons of the files that do not decode; decoding releases Python's lock."""
    cores = available_cores()
    reasons = in_order(_decoding_problem, paths, threads=cores, ahead=4 * cores)
    if paths and progress_console.is_terminal:
        reasons = track(reasons, f"Decoding {name}", total=len(paths))
    return {path: reason for path, reason in zip(paths, reasons, strict=True) if reason}


def _decoding_problem(path: Path) -> str:
    try:
        decode_image(path)
    except ImageError as error:
        return error.reason
    return ""


def _published_counts(published: Published) -> dict[str, Any]:
    return {"all_images": published.all_images, "images": dict(published.images), "classes": dict(published.classes)}
