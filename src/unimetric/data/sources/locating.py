"""Find the images that a manifest names, also where it was written on another system or without endings."""

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from unimetric.data.images import SUFFIXES, image_file
from unimetric.data.sources.remote import is_remote
from unimetric.errors import UserError, escaped

_LONGEST = 300
"""Characters of a path that a message repeats."""
_LAYOUTS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    lambda name: "/".join([*name[:3], name]),
    *((lambda name, first=first: f"{name[:first]}/{name}") for first in (1, 2, 3)),
    lambda name: f"{name[:2]}/{name[2:4]}/{name}",
)
"""Places of an image below its folder: there, or in folders of its name's first characters, as of large sets."""
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")


def locate_images(
    manifest: Path, texts: Sequence[str], row_place: Callable[[int], str]
) -> tuple[list[Path], tuple[str, ...]]:
    """Return the path of the image that each row names, and remarks; a `UserError` if images are missing.

    A path is relative to the manifest's folder, or absolute. Where there is no such file, it is also read without white
    space around it, with ``/`` for ``\\``, in the Unicode forms NFC and NFD, and with ``~`` for the home folder. Where
    no row at all names a file, images may lack their ending, and may all lie in one folder beside the manifest: the one
    that holds the most of them, by itself or in folders named after the images' first characters (``1/4/a/14ac.jpg``).
    """
    folder = manifest.parent
    found = {
        text: next((place for spelling in _spellings(text) if _is_file(place := folder / spelling)), None)
        for text in dict.fromkeys(texts)
    }
    notes: tuple[str, ...] = ()
    if not any(found.values()):
        guess, found = _without_endings(manifest, found)
        if guess is not None:
            notes = (
                f"the manifest {manifest} names images without their endings or folder: they are read from {guess}",
            )
    missing = [row for row, text in enumerate(texts) if found[text] is None]
    if missing:
        raise _missing(manifest, texts, missing, row_place)
    return [path for text in texts if (path := found[text]) is not None], notes


def _spellings(text: str) -> Iterable[str | Path]:
    yield text
    stripped = text.strip()
    yield stripped
    if "\\" in stripped:
        stripped = stripped.replace("\\", "/")
        yield stripped
    if not stripped.isascii():  # macOS writes names in another form than most programs
        yield from (unicodedata.normalize(form, stripped) for form in ("NFC", "NFD"))
    if stripped.startswith("~/"):
        yield os.path.expanduser(stripped)  # noqa: PTH111 - leaves it as it is where there is no home folder


def _without_endings(manifest: Path, texts: Iterable[str]) -> tuple[Path | None, dict[str, Path | None]]:
    """Return the one folder, this or a child, that holds images of these names, if need be without their endings.

    Of several that hold as many, it is the one called like the manifest: ``train`` of ``train.csv``.
    """
    folder, texts = manifest.parent, list(texts)
    nowhere: dict[str, Path | None] = dict.fromkeys(texts)
    # Paths that lead anywhere else name no image here.
    if any(_URL.match(text) or PureWindowsPath(text).is_absolute() or ".." in Path(text).parts for text in texts):
        return None, nowhere
    names = {text: text.strip().replace("\\", "/") for text in texts}
    layouts = _LAYOUTS if all(re.fullmatch(r"[\w-]{4}[^/]*", name) for name in names.values()) else _LAYOUTS[:1]
    best: list[tuple[int, Path, dict[str, Path | None]]] = []
    for layout in layouts:
        # Folder by folder, since most of them are not there.
        below: dict[Path, dict[str, str]] = {}
        for text, name in names.items():
            place = Path(layout(name))
            below.setdefault(place.parent, {})[text] = place.name
        for base in (folder, *_child_folders(folder)):
            found: dict[str, Path | None] = {}
            for parent, wanted in below.items():
                if images := _images_by_name(base / parent):
                    found |= {text: images.get(name) for text, name in wanted.items()}
            if count := sum(path is not None for path in found.values()):
                best.append((count, base, nowhere | found))
        if any(count == len(texts) for count, *_ in best):
            break
    best.sort(key=lambda entry: (-entry[0], entry[1].name.casefold() != manifest.stem.casefold()))
    if not best:
        return None, nowhere
    count, base, found = best[0]
    other = next((place for number, place, images in best[1:] if number == count and images != found), None)
    if other is not None and base.name.casefold() != manifest.stem.casefold():
        raise UserError(
            f"the manifest {manifest} names images without their endings or folder, and {count} of them are in {base} "
            f"as in {other}; write the folder into the paths"
        )
    return base, found


def _child_folders(folder: Path) -> list[Path]:
    try:
        return sorted(child for child in folder.iterdir() if child.is_dir())
    except OSError:
        return []  # the missing images are reported


def _images_by_name(folder: Path) -> dict[str, Path | None]:
    """Return a folder's images by name with and without ending; None where two share a name without ending."""
    try:
        images = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    except (OSError, ValueError):
        return {}
    by_name: dict[str, Path | None] = {}
    for path in images:
        by_name[path.stem] = None if path.stem in by_name else path
    return by_name | {path.name: path for path in images}


def _missing(manifest: Path, texts: Sequence[str], rows: list[int], row_place: Callable[[int], str]) -> UserError:
    remedy = _remedy(manifest.parent, texts[rows[0]].strip())
    names = list(
        dict.fromkeys(manifest.parent / texts[row] if not _URL.match(texts[row]) else texts[row] for row in rows)
    )
    listed = ", ".join(escaped(name)[:_LONGEST] for name in names[:5]) + ", ..." * (len(names) > 5)
    return UserError(
        f"the manifest {manifest}, from {row_place(rows[0])} on, names {len(names)} missing images "
        f"({len(texts)} in all): {listed}; {remedy}"
    )


def _remedy(folder: Path, text: str) -> str:
    """Return what to do about a path that leads to no image, by the likely mistake."""
    if text.lower().startswith("file://"):
        return "write paths without file://"
    if is_remote(text):
        return "check the names of these objects"
    if _URL.match(text):
        return "download the images and write their paths"
    if PureWindowsPath(text).drive or "\\" in text:
        return f"write paths with / instead of \\, relative to {folder}"
    try:
        if (folder / text).is_dir():
            return "this is a folder; write a row for each of its images"
    except (OSError, ValueError):
        return f"paths are relative to {folder}"
    for spelling in (text, unquote(text), text.strip("'\"/")):
        if (found := _in_any_case(folder, spelling)) is not None:
            return f"there is {escaped(found)}: write the path as the file is named"
    return f"paths are relative to {folder}"


def _in_any_case(folder: Path, text: str) -> Path | None:
    """Return the file at a path whose names may be written in other capitals."""
    place, *names = (folder / text).parts
    for name in names:
        try:
            path = os.path.join(place, name)  # noqa: PTH118
            if not os.path.lexists(path):
                path = next(entry.path for entry in os.scandir(place) if entry.name.casefold() == name.casefold())
        except (OSError, ValueError, StopIteration):
            return None
        place = path
    return Path(place) if _is_file(Path(place)) else None


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(os.stat(image_file(path)).st_mode)  # noqa: PTH116 (three times as fast, for 100,000 images)
    except (OSError, ValueError):
        return False
