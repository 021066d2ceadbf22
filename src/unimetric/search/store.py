"""The LanceDB tables of a search database: ``about``, one row of JSON, and ``items``, one row per image.

Every write is one commit of LanceDB: readers see all of it or nothing, and a process that is killed leaves the last
commit.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from unimetric.errors import UserError, nearest_names
from unimetric.files import check_writable, make_folder
from unimetric.search.effort import Effort, effort_for
from unimetric.search.filters import all_of, is_one_of, shown

ABOUT, ITEMS = "about", "items"
FORMAT = 1

COLUMNS = ("id", "dataset", "label", "path", "content_hash", "fingerprint", "vector", "thumbnail")
"""What every row has; all other columns are metadata."""

KINDS = {
    "text": pa.string(),
    "number": pa.float64(),
    "boolean": pa.bool_(),
    "date": pa.date32(),
    "time": pa.timestamp("us"),
}
"""The types of metadata columns."""

READERS_SEE_WRITES_WITHIN = timedelta(seconds=2)
"""How long after another process's commit a reader may still answer from the version before."""

_KEPT_VERSIONS = timedelta(hours=1)
_IDS_AT_ONCE = 1000
_QUERIES_AT_ONCE = 16


def location(db: str | Path) -> str:
    """What to call a database: an object-storage URI as it is, a folder as an absolute path.

    Raises:
        UserError: the name is empty.
    """
    if not str(db).strip():
        raise UserError("the database's name is empty; name a folder, or a URI such as s3://bucket/db")
    if is_uri(db):
        return str(db)
    try:
        return str(Path(db).expanduser().absolute())
    except RuntimeError as error:
        raise UserError(f"cannot find the home folder in {str(db)!r}; write the path in full") from error


def is_uri(text: str | Path) -> bool:
    """Whether it names a place in object storage.

    >>> is_uri("s3://bucket/db"), is_uri("/data/db")
    (True, False)
    """
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", str(text)) is not None


def items_schema(vector_size: int) -> pa.Schema:
    """The columns of ``items`` without metadata."""
    texts = [pa.field(name, pa.string(), nullable=False) for name in COLUMNS[:6]]
    vector = pa.field("vector", pa.list_(pa.float32(), vector_size), nullable=False)
    return pa.schema([*texts, vector, pa.field("thumbnail", pa.binary())])


class Store:
    """The two tables of one database.

    Args:
        place: From `location`.
        connection: LanceDB's.
        items: LanceDB's table.
        about: The row of ``about``.
    """

    def __init__(self, place: str, connection: Any, items: Any, about: dict[str, Any]) -> None:
        self.place = place
        self.about = about
        self._connection = connection
        self._items = items
        self._writing = threading.RLock()
        self._reading: Any = None
        self._stale = False
        self._effort: tuple[int, Effort | None] | None = None

    @classmethod
    def open(cls, place: str) -> Store:
        """Open a database that is there.

        Raises:
            UserError: there is none, or it is damaged.
        """
        if not is_uri(place) and not Path(place).is_dir():
            raise UserError(f"there is no search database {place}; make one with: unimetric index MODEL FOLDER --db")
        connection = _connect(place)
        about = _read_about(place, connection)
        if about is None:
            raise UserError(f"{place} is no search database; make one with: unimetric index MODEL FOLDER --db")
        items = _open_table(place, connection, ITEMS)
        if items is None:
            raise UserError(f"the search database {place} has no rows yet; run unimetric index again")
        return cls(place, connection, items, about)

    @classmethod
    def create(cls, place: str, about: dict[str, Any], vector_size: int) -> Store:
        """Open a database, or make an empty one; ``about`` is written only where there is none.

        Raises:
            UserError: it is damaged, holds other things, or cannot be written.
        """
        if not is_uri(place):
            _check_place(Path(place))
        connection = _connect(place)
        found = _read_about(place, connection)
        with _lock(place), _explained(place, "write to"):
            if found is None:
                connection.create_table(ABOUT, data=_about_row(about))
                found = about
            items = _open_table(place, connection, ITEMS)
            if items is None:
                items = connection.create_table(ITEMS, schema=items_schema(vector_size))
        return cls(place, connection, items, found)

    def close(self) -> None:
        """Let go of the tables."""
        self._items = self._connection = self._reading = None

    def write_about(self, about: dict[str, Any]) -> None:
        """Replace the row of ``about``."""
        with self._change():
            self._connection.open_table(ABOUT).add(_about_row(about), mode="overwrite")
        self.about = about

    @property
    def version(self) -> int:
        """Rises with every change that this process sees."""
        with _explained(self.place, "read"):
            return int(self._table.version)

    @property
    def schema(self) -> pa.Schema:
        """All columns."""
        with _explained(self.place, "read"):
            return self._table.schema

    @property
    def metadata_columns(self) -> dict[str, str]:
        """The kind of every metadata column, by its name."""
        kinds = {str(kind): name for name, kind in KINDS.items()}
        return {
            field.name: kinds.get(str(field.type), str(field.type))
            for field in self.schema
            if field.name not in COLUMNS
        }

    @property
    def vector_size(self) -> int:
        """E."""
        return int(self.schema.field("vector").type.list_size)

    def count(self, where: str | None = None) -> int:
        """How many rows meet a condition."""
        with _explained(self.place, "read", where):
            return int(self._table.count_rows(where))

    def rows(self, columns: Sequence[str], where: str | None = None, limit: int | None = None) -> pa.Table:
        """Some columns of the rows that meet a condition."""
        with _explained(self.place, "read", where):
            query = self._table.search().select(list(columns)).limit(limit)
            return (query.where(where) if where else query).to_arrow()

    def rows_of(self, ids: Sequence[str], columns: Sequence[str]) -> pa.Table:
        """Some columns of the rows with these ids, in no order; unknown ids have no row."""
        parts = [
            self.rows(columns, is_one_of("id", ids[start : start + _IDS_AT_ONCE]), limit=_IDS_AT_ONCE)
            for start in range(0, len(ids), _IDS_AT_ONCE)
        ]
        return pa.concat_tables(parts) if parts else self.schema.empty_table().select(list(columns))

    def rows_at(self, positions: Sequence[int], columns: Sequence[str]) -> pa.Table:
        """Some columns of the rows at these positions, in their order."""
        with _explained(self.place, "read"):
            return self._table.take_offsets(list(positions)).select(list(columns)).to_arrow()

    def check_condition(self, where: str) -> None:
        """Make sure that the database understands a condition.

        Raises:
            UserError: it does not; the reason is its own, and unknown columns are named with the nearest one.
        """
        with _explained(self.place, "read"):
            self._table.search().limit(1).where("true").explain_plan()
        try:
            self._table.search().limit(1).where(f"({where})").explain_plan()
        except Exception as error:
            raise _condition_error(error, where) from error

    def nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        columns: Sequence[str],
        where: str | None,
        exact: bool,
        effort: Effort | None = None,
    ) -> list[pa.Table]:
        """For every vector [N, E] the rows nearest by cosine, with ``_distance``, 1 minus the cosine.

        An approximate index is searched with as much effort as it needs, unless another ``effort`` is given.
        """

        async def answer(table: Any, part: NDArray[np.float32], usual: Effort | None) -> list[pa.Table]:
            query = table.query().nearest_to(part[0] if len(part) == 1 else list(part)).column("vector")
            query = query.distance_type("cosine").limit(k).select([*columns, "_distance"])
            if where:
                query = query.where(where)
            if exact:
                query = query.bypass_vector_index()
            elif usual is not None:
                query = usual.apply(query, k)
            return _by_query(await query.to_arrow(), len(part))

        async def answer_all() -> list[pa.Table]:
            table = await self._reading_table()
            usual = None if exact else effort or await self._usual_effort(table)
            found: list[pa.Table] = []
            # Several at once share what a query costs before it is answered.
            for start in range(0, len(vectors), _QUERIES_AT_ONCE):
                found += await answer(table, vectors[start : start + _QUERIES_AT_ONCE], usual)
            return found

        # LanceDB's other interface crosses over to its thread several times a query, and that takes its time.
        with _explained(self.place, "read", where):
            return asyncio.run_coroutine_threadsafe(answer_all(), _loop()).result()

    async def _reading_table(self) -> Any:
        """A second handle on ``items``, which sees what this process has written."""
        if self._items is None:
            raise UserError(f"the search database {self.place} was closed; open it again")
        if self._reading is None:
            connection = await lancedb().connect_async(self.place, read_consistency_interval=READERS_SEE_WRITES_WITHIN)
            self._stale = False
            self._reading = await connection.open_table(ITEMS)
        elif self._stale:
            self._stale = False
            await self._reading.checkout_latest()
        return self._reading

    async def _usual_effort(self, table: Any) -> Effort | None:
        """The effort that the vectors' index needs: asked of the table, since another process may have made it."""
        version = await table.version()
        if self._effort is None or self._effort[0] != version:
            usual = None
            for index in await table.list_indices():
                if index.columns == ["vector"]:
                    statistics = await table.index_stats(index.name)
                    usual = effort_for(index.index_type, statistics.num_indexed_rows)
            self._effort = version, usual
        return self._effort[1]

    def merge(self, rows: pa.Table) -> None:
        """Write rows, each of another id: new ones are added, those of known ids replaced, in one commit.

        Columns that the database lacks are added first.
        """
        with self._change():
            present = self._table.schema
            if missing := [field for field in rows.schema if field.name not in present.names]:
                self._table.add_columns(pa.schema(missing))
                present = self._table.schema
            columns = {
                field.name: rows[field.name] if field.name in rows.column_names else pa.nulls(len(rows), field.type)
                for field in present
            }
            merge = self._table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
            merge.execute(pa.table(columns, schema=present))

    def delete(self, where: str) -> int:
        """Delete the rows that meet a condition, in one commit, and return how many they were."""
        with self._change(where):
            count = int(self._table.count_rows(where))
            if count:
                self._table.delete(where)
            return count

    def delete_ids(self, ids: Sequence[str], where: str | None = None) -> int:
        """Delete the rows with these ids that meet a condition as well."""
        return sum(
            self.delete(str(all_of([is_one_of("id", ids[start : start + _IDS_AT_ONCE]), where])))
            for start in range(0, len(ids), _IDS_AT_ONCE)
        )

    def compact(self) -> None:
        """Merge small files, put new rows into the indexes, and drop versions older than an hour."""
        with self._change():
            self._table.optimize(cleanup_older_than=_KEPT_VERSIONS)

    def indexed(self, column: str) -> tuple[str, int, int] | None:
        """The type of a column's index, and how many rows are in it and are not; None if there is none."""
        with _explained(self.place, "read"):
            for index in self._table.list_indices():
                if index.columns == [column]:
                    statistics = self._table.index_stats(index.name)
                    return index.index_type, statistics.num_indexed_rows, statistics.num_unindexed_rows
        return None

    def make_index(self, column: str, config: Any) -> None:
        """Make a column's index anew."""
        with self._change():
            self._table.create_index(column, config=config, replace=True)

    def drop_index(self, column: str) -> None:
        """Drop a column's index, if it has one."""
        with self._change():
            for index in self._table.list_indices():
                if index.columns == [column]:
                    self._table.drop_index(index.name)

    def warm(self) -> None:
        """Read the indexes into memory."""
        with _explained(self.place, "read"):
            for index in self._table.list_indices():
                self._table.prewarm_index(index.name)

    @property
    def _table(self) -> Any:
        if self._items is None:
            raise UserError(f"the search database {self.place} was closed; open it again")
        return self._items

    @contextmanager
    def _change(self, where: str | None = None) -> Iterator[None]:
        """One writer at a time on this machine, on the newest version, with errors in words."""
        with self._writing, _lock(self.place), _explained(self.place, "write to", where):
            self._table.checkout_latest()
            try:
                yield
            finally:
                self._stale = True


def lancedb() -> Any:
    """The package, with a warning silenced that concerns only its own developers.

    Raises:
        UserError: it is not installed.
    """
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lancedb as package
    except ModuleNotFoundError as error:
        raise UserError(f"search needs {error.name}, which is missing; pip install 'unimetric[search]'") from error
    return package


def _by_query(found: pa.Table, queries: int) -> list[pa.Table]:
    """The answers to each of several queries that were put at once."""
    if queries == 1:
        return [found]
    numbers = found["query_index"].to_numpy()
    return [found.filter(pa.array(numbers == number)).drop_columns("query_index") for number in range(queries)]


@cache
def _loop() -> asyncio.AbstractEventLoop:
    """The event loop of all queries, in a thread of its own."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="search", daemon=True).start()
    return loop


def _connect(place: str) -> Any:
    with _explained(place, "open"):
        return lancedb().connect(place, read_consistency_interval=READERS_SEE_WRITES_WITHIN)


def _check_place(folder: Path) -> None:
    """Refuse a folder of other things: a database would be strewn among them."""
    check_writable(folder)
    make_folder(folder)
    tables = {f"{name}.lance" for name in (ABOUT, ITEMS)}
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in tables and path.name[0] != ".")
    if strangers:
        raise UserError(
            f"{folder} is no search database: it holds {strangers[0]}; name a new or an empty folder with --db"
        )


def _open_table(place: str, connection: Any, name: str) -> Any | None:
    with _explained(place, "open"):
        try:
            return connection.open_table(name)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise


def _read_about(place: str, connection: Any) -> dict[str, Any] | None:
    table = _open_table(place, connection, ABOUT)
    if table is None:
        return None
    damaged = f"the search database {place} is damaged"
    with _explained(place, "read"):
        rows = table.to_arrow()
    try:
        (content,) = rows["content"].to_pylist()
        about = json.loads(content)
        version = about["format"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(f"{damaged}: it does not say what it is; index the images again into a new folder") from error
    if version != FORMAT:
        raise UserError(
            f"the search database {place} has format {version}, this version of unimetric reads {FORMAT}; "
            "update unimetric"
        )
    return dict(about)


def _about_row(about: dict[str, Any]) -> pa.Table:
    return pa.table({"content": [json.dumps(about, sort_keys=True)]})


@contextmanager
def _lock(place: str) -> Iterator[None]:
    """Hold a local database for writing; the system lets go of it when the process ends, however that is."""
    if is_uri(place):
        yield
        return
    with _explained(place, "write to"), (Path(place) / ".lock").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _explained(place: str, action: str, where: str | None = None) -> Iterator[None]:
    """Turn the database's errors into one line that says whether the condition or the files are at fault."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _explanation(error, place, action, where) from error
    except BaseException as error:
        # What panics in the database's Rust comes as an exception that no `except Exception` sees.
        if type(error).__name__ != "PanicException":
            raise
        raise _explanation(error, place, action, where) from error


def _explanation(error: BaseException, place: str, action: str, where: str | None) -> UserError:
    reason = _reason(error)
    # What a condition that could be read comes upon in the rows.
    if where is not None and re.search(r"cast|parse|sql|regex|overflow|divi|filter", str(error), re.IGNORECASE):
        return _condition_error(error, where)
    if isinstance(error, OSError) and error.errno is not None:
        return UserError(f"cannot {action} the search database {place}: {os.strerror(error.errno)}")
    if re.search(r"No space left|os error 28|Permission denied|Read-only|os error 13", reason):
        return UserError(f"cannot {action} the search database {place}: {reason}; free some space, or choose another")
    if "No object store provider" in reason:
        return UserError(f"the search database {place} has no scheme that is known; use s3://, gs:// or az://")
    if is_uri(place) and re.search(r"credential|http|dns|bucket|region|timed? ?out|connect", reason, re.IGNORECASE):
        return UserError(f"cannot {action} {place}: {reason}; check its name, the network and the credentials")
    return UserError(
        f"the search database {place} cannot be read or is damaged ({reason}); index the images again into a new folder"
    )


def _condition_error(error: BaseException, where: str) -> UserError:
    text = " ".join(str(error).split())
    if match := re.search(r'No field named "?(.+?)"?\. Valid fields are (.+)\.', text):
        columns = [name.strip('`" ') for name in match[2].split(",")]
        usable = [name for name in columns if name not in ("vector", "thumbnail", "fingerprint")]
        return UserError(f"the condition (where) names no column: {match[1]!r}; {nearest_names(match[1], usable)}")
    return UserError(
        f"the condition (where) {shown(where)} cannot be read: {_reason(error)}; write one such as: "
        "price < 20 AND label = 'hat'"
    )


def _reason(error: BaseException) -> str:
    """The first words of the database's message, without where in its source they were said."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r",? /\S*\.cargo/\S*", "", text)
    text = re.sub(
        r"^(lance error: )?(LanceError\(\w+\): )?((Invalid input|Invalid user input|Encountered.*?), )*", "", text
    )
    text = re.sub(r"Error parsing statement: SELECT 1 FROM t WHERE .*\(sql parser error: (.*)\)$", r"\1", text)
    text = re.sub(r"This issue was likely caused by.*", "", text)
    return (text if len(text) <= 200 else text[:197] + "...").rstrip(" .;,")
