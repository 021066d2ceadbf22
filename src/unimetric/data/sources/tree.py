"""The tree of folders and images below a folder, in memory.

Entries that cannot be opened as files, or named, are part of it: pipes, broken links, names that are not UTF-8.
"""

import errno
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path

from unimetric.data.catalog import Dataset, Unusable
from unimetric.data.images import SUFFIXES, UNSUPPORTED, file_reason, is_image_name
from unimetric.errors import UserError, escaped
from unimetric.files import check_readable

_CLUTTER = frozenset({"__MACOSX", "Thumbs.db", "desktop.ini", "@eaDir", "$RECYCLE.BIN", "lost+found"})
"""Files and folders of operating systems, besides names with a leading dot."""
_REMEDIES = {
    ".arrow": "; write hf: before the path of a set that the library datasets saved",
    ".parquet": "; write hf: before the path if the images are in the .parquet files",
    ".tar": "; unpack the .tar files, or embed their images with unimetric embed --shard",
    ".zip": "; unpack the .zip files",
}
"""Advice for files that hold images."""
_ENDINGS = SUFFIXES | UNSUPPORTED.keys()
_LEADS_BACK = "a link that leads back to a folder it lies in"
_NO_TEXT = "its name is not valid UTF-8; rename it"
_KINDS = {
    stat.S_IFIFO: "a pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


@dataclass(frozen=True, eq=False, slots=True)
class Folder:
    """Names in a folder, sorted, of which most are never needed as paths, and the folders below it."""

    path: Path
    images: list[str]
    others: list[str]
    children: "list[Folder]"
    image_count: int
    """Images here and below."""
    unusable: list[Unusable]
    """Entries here that cannot be opened as a file, or named."""
    linked: bool
    """A link lies here or below; without one, no image is reached twice."""

    def image_paths(self) -> Iterator[Path]:
        """Return the images directly in this folder."""
        return _below(self.path, self.images)

    def walk(self, without: "Set[Folder]" = frozenset()) -> "Iterator[Folder]":
        """Return this folder and all below it, except those ``without`` and all below them."""
        if self not in without:
            yield self
            for child in self.children:
                yield from child.walk(without)

    def all_images(self) -> Iterator[Path]:
        """Return the images here and below."""
        return (path for folder in self.walk() for path in folder.image_paths())

    def all_unusable(self) -> Iterator[Unusable]:
        """Return the unusable entries here and below."""
        return (entry for folder in self.walk() for entry in folder.unusable)

    def class_folders(self) -> "list[Folder]":
        """Return the children that hold images at any depth."""
        return [child for child in self.children if child.image_count]


def read_tree(root: Path) -> Folder:
    """Scan a folder; a `UserError` if it is missing, unreadable or no folder, or holds no images."""
    if not _is_text(str(root)):
        raise UserError(f"the name of the folder {escaped(root)} is not valid UTF-8; rename it")
    check_readable(root, "that holds the class folders")
    tree = _scan(root, ())
    if not any(path.suffix.lower() in SUFFIXES for path in tree.all_images()):
        raise UserError(_no_images(tree))
    return tree


def unusable_files(datasets: Iterable[Dataset], strict: bool = False) -> list[Unusable]:
    """Return the unusable entries of the datasets' folders; with ``strict``, refuse one named like an image."""
    found = [entry for dataset in datasets for entry in dataset.unusable]
    for entry in found:
        if strict and is_image_name(entry.path):
            raise UserError(f"{escaped(entry.path)}: {entry.reason}; remove it from the folder")
    return found


def _scan(path: Path, ancestors: tuple[tuple[int, int], ...]) -> Folder:
    """Return everything below a folder, sorted; ``ancestors`` are the (device, inode) pairs of the folders above."""
    try:
        status = path.stat()
        with os.scandir(path) as entries:
            found = list(entries)
    except OSError as error:
        raise UserError(f"cannot read the folder {path}: {error.strerror}; make it readable or move it away") from error
    # Whole lists at a time, because a folder may hold a hundred thousand files. As long as links are not followed,
    # the kind of an entry was listed with its name.
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
    unusable = [_without_text(path, name) for name in sorted([*unnamed, *special_unnamed])]
    for entry in sorted(links, key=lambda link: link.name):
        folder = _is_folder(entry)
        leads_back = folder and ((status := entry.stat()).st_dev, status.st_ino) in above
        reason = _LEADS_BACK if leads_back else None if folder else _defect(entry)
        if reason is not None:
            unusable.append(Unusable(path / entry.name, reason))
        else:
            (folders if folder else images if _is_image(entry.name) else others).append(entry.name)
    children = [_scan(child, above) for child in _below(path, sorted(folders))]
    count = len(images) + sum(child.image_count for child in children)
    linked = bool(links) or any(child.linked for child in children)
    return Folder(path, sorted(images), sorted(others), children, count, unusable, linked)


def _wanted(names: list[str]) -> tuple[list[str], list[str]]:
    """Return the names in a folder without hidden ones and clutter; and those of them that are not UTF-8."""
    # No name holds a slash, so all can be checked at once.
    joined = "/" + "/".join(names)
    if "/." in joined or not _CLUTTER.isdisjoint(names):
        names = [name for name in names if not name.startswith(".") and name not in _CLUTTER]
    if joined.isascii() or _is_text(joined):
        return names, []
    return [name for name in names if _is_text(name)], [name for name in names if not _is_text(name)]


def _below(folder: Path, names: Iterable[str]) -> Iterator[Path]:
    """Return the paths of names in a folder."""
    # `folder / name` parses each name, which a name found by a scan does not need: reading a folder of 150,000 images
    # takes almost half as long again. Pathlib's own walks use a private method instead; where a Python lacks it,
    # `folder / name` makes equal paths.
    return map(getattr(folder, "_make_child_relpath", folder.__truediv__), names)


def _is_image(name: str) -> bool:
    """As `is_image_name`, of a name without a leading dot, many times faster."""
    ending = name[name.rfind(".") :]
    return ending in _ENDINGS or ending.lower() in _ENDINGS


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link to itself


def _no_images(tree: Folder) -> str:
    suffixes = " ".join(sorted(suffix[1:] for suffix in SUFFIXES))
    names = [Path(name) for folder in tree.walk() for name in (*folder.images, *folder.others)]
    counts = Counter(name.suffix.lower() or "(no suffix)" for name in names)
    kinds = ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(3))
    found = f"{sum(counts.values())} other files ({kinds})" if counts else "no files at all"
    first = next(tree.all_unusable(), None)
    if first is not None:
        found += f" and {escaped(first.path)}, {first.reason}"
    remedy = next((words for ending, words in _REMEDIES.items() if ending in counts), "")
    return f"no images in {tree.path}: found {found}; looked for files that end in {suffixes}{remedy}"


def _is_text(name: str) -> bool:
    """Return true for a name that is valid Unicode, as reports and indexes need it."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _without_text(folder: Path, name: str) -> Unusable:
    """Return the entry for a name that is not UTF-8; its path has an escape for each such byte."""
    return Unusable(Path(str(folder / name).encode("utf-8", "backslashreplace").decode()), _NO_TEXT)


def _defect(entry: os.DirEntry[str]) -> str | None:
    """Return the reason why an entry, no folder, cannot be opened as a file, or None; opening a pipe would block."""
    try:
        kind = stat.S_IFMT(entry.stat().st_mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself"
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        return "a link to nothing" if absent and entry.is_symlink() else file_reason(error)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "not a regular file")
