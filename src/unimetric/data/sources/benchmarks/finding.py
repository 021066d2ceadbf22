"""Find the folder, the annotation files and the images of a benchmark dataset."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from unimetric.data.sources.benchmarks.published import PUBLISHED
from unimetric.errors import UserError
from unimetric.files import check_readable


def recognise(folder: Path) -> list[str]:
    """Return the benchmark datasets, as in `PUBLISHED`, of which a folder holds the annotation files.

    Where the files of one dataset are among those of another (CUB-200-2011 and NABirds), only the other counts.
    """
    found = {
        name: {file for group in published.marks if _all_exist(folder, group) for file in group}
        for name, published in PUBLISHED.items()
    }
    return [name for name, files in found.items() if files and not any(files < others for others in found.values())]


def find_file(folder: Path, source: str, names: Sequence[str]) -> Path:
    """Return the first of the named files that a dataset's folder holds, the usual place first.

    Raises:
        UserError: there is no such folder, or it holds none of the files; if it is one level too high or too low,
            the message names the right one.
    """
    title = PUBLISHED[source].title
    check_readable(folder, f"of {title}")
    held = recognise(folder)
    if held and source not in held:
        raise UserError(f"{folder} is the folder of {PUBLISHED[held[0]].title}, not {title}; write {held[0]}:{folder}")
    if found := find_optional(folder, names):
        return found
    if not held:
        if meant := _child_meant(folder, source):
            raise UserError(f"{folder} is one level too high for {title}: it lies in {meant}; give that folder")
        if meant := next((place for place in folders_above(folder) if source in recognise(place)), None):
            raise UserError(f"{folder} is too low for {title}: it lies in {meant}; give that folder")
    kind = "" if source in held else f", so it is no {title} folder"
    raise UserError(f"{folder} holds no {names[0]}{kind}; {download_remedy(source)}")


def find_optional(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first of the named files that a folder holds, or None."""
    return next((folder / name for name in names if _is_there(folder / name, Path.is_file)), None)


def find_images(
    folder: Path, source: str, names: Sequence[str], *, usual: str | None = None, required: bool = True
) -> Path:
    """Return the first of the named folders of images in a dataset's folder; a `UserError` with a hint if it has none.

    If it holds none and they are not ``required``, the ``usual`` one is returned, by default the first of ``names``.
    """
    for name in names:
        if _is_there(folder / name, Path.is_dir):
            return folder / name
    usual = usual or names[0]
    if not required:
        return folder / usual
    above = folder.resolve().parent
    if any(_is_there(above / name, Path.is_dir) for name in names):
        raise UserError(
            f"{folder} is one level too low for {PUBLISHED[source].title}: its images are in {above}; give that folder"
        )
    raise UserError(
        f"{folder} has no folder {usual} with the images of {PUBLISHED[source].title}; {download_remedy(source)}"
    )


def folders_above(folder: Path) -> Sequence[Path]:
    """Return the folders that may be a dataset's if this one holds some of its images, the nearest first."""
    # Img/img/WOMEN/Dresses/id_00000002 of In-Shop.
    return folder.resolve().parents[:5]


def _is_there(path: Path, kind: Callable[[Path], bool]) -> bool:
    try:
        return kind(path)
    except PermissionError as error:
        raise UserError(f"cannot read the folder {path.parent}: no permission; make it readable") from error


def download_remedy(source: str, folder: Path | None = None) -> str:
    """Return the files to download, their address and the folder to unpack them in, for the end of an error message."""
    published = PUBLISHED[source]
    there = f"in {folder}" if folder else "there"
    return f"get {published.downloads()} from {published.home} and unpack {there}"


def _all_exist(folder: Path, names: Iterable[str]) -> bool:
    try:
        return all((folder / name).exists() for name in names)
    except OSError:
        return False


def _child_meant(folder: Path, source: str) -> Path | None:
    try:
        children = sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError as error:
        raise UserError(f"cannot read the folder {folder}: {error.strerror}; make it readable") from error
    return next((child for child in children if source in recognise(child)), None)
