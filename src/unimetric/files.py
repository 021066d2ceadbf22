"""Files and folders: atomic writes, explained errors, checks and the cache folder."""

import csv
import errno
import glob
import hashlib
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from unimetric.errors import UserError, WriteError


@contextmanager
def explain_os_error(path: Path, action: str) -> Iterator[None]:
    """Turn an operating-system error on ``path`` into a one-line `UserError` with the remedy.

    If ``action`` is ``write`` or ``write to``, it is a `WriteError`.
    """
    remedies = {
        errno.ENOSPC: "the disk is full; free some space or choose another folder",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another folder",
        errno.EACCES: "no permission; choose a folder that you may write to",
        errno.EPERM: "no permission; choose a folder that you may write to",
        errno.EROFS: "the file system is read-only; choose another folder",
        errno.ENOTDIR: "a part of the path is a file, not a folder; choose another path",
        errno.EISDIR: "it is a folder; choose a file name",
    }
    try:
        yield
    except OSError as error:
        remedy = remedies.get(error.errno or 0, os.strerror(error.errno) if error.errno else str(error))
        kind = WriteError if action.startswith("write") else UserError
        raise kind(f"cannot {action} {path}: {remedy}") from error


def make_folder(path: Path) -> Path:
    """Create a folder and its parents; it may exist already; a `UserError` if it cannot be made."""
    if path.exists() and not path.is_dir():
        raise UserError(f"cannot create the folder {path}: a file of that name exists; choose another path")
    with explain_os_error(path, "create the folder"):
        path.mkdir(parents=True, exist_ok=True)
    return path


def check_writable(folder: Path) -> None:
    """Refuse, before the work, a folder that cannot be created or written; nothing is created."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder: choose another path")
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise UserError(f"cannot create the folder {folder}: {nearest} is a file, not a folder; choose another path")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"cannot write to {nearest}: no permission; choose a folder that you may write to")


def check_readable(folder: Path, content: str) -> None:
    """Refuse a folder that is missing or cannot be read; ``content`` names the one that is meant."""
    try:
        folder.stat()
    except PermissionError as error:
        raise UserError(f"cannot read the folder {folder}: no permission; make it readable") from error
    except (OSError, ValueError) as error:
        raise UserError(f"there is no folder {folder}; check the path") from error
    if not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder; give the folder {content}")
    if not os.access(folder, os.R_OK | os.X_OK):
        raise UserError(f"cannot read the folder {folder}: no permission; make it readable")


def read_bytes(path: Path, missing: str = "check the path", damaged: str = "") -> bytes:
    """Return the content of a file; a `UserError` if it is missing, is a folder, or cannot be read.

    Args:
        path: The file.
        missing: Remedy where there is none.
        damaged: Remedy, after a semicolon, where it is a folder.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}; {missing}") from error
    except IsADirectoryError as error:
        raise UserError(f"cannot read {path}: it is a folder{damaged}") from error
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; make it readable") from error


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, flush it to the disk, and rename it.

    A reader sees the old file or the new one, never a part. A failure keeps the old file and removes the temporary
    one. After the return, the new file survives a power cut.

    Raises:
        WriteError: full disk, no permission, missing folder.
    """
    temporary: Path | None = None
    try:
        with explain_os_error(path, "write"):
            unused = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            # The system applies the umask, which Python cannot read without changing it for all threads.
            unused.touch(exist_ok=False)
            temporary = unused
            write(temporary)
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            temporary = None
            flush_folder(path.parent)
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def remove_leftovers(path: Path) -> None:
    """Remove temporary files of `write_atomically` that killed processes left beside a path."""
    with explain_os_error(path, "write"):
        for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):
            leftover.unlink(missing_ok=True)


def flush_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, above all renamed ones."""
    if os.name == "nt":
        return  # folders cannot be opened there; renaming is journalled
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Some network file systems do not support this for folders; their server does it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    write_atomically(path, lambda temporary: temporary.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, as UTF-8."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", newline="\n"))


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV; None is empty."""
    text = io.StringIO()
    plain = csv.writer(text, lineterminator="\n")
    quoted = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        # Before Python 3.13, a carriage return alone is not quoted, and ends the row for readers.
        (quoted if any("\r" in str(value) for value in row) else plain).writerow(row)
    return text.getvalue()


def as_json(value: Any) -> Any:
    """Return a value for `write_json`: dataclasses and mappings as dicts, tuples as lists, anything else as it is."""
    if is_dataclass(value):
        return {field.name: as_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: as_json(each) for name, each in value.items()}
    return [as_json(each) for each in value] if isinstance(value, tuple | list) else value


def parse_json(text: str | bytes) -> Any:
    """Return what `json.loads` does; a `ValueError` for text that is nested too deeply, too."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, without NaN or infinity."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def sha256_of_file(path: Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def user_path(path: str | Path) -> Path:
    """Return the path with a leading ``~`` or ``~name`` resolved; a `UserError` if the user has no home folder."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UserError(f"{path}: there is no such home folder; set HOME or write the path without ~") from error


def path_exists(path: str) -> bool:
    """Return True if there is a file or folder; False for text that can be no path."""
    try:
        return bool(path) and user_path(path).exists()
    except (OSError, ValueError, UserError):
        return False


def repeated(paths: Sequence[Path]) -> Path | None:
    """Return the first path that leads to the same place as one before it."""
    places = [path.resolve() for path in paths]
    return next((path for number, path in enumerate(paths) if places[number] in places[:number]), None)


def cache_folder() -> Path:
    """The cache folder: ``$UNIMETRIC_CACHE``, else ``$XDG_CACHE_HOME/unimetric``, else ``~/.cache/unimetric``.

    Raises:
        UserError: none of the variables is set, and the user has no home folder.
    """
    own = os.environ.get("UNIMETRIC_CACHE")
    if own:
        return user_path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return user_path(base) / "unimetric"
    try:
        return Path.home() / ".cache" / "unimetric"
    except RuntimeError as error:
        raise UserError(
            "the user has no home folder for the cache: set UNIMETRIC_CACHE to a folder, "
            "for example UNIMETRIC_CACHE=/tmp/unimetric"
        ) from error
