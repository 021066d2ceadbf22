"""Entries of folders that cannot be opened as files, or named: pipes, broken links, names that are not UTF-8."""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from unimetric.data.catalog import Dataset, Unusable
from unimetric.data.images import file_reason, is_image_name
from unimetric.errors import UserError, escaped

LEADS_BACK = "a link that leads back to a folder it lies in"
_NO_TEXT = "its name is not valid UTF-8; rename it"
_KINDS = {
    stat.S_IFIFO: "a pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


def unusable_files(datasets: Iterable[Dataset], strict: bool = False) -> list[Unusable]:
    """Return the unusable entries of the datasets' folders.

    Raises:
        UserError: ``strict`` is set, and one of these has the name of an image.
    """
    found = [entry for dataset in datasets for entry in dataset.unusable]
    for entry in found:
        if strict and is_image_name(entry.path):
            raise UserError(f"{escaped(entry.path)}: {entry.reason}; remove it from the folder")
    return found


def is_text(name: str) -> bool:
    """Return true for a name that is valid Unicode, as reports and indexes need it."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def without_text(folder: Path, name: str) -> Unusable:
    """Return the entry for a name that is not UTF-8; its path has an escape for each such byte."""
    return Unusable(Path(str(folder / name).encode("utf-8", "backslashreplace").decode()), _NO_TEXT)


def defect(entry: os.DirEntry[str]) -> str | None:
    """Return the reason why an entry, no folder, cannot be opened as a file, or None; opening a pipe would block."""
    try:
        kind = stat.S_IFMT(entry.stat().st_mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link that leads back to itself"
        absent = isinstance(error, FileNotFoundError | NotADirectoryError)
        return "a link to nothing" if absent and entry.is_symlink() else file_reason(error)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "not a regular file")
