"""Sources in object storage: each object is copied into the cache once, and read from there.

The copies lie in ``objects/SCHEME/BUCKET/KEY`` below the cache folder. Every command compares size and time of each
object with those of its copy, so a changed one is copied again, and a deleted one is missing.
"""

import os
import shutil
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from filelock import FileLock

from unimetric.data.images.boxes import without_box
from unimetric.data.pool import in_order
from unimetric.data.sources.table import SUFFIXES
from unimetric.errors import UserError, escaped
from unimetric.files import cache_folder, explain_os_error, make_folder, write_atomically
from unimetric.progress import log_status, progress_bar
from unimetric.storage import objects as storage

_SCHEMES = ("s3", "gs", "gcs", "az", "abfs", "abfss", "hdfs")
_FOLDER = "objects"
_THREADS = 16
_CHUNK = 1 << 24
"""Bytes of an object that are read at once."""


def is_remote(place: str | Path) -> bool:
    """Return True for a URI of object storage.

    >>> is_remote("s3://bucket/birds"), is_remote("https://example.org/a.jpg"), is_remote("/data/birds")
    (True, False, False)
    """
    scheme, sign, _ = str(place).partition("://")
    return bool(sign) and scheme in _SCHEMES


def local_copy(uri: str) -> Path:
    """Bring the copy of a manifest or of a folder with all its files up to date, and return its path.

    Raises:
        StorageError: the storage cannot be reached.
        UserError: there is no such object, or its copy cannot be written.
    """
    uri = uri.rstrip("/")
    if uri.lower().endswith(SUFFIXES):
        copies = _copies([uri])
        if uri not in copies:
            raise UserError(f"there is no object {uri}; check the address")
        return copies[uri]
    objects = storage.list_objects(uri)
    if not objects:
        raise UserError(f"there is no object below {uri}; check the address")
    _bring(objects)
    folder = _place(uri)
    kept = {_place(each) for each in objects}
    for file in [path for path in folder.rglob("*") if path.is_file() and path not in kept]:
        file.unlink()
    return folder


def local_names(manifest: Path, texts: Sequence[str]) -> list[str]:
    """Return the paths of a manifest's rows, with copies for all that lie in object storage.

    These are URIs, and the relative paths of a manifest that is a copy itself. An object that is missing keeps its URI.
    """
    home = uri_of(manifest)
    uris: dict[str, str] = {}
    for text in dict.fromkeys(texts):
        plain = without_box(text.strip())
        if is_remote(plain):
            uris[text] = plain
        elif home is not None:
            uris[text] = storage.join(storage.parent(home), plain)
    if not uris:
        return list(texts)
    copies = _copies(uri for uri in dict.fromkeys(uris.values()) if is_remote(uri))
    names = {}
    for text, uri in uris.items():
        box = text.strip()[len(without_box(text.strip())) :]
        names[text] = f"{copies.get(uri, uri)}{box}"
    return [names.get(text, text) for text in texts]


def uri_of(path: str | Path) -> str | None:
    """Return the URI that a path is the copy of; None for other paths."""
    text = str(path)
    # Most paths are not copies; this check is faster than finding the cache folder.
    if f"{os.sep}{_FOLDER}{os.sep}" not in text:
        return None
    root = f"{_root()}{os.sep}"
    if not text.startswith(root):
        return None
    scheme, _, rest = Path(text[len(root) :]).as_posix().partition("/")
    return f"{scheme}://{rest}"


def _root() -> Path:
    return _resolved(cache_folder()) / _FOLDER


@lru_cache(maxsize=4)
def _resolved(folder: Path) -> Path:
    return folder.resolve()


def _place(uri: str) -> Path:
    scheme, _, rest = uri.partition("://")
    parts = rest.split("/")
    if any(part in ("", ".", "..") or "\0" in part or os.sep in part for part in parts):
        raise UserError(f"cannot copy {escaped(uri)}: a part of its name is empty, . or ..; rename the object")
    return _root().joinpath(scheme, *parts)


def _copies(uris: Iterable[str]) -> dict[str, Path]:
    """Bring the copies of objects up to date; those that are missing are left out."""
    wanted = list(uris)
    found: dict[str, storage.Stamp] = {}
    # A listing answers for a thousand objects at once.
    for folder in dict.fromkeys(map(storage.parent, wanted)):
        found |= storage.list_objects(folder, recursive=False)
    objects = {uri: found[uri] for uri in wanted if uri in found}
    _bring(objects)
    return {uri: _place(uri) for uri in objects}


def _bring(objects: dict[str, storage.Stamp]) -> None:
    """Copy those objects that have no copy of their size and time."""
    root = make_folder(_root())
    with explain_os_error(root, "write to"), FileLock(root / ".lock"):
        missing = [uri for uri, stamp in objects.items() if _stamp(_place(uri)) != stamp]
        if not missing:
            return
        size = sum(objects[uri].size for uri in missing)
        free = shutil.disk_usage(root).free
        if size > free:
            raise UserError(
                f"cannot copy {len(missing)} objects to {root}: they need {size / 1e9:.1f} GB, {free / 1e9:.1f} GB are "
                "free; name a folder on a larger disk with UNIMETRIC_CACHE, or embed them with --shard, which copies "
                "nothing"
            )
        log_status(f"copying {len(missing)} objects ({size / 1e6:.1f} MB) to {root}")
        with progress_bar() as bar:
            task = bar.add_task("Copying", total=len(missing), note="")
            work = in_order(lambda uri: _copy(uri, objects[uri]), missing, threads=_THREADS, ahead=2 * _THREADS)
            for _ in work:
                bar.advance(task)


def _copy(uri: str, stamp: storage.Stamp) -> None:
    place = _place(uri)

    def write(temporary: Path) -> None:
        with storage.open_file(uri) as source, temporary.open("wb") as target:
            shutil.copyfileobj(source, target, _CHUNK)
        os.utime(temporary, ns=(stamp.nanoseconds, stamp.nanoseconds))
        if _stamp(temporary) != stamp:
            raise UserError(f"{uri} was changed while it was copied; run the command again")

    try:
        write_atomically(make_folder(place.parent) / place.name, write)
    except FileNotFoundError as error:
        raise UserError(f"{uri} was deleted while it was copied; run the command again") from error


def _stamp(path: Path) -> storage.Stamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return storage.Stamp(status.st_size, status.st_mtime_ns)


def stored_name(path: str | Path) -> str:
    """Return the name to record for an image: the URI of a copy, any other path as it is."""
    return uri_of(path) or str(path)


def recorded_file(name: str) -> Path | None:
    """Return the file of a name that was recorded: of a URI its copy, which may be old or missing.

    None for names that lead to no file of this machine, such as relative ones.
    """
    if not is_remote(name):
        path = Path(name)
        return path if path.is_absolute() else None
    try:
        return _place(name)
    except UserError:
        return None
