"""The record of the vectors that a database is searched by: its own, or those of a newer model beside them.

An upgrade writes its vectors beside the old ones. One replacement of this small file makes them those that every reader
and writer opens. A file and not a table, because a table that is being made is seen half made by others.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, replace

from unimetric.search.errors import DatabaseError, ReplacedError
from unimetric.search.stores.base import check_scheme, is_milvus
from unimetric.storage.objects import read_bytes, write_whole

_RECORD = ".live.json"
_VECTORS = ".vectors-"
_BLOCK = 4096
"""Bytes: the record's length is a multiple. Object storage is asked for an object's length, then for that many bytes:
of records of two lengths, a reader could get one that is cut off, or has rubbish at its end."""
KEPT_SECONDS = 3600.0
"""Time for which replaced vectors are kept for those who have them open."""


@dataclass(frozen=True)
class Live:
    """The vectors of a database, each set by its name beside the database; the empty name is the database's own place.

    Attributes:
        live: The vectors that are searched.
        preparing: The vectors of an upgrade that are not searched yet; None if there are none.
        previous: The old model's vectors, while the upgrade can still be rolled back; None without one.
        retired: Vectors that nobody opens any more, with the time since when, in seconds since 1970.
    """

    live: str = ""
    preparing: str | None = None
    previous: str | None = None
    retired: tuple[tuple[str, float], ...] = ()

    def retiring(self, name: str, **changes: str | None) -> Live:
        """Return the record with further changes, and a set of vectors that must not be opened any more."""
        return replace(self, retired=(*self.retired, (name, time.time())), **changes)  # type: ignore[arg-type]

    def without_retired(self, name: str) -> Live:
        """Return the record without a name among the retired."""
        return replace(self, retired=tuple(entry for entry in self.retired if entry[0] != name))


def vectors_name(fingerprint: str) -> str:
    """Return the name of the vectors of a model."""
    return f"{_VECTORS}{fingerprint[:16]}"


def place_of(root: str, name: str) -> str:
    """Return the place of a set of vectors of the database at ``root``.

    >>> place_of("s3://bucket/db", ".vectors-0123"), place_of("/db", "")
    ('s3://bucket/db/.vectors-0123', '/db')
    """
    return f"{root.rstrip('/')}/{name}" if name else root


def root_of(place: str) -> str:
    """Return the database that a set of vectors belongs to.

    >>> root_of("/db/.vectors-0123"), root_of("/db")
    ('/db', '/db')
    """
    root, _, name = place.rpartition("/")
    return root if name.startswith(_VECTORS) else place


def read_live(root: str) -> Live:
    """Read the record of a database; one that was never upgraded, or lies in Milvus, has none."""
    if is_milvus(root):
        return Live()
    check_scheme(root)
    place = place_of(root, _RECORD)
    try:
        content = read_bytes(place)
    except (FileNotFoundError, NotADirectoryError):
        return Live()
    except OSError as error:
        raise DatabaseError(f"cannot read {place}: {error.strerror or error}; check its permissions") from error
    try:
        values = json.loads(content)
        retired = tuple((str(name), float(since)) for name, since in values["retired"])
        return Live(str(values["live"]), values["preparing"], values["previous"], retired)
    except (ValueError, KeyError, TypeError) as error:
        raise DatabaseError(f"{place} is damaged ({type(error).__name__}: {error}); take it from a backup") from error


def write_live(root: str, live: Live) -> None:
    """Replace the record, so that readers see the old one or the new one; a `DatabaseError` if it cannot be."""
    content = json.dumps(asdict(live), indent=2).encode()
    write_whole(place_of(root, _RECORD), content.ljust(-len(content) // _BLOCK * -_BLOCK))


def check_live(place: str) -> None:
    """Refuse to change vectors that are no longer the database's, by a `ReplacedError`."""
    root = root_of(place)
    if place_of(root, read_live(root).live) != place:
        raise ReplacedError(
            f"the search database {root} was given another model's vectors meanwhile (unimetric upgrade); open it "
            "again, and write with that model"
        )
