"""Files by path or URI: local ones, and object storage through the file systems of pyarrow or fsspec."""

import io
import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlparse

import pyarrow.fs as pa_fs

from unimetric.files import make_folder, user_path, write_bytes
from unimetric.storage.access import check_bucket, explained_access, file_system

_BUFFER = 1 << 20
"""Bytes that are read at once from object storage, at least."""


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

    An `OSError` if it is missing or, on this machine, unreadable; a `StorageError` if storage cannot be reached.
    """
    path = local_path(place)
    if path is not None:
        return path.open("rb")
    system, inner = file_system(place)
    with explained_access(place, "read"):
        remote = system.open_input_file(inner)
    return io.BufferedReader(_RemoteFile(place, remote), _BUFFER)


def read_bytes(place: str) -> bytes:
    """Return the content of a file; errors as for `open_file`."""
    if local_path(place) is None:
        system, inner = file_system(place)
        with explained_access(place, "read"), system.open_input_file(inner) as remote:
            return remote.read()  # type: ignore[no-any-return]
    with open_file(place) as file:
        return file.read()


def list_files(place: str, *, recursive: bool = True) -> list[str]:
    """Return the files in a folder, sorted, or none; a `StorageError` if it cannot be listed."""
    path = local_path(place)
    if path is not None:
        found = path.rglob("*") if recursive else path.glob("*")
        return sorted(str(file) for file in found if file.is_file())
    return sorted(list_objects(place, recursive=recursive))


@dataclass(frozen=True)
class Stamp:
    """Size of an object in bytes, and the time of its last change in nanoseconds since 1970."""

    size: int
    nanoseconds: int


def list_objects(place: str, *, recursive: bool = True) -> dict[str, Stamp]:
    """Return the objects below a URI with their stamps, or none; a `StorageError` if it cannot be listed."""
    system, inner = file_system(place)
    with explained_access(place, "list"):
        infos = system.get_file_info(pa_fs.FileSelector(inner, recursive=recursive, allow_not_found=True))
    if not infos:
        check_bucket(place)
    scheme = place.partition("://")[0]
    return {
        f"{scheme}://{info.path}": Stamp(info.size, info.mtime_ns or 0)
        for info in infos
        if info.type == pa_fs.FileType.File
    }


def write_whole(place: str, content: bytes) -> None:
    """Write a whole file or nothing; a `UserError` if it cannot be written.

    A local file is renamed into its place; object storage shows an object when its upload is complete.
    """
    path = local_path(place)
    if path is not None:
        make_folder(path.parent)
        write_bytes(path, content)
        return
    system, inner = file_system(place)
    with explained_access(place, "write"):
        if not place.startswith("s3://"):
            # S3 has no folders: one would be another object.
            system.create_dir(posixpath.dirname(inner), recursive=True)
        with system.open_output_stream(inner) as file:
            file.write(content)


class _RemoteFile(io.RawIOBase):
    """An object that is read in any order; failures of the storage are `StorageError`s, damage is its reader's."""

    def __init__(self, place: str, file: Any) -> None:
        self._place, self._file = place, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with explained_access(self._place, "read"):
            return int(self._file.readinto(buffer))

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def close(self) -> None:
        self._file.close()
        super().close()
