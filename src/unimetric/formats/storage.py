"""Files by path or URI: local ones, and object storage through the file systems of pyarrow or fsspec."""

from __future__ import annotations

import posixpath
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlparse

import pyarrow as pa
import pyarrow.fs

from unimetric.errors import UserError
from unimetric.files import make_folder, user_path, write_bytes


def local_path(place: str) -> Path | None:
    """Return the local path of a place, also of ``file://``; None for object storage.

    >>> local_path("file:///data/birds").as_posix(), local_path("s3://bucket/birds")
    ('/data/birds', None)
    """
    if place.startswith("file://"):
        return Path(unquote(urlparse(place).path))
    return None if "://" in place else user_path(place)


def join(folder: str, name: str) -> str:
    """Join a folder and a relative path; an absolute path or URI is returned as it is."""
    if "://" in name or name.startswith("/"):
        return name
    return posixpath.join(folder, name)


def parent(place: str) -> str:
    """Return a file's folder."""
    return place.rpartition("/")[0]


def open_file(place: str) -> IO[bytes]:
    """Open a file for reading in any order.

    Raises:
        OSError: the file is missing or unreadable.
        UserError: the kind of storage is unknown.
    """
    path = local_path(place)
    if path is not None:
        return path.open("rb")
    system, inner = _system(place)
    return system.open_input_file(inner)  # type: ignore[no-any-return]


def read_bytes(place: str) -> bytes:
    """Return the content of a file; errors as for `open_file`."""
    with open_file(place) as file:
        return file.read()


def list_files(place: str, *, recursive: bool = True) -> list[str]:
    """Return the files in a folder, sorted; empty if there is no folder.

    Raises:
        UserError: it cannot be listed.
    """
    path = local_path(place)
    if path is not None:
        found = path.rglob("*") if recursive else path.glob("*")
        return sorted(str(file) for file in found if file.is_file())
    system, inner = _system(place)
    try:
        infos = system.get_file_info(pa.fs.FileSelector(inner, recursive=recursive, allow_not_found=True))
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot list {place}: {_reason(error)}; check the address and its credentials") from error
    scheme = place.partition("://")[0]
    return sorted(f"{scheme}://{info.path}" for info in infos if info.type == pa.fs.FileType.File)


def write_whole(place: str, content: bytes) -> None:
    """Write a whole file or nothing.

    A local file is renamed into its place; object storage shows an object when its upload is complete.

    Raises:
        UserError: it cannot be written.
    """
    path = local_path(place)
    if path is not None:
        make_folder(path.parent)
        write_bytes(path, content)
        return
    system, inner = _system(place)
    try:
        system.create_dir(posixpath.dirname(inner), recursive=True)
        with system.open_output_stream(inner) as file:
            file.write(content)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot write {place}: {_reason(error)}; check the address and its credentials") from error


def _system(place: str) -> tuple[Any, str]:
    """The file system of a URI, and the path in it."""
    try:
        return pa.fs.FileSystem.from_uri(place)  # type: ignore[no-any-return]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return _fsspec_system(place)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot reach {place}: {_reason(error)}; check the address and its credentials") from error


def _fsspec_system(place: str) -> tuple[Any, str]:
    # Installed with torch; slow to import, and only needed for storage that pyarrow does not support.
    import fsspec

    try:
        system, inner = fsspec.core.url_to_fs(place)
    except (ValueError, ImportError, OSError) as error:
        raise UserError(f"cannot reach {place}: {_reason(error)}; install fsspec's package for it") from error
    return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(system)), inner


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
