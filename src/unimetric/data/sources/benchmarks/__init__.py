"""The eight benchmark datasets of the field, read from the folders that their authors distribute."""

import os
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path

from unimetric.data.catalog import Dataset, Item
from unimetric.data.sources.benchmarks.aircraft import read_aircraft
from unimetric.data.sources.benchmarks.birds import read_cub200, read_nabirds
from unimetric.data.sources.benchmarks.cars196 import read_cars196
from unimetric.data.sources.benchmarks.dogs import read_dogs
from unimetric.data.sources.benchmarks.finding import folders_above, recognise
from unimetric.data.sources.benchmarks.flowers102 import read_flowers102
from unimetric.data.sources.benchmarks.inshop import read_inshop
from unimetric.data.sources.benchmarks.listing import Listing, make_dataset
from unimetric.data.sources.benchmarks.published import PUBLISHED
from unimetric.data.sources.benchmarks.sop import read_sop
from unimetric.errors import UserError

BENCHMARKS: dict[str, Callable[[Path, bool], Listing]] = {
    "cub200": read_cub200,
    "cars196": read_cars196,
    "sop": read_sop,
    "inshop": read_inshop,
    "nabirds": read_nabirds,
    "dogs": read_dogs,
    "flowers102": read_flowers102,
    "aircraft": read_aircraft,
}
"""The reader of each benchmark dataset; `PUBLISHED` has its counts under the same name.

It takes the folder, as the dataset's authors distribute it, and True to refuse one without the folder of images. It
raises a `UserError` for another folder, and for annotation files that are missing or damaged."""

_FEW = 100
"""Among more folders than these, only those of the usual names are searched for benchmark datasets."""


def read_benchmark(source: str, folder: Path, name: str | None = None, *, require_images: bool = True) -> list[Dataset]:
    """Read the images that the annotation files of a benchmark dataset list, in their order.

    Args:
        source: A key of `BENCHMARKS`.
        folder: The dataset's folder.
        name: The dataset's name; by default that of the source.
        require_images: Refuse a dataset of which a listed image is absent.

    Raises:
        UserError: another folder was given, an annotation file is missing or damaged, or images are absent.
    """
    listing = BENCHMARKS[source](folder, require_images)
    return [make_dataset(source, name, listing, require_images=require_images)]


def refuse_neighbours(path: Path) -> None:
    """Refuse a folder above or within a benchmark dataset's, of which the folders would be taken for classes."""
    for folder in _likely_datasets(path):
        for name in recognise(folder):
            raise _misplaced(path, "one level too high", name, folder)
    place = path.resolve()
    for folder in folders_above(path):
        for name in recognise(folder):
            if any(item.path.is_relative_to(place) for item in _listed(name, folder)):
                raise _misplaced(path, "too low", name, folder)


def _misplaced(path: Path, where: str, name: str, folder: Path) -> UserError:
    return UserError(
        f"{path} is {where} for {PUBLISHED[name].title}, which lies in {folder}: give {name}:{folder}, "
        f"or folder:{path} if its folders are to be classes all the same"
    )


def _likely_datasets(path: Path) -> list[Path]:
    """Return the folders in this one that may be benchmark datasets': all of a few, else those of the usual names."""
    usual = [path / folder for published in PUBLISHED.values() for folder in published.folders]
    try:
        with os.scandir(path) as entries:
            children = [path / entry.name for entry in islice(entries, _FEW + 1)]
    except OSError:
        return []  # reported when it is read
    return usual if len(children) > _FEW else sorted(children)


def _listed(name: str, folder: Path) -> Sequence[Item]:
    try:
        return read_benchmark(name, folder, require_images=False)[0].items
    except UserError:
        return []  # a folder above, which nobody asked for, that is damaged or another dataset's
