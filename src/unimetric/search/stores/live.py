"""The record of the vectors that a database is searched by: its own, or those of a newer model beside them.

An upgrade writes its vectors beside the old ones. One commit of this record, a version of its table, makes them those
that every reader and writer opens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from unimetric.search.errors import DatabaseMissingError, ReplacedError
from unimetric.search.stores.base import FORMAT, Store, is_uri

_RECORD = ".live"
_VECTORS = ".vectors-"
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
        """Return the record with further changes, and a set of vectors that nobody is to open any more."""
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


def read_live(root: str, open_place: Callable[[str], Store]) -> Live:
    """Read the record of a database; one that was never upgraded has none."""
    place = place_of(root, _RECORD)
    if not is_uri(root) and not Path(place).is_dir():
        return Live()
    try:
        store = open_place(place)
    except DatabaseMissingError:
        return Live()
    values = store.about["live"]
    store.close()
    return Live(**{**values, "retired": tuple((str(name), float(since)) for name, since in values["retired"])})


def write_live(root: str, live: Live, create_place: Callable[[str, dict[str, object], int], Store]) -> None:
    """Replace the record, in one commit."""
    about = {"format": FORMAT, "live": asdict(live)}
    store = create_place(place_of(root, _RECORD), about, 1)
    if store.about != about:
        store.write_about(about)
    store.close()


def check_live(place: str, open_place: Callable[[str], Store]) -> None:
    """Refuse to change vectors that are no longer the database's.

    Raises:
        ReplacedError: others have become those.
    """
    root = root_of(place)
    if place_of(root, read_live(root, open_place).live) != place:
        raise ReplacedError(
            f"the search database {root} was given another model's vectors meanwhile (unimetric upgrade); open it "
            "again, and write with that model"
        )
