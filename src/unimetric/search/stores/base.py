"""The common ground of all engines: columns, kinds, places, and the `Store` that each implements."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc

from unimetric.errors import UserError
from unimetric.files import user_path
from unimetric.formats.vectors import as_unicode
from unimetric.search.conditions import Condition, is_one_of
from unimetric.search.conditions.tree import Always, And
from unimetric.search.errors import DatabaseError
from unimetric.search.scoring import Vectors

FORMAT = 2

COLUMNS = ("id", "dataset", "label", "path", "content_hash", "fingerprint", "vector", "thumbnail")
"""The columns of every row; all others are metadata."""

KINDS = {
    "text": pa.string(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "time": pa.timestamp("us"),
}
"""The types of metadata columns."""

MAKE_ONE = "make one with: unimetric index MODEL FOLDER --db DB"

_ATTEMPTS = 3

T = TypeVar("T")

_SCHEMES = ("s3", "s3+ddb", "gs", "az", "abfss", "hf", "oss", "cos", "tos", "file")


@dataclass(frozen=True)
class Effort:
    """The effort that an approximate index is searched with; more of it gains recall and costs time.

    Attributes:
        probes: Partitions to look into.
        refine: Candidates per wanted row that are compared by their full vectors.
        candidates: Nodes of a graph to keep while walking it, at least; 0 for other indexes.
    """

    probes: int
    refine: int
    candidates: int = 0


@dataclass(frozen=True)
class VectorIndex:
    """The approximate index of a database: its name, and the number of rows that are still compared one by one.

    The name is unique for every index that was ever made, so that a measured effort belongs to one of them.
    """

    name: str
    missing: int


class Store(Protocol):
    """The rows of one database, and a record about it; an engine inherits from it.

    Every method raises a `DatabaseError` where the files or the storage are at fault.
    """

    place: str
    about: dict[str, Any]
    kinds: tuple[str, ...]
    """Kinds of approximate index that the engine supports; the first is the default."""

    def close(self) -> None:
        """Release the files."""

    def write_about(self, about: dict[str, Any]) -> None:
        """Replace the record."""

    def read_about(self) -> dict[str, Any]:
        """Read the record again, which another process may have replaced."""

    @property
    def version(self) -> int:
        """A number that rises with every change that this process sees."""

    @property
    def column_names(self) -> list[str]:
        """All columns."""

    @property
    def metadata_columns(self) -> dict[str, str]:
        """The kind of every metadata column, by its name."""

    @property
    def vector_size(self) -> int:
        """E."""

    def count(self, where: Condition | None = None) -> int:
        """Return the number of rows that meet a condition."""

    def rows(self, columns: Sequence[str], where: Condition | None = None, limit: int | None = None) -> pa.Table:
        """Return some columns of the rows that meet a condition."""

    def look(self) -> None:
        """Look for commits of other processes now; otherwise they are seen within seconds only."""

    def rows_of(self, ids: Sequence[str], columns: Sequence[str], *, newest: bool = False) -> pa.Table:
        """Return some columns of the rows with these ids, in their order; unknown ids have no row.

        With ``newest`` after a `look`, for changes that depend on what is there.
        """
        if newest:
            self.look()
        wanted = list(dict.fromkeys(["id", *columns]))
        parts = [self.rows(wanted, is_one_of("id", some), len(some)) for some in portions(ids)]
        found = pa.concat_tables(parts) if parts else self.rows(wanted, Always(False))
        places = pc.index_in(pa.array(map(as_unicode, ids), pa.string()), value_set=found["id"].combine_chunks())
        return found.take(places.drop_null()).select(list(columns))

    def blocks(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield some columns of all rows, a bounded number of rows at a time."""

    def nearest(
        self, vectors: Vectors, k: int, columns: Sequence[str], where: Condition | None, effort: Effort | None
    ) -> list[pa.Table]:
        """Return for every vector [N, E] the k rows nearest by cosine, with ``_distance``, 1 minus the cosine.

        Without an ``effort`` the vectors are compared with every row.
        """

    def merge(self, rows: pa.Table) -> None:
        """Write rows of distinct ids in one commit; those of known ids are replaced, missing columns are added."""

    def delete(self, where: Condition) -> int:
        """Delete the rows that meet a condition in one commit, and return their number."""

    def delete_ids(self, ids: Sequence[str], where: Condition | None = None) -> int:
        """Delete the rows with these ids that meet a condition as well, and return their number."""
        found = (is_one_of("id", some) for some in portions(ids))
        return sum(self.delete(one if where is None else And((one, where))) for one in found)

    def compact(self) -> None:
        """Merge small files, put new rows into the indexes, and drop old versions."""

    @property
    def index(self) -> VectorIndex | None:
        """The approximate index, or None if there is none."""

    def make_index(self, kind: str, partitions: int) -> str:
        """Rebuild the approximate index, ``ivf-pq`` or ``hnsw``, and return its name."""

    def drop_index(self) -> None:
        """Drop the approximate index, if there is one."""


class PerVersion(Generic[T]):
    """A value that is read from a database again when that has changed; threads may share it."""

    def __init__(self, store: Store, read: Callable[[], T]) -> None:
        self._store, self._read = store, read
        self._known: tuple[int, T] | None = None
        self._reading = threading.Lock()

    def get(self) -> T:
        """Return the value at the present version."""
        version, known = self._store.version, self._known
        if known is None or known[0] != version:
            with self._reading:
                # Another thread may have read it meanwhile.
                known = self._known
                if known is None or known[0] != version:
                    known = self._known = version, self._read()
        return known[1]


def at_one_version(store: Store, read: Callable[[], T]) -> T:
    """Return the result of several reads of a database, made again if another process wrote between them.

    While others write faster than that, the last result: its rows are right, but some may be missing.
    """
    for _ in range(_ATTEMPTS):
        version = store.version
        found = read()
        if store.version == version:
            break
    return found


def read_record(place: str, text: str) -> dict[str, Any]:
    """Return the record of a database from its JSON; a `DatabaseError` if it is damaged or of another format."""
    again = "index the images again into a new place"
    try:
        about = dict(json.loads(text))
        version = about["format"]
    except (KeyError, ValueError, TypeError) as error:
        raise DatabaseError(f"the search database {place} is damaged: its record cannot be read; {again}") from error
    if version != FORMAT:
        raise DatabaseError(
            f"the search database {place} has format {version}, this version of unimetric reads {FORMAT}; {again}"
        )
    return about


def portions(values: Sequence[T], size: int = 1000) -> Iterator[Sequence[T]]:
    """Yield values a bounded number at a time; a condition takes a thousand."""
    return (values[start : start + size] for start in range(0, len(values), size))


def location(db: str | Path) -> str:
    """Return the name of a database's place: a URI as it is, a folder or a local Milvus file as an absolute path."""
    if not str(db).strip():
        raise UserError("the database's name is empty; name a folder, or a URI such as s3://bucket/db")
    if is_milvus(db):
        return f"{_MILVUS}{'/'.join(milvus_parts(str(db)))}" if not is_uri(db) else str(db)
    if is_uri(db):
        return str(db)
    return str(user_path(db).absolute())


def is_uri(text: str | Path) -> bool:
    """Return True for a place in object storage.

    >>> is_uri("s3://bucket/db"), is_uri("/data/db")
    (True, False)
    """
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", str(text)) is not None


_MILVUS = "milvus:"


def is_milvus(db: str | Path) -> bool:
    """Return True for a place in Milvus: ``milvus://HOST:PORT/NAME``, or ``milvus:FILE.db/NAME`` on this machine."""
    return str(db).startswith(_MILVUS)


def milvus_parts(place: str) -> tuple[str, str]:
    """Return the address of a server or the absolute path of a file, and the database's name in it.

    >>> milvus_parts("milvus://localhost:19530/shop"), milvus_parts("milvus:/data/all.db/shop")
    (('http://localhost:19530', 'shop'), ('/data/all.db', 'shop'))
    """
    address, _, name = place.removeprefix(_MILVUS).rpartition("/")
    host = address.removeprefix("//")
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,200}", name):
        if address.startswith("//") and re.fullmatch(r"[^/\s]+:\d+", host):
            return f"http://{host}", name
        if address.endswith(".db") and not address.startswith("//"):
            return str(user_path(address).absolute()), name
    raise UserError(
        f"the search database {place} is not a place in Milvus: write milvus://HOST:PORT/NAME for a server, or "
        "milvus:FILE.db/NAME for a file of this machine, with letters, digits and _ in NAME"
    )


def check_scheme(place: str) -> None:
    """Refuse a URI that is of no object storage."""
    scheme = place.partition("://")[0]
    if is_uri(place) and scheme not in _SCHEMES:
        # Without the record or the vectors of an upgrade.
        database = place.partition("/.")[0]
        raise UserError(f"the search database {database} has an unknown scheme; use s3://, gs:// or az://")
