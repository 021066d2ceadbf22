"""Open and create the two LanceDB tables of a search database."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
from filelock import FileLock

from unimetric.errors import UserError, escaped
from unimetric.files import check_writable, make_folder
from unimetric.formats.stored_types import StoredType, stored_bytes
from unimetric.search.errors import DatabaseError, DatabaseMissingError
from unimetric.search.stores.base import COLUMNS, check_scheme, is_uri, read_record
from unimetric.storage.access import S3_ATTEMPTS, StorageError, access_remedy, check_bucket, s3_endpoint, s3_region
from unimetric.storage.objects import list_objects

ABOUT, ITEMS = "about", "items"
_KEYED = {b"lance-schema:unenforced-primary-key": b"true"}
"""The metadata of the ids: LanceDB notices that two writers add rows of the same id, so neither doubles the other's."""
_LITTLE_SPACE = 1 << 20
BITS = "_bits"
"""The column with one bit for every number of a vector, of databases that are searched by them."""

READERS_SEE_WRITES_WITHIN = timedelta(seconds=2)
"""The longest time after another process's commit that a reader still answers from the version before."""


@contextmanager
def explained(place: str, action: str) -> Iterator[None]:
    """Raise LanceDB's errors as a `DatabaseError`; ``action`` is ``open``, ``read`` or ``write to``.

    The kind of an error is found from facts (its type, permissions, free space), never from its wording. Conditions
    cannot be at fault: the grammar prints none that LanceDB refuses.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _explanation(error, place, action) from error
    except BaseException as error:
        # A panic in LanceDB's Rust comes as an exception that no `except Exception` catches.
        if type(error).__name__ != "PanicException":
            raise
        raise _explanation(error, place, action) from error


def _explanation(error: BaseException, place: str, action: str) -> DatabaseError:
    reason = _reason(error)
    failed = f"cannot {action} the search database {place}"
    if isinstance(error, OSError) and error.errno is not None:
        return DatabaseError(f"{failed}: {os.strerror(error.errno)}")
    if is_uri(place):
        return DatabaseError(f"{failed}: {reason}; {access_remedy(place)}")
    folder = Path(place)
    if not folder.is_dir():
        return DatabaseMissingError(f"{failed}: the folder is gone")
    writes = action.startswith("write")
    if not os.access(folder, os.R_OK | os.X_OK | (os.W_OK if writes else 0)):
        return DatabaseError(f"{failed}: no permission")
    if writes and shutil.disk_usage(folder).free < _LITTLE_SPACE:
        return DatabaseError(f"{failed}: the disk is full; free some space, or choose another")
    if writes:
        return DatabaseError(f"{failed}: {reason}")
    return DatabaseError(
        f"the search database {place} cannot be read or is damaged ({reason}); index the images again into a new folder"
    )


def _reason(error: BaseException) -> str:
    """Return the message in one line of at most 200 characters, without places in LanceDB's source."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r",? /\S*\.cargo/\S*", "", text)
    return escaped((text if len(text) <= 200 else text[:197] + "...").rstrip(" .;,"))


def refresh_seconds() -> float:
    """Return the time before a reader looks for commits of other processes again."""
    return 3 * READERS_SEE_WRITES_WITHIN.total_seconds() / 4


def items_schema(vector_size: int, vector_type: StoredType = "float32") -> pa.Schema:
    """Return the columns of ``items`` without metadata."""
    key = pa.field("id", pa.string(), nullable=False, metadata=_KEYED)
    texts = [pa.field(name, pa.string(), nullable=False) for name in COLUMNS[1:6]]
    number = {"float32": pa.float32(), "float16": pa.float16(), "int8": pa.int8(), "bit": pa.int8()}[vector_type]
    vectors = [pa.field("vector", pa.list_(number, vector_size), nullable=False)]
    if vector_type == "bit":
        vectors.append(pa.field(BITS, pa.list_(pa.uint8(), stored_bytes("bit", vector_size)), nullable=False))
    return pa.schema([key, *texts, *vectors, pa.field("thumbnail", pa.binary())])


def lancedb() -> Any:
    """Import the package, with a warning silenced that concerns only its own developers."""
    os.environ.setdefault("LANCE_LOG", "error")
    try:
        import lancedb as package
    except ModuleNotFoundError as error:
        raise UserError(f"search needs {error.name}, which is missing; pip install 'unimetric[search]'") from error
    return package


def connect(place: str) -> Any:
    """Connect to a place, without looking for tables."""
    check_scheme(place)
    try:
        check_bucket(place)
    except StorageError as error:
        raise DatabaseError(f"cannot open the search database: {error}") from error
    with explained(place, "open"):
        return lancedb().connect(place, storage_options=storage_options(place))


def storage_options(place: str) -> dict[str, str] | None:
    """Return LanceDB's options for object storage; it reads the credentials from the environment itself."""
    if not place.startswith("s3://"):
        return None
    endpoint, region = s3_endpoint(), s3_region()
    options = {"client_max_retries": str(S3_ATTEMPTS)}
    if endpoint is not None:
        options |= {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
    return options if region is None else {**options, "aws_region": region}


def check_place(folder: Path) -> None:
    """Refuse a folder that contains other files, so that they are not mixed with the tables."""
    check_writable(folder)
    make_folder(folder)
    tables = {f"{name}.lance" for name in (ABOUT, ITEMS)}
    strangers = sorted(path.name for path in folder.iterdir() if path.name not in tables and path.name[0] != ".")
    if strangers:
        raise UserError(
            f"{folder} is not a search database: it holds {strangers[0]}; name a new or an empty folder with --db"
        )


def open_table(place: str, connection: Any, name: str) -> Any | None:
    """Open a table; None if there is none, or none yet: its folder is made before its first version."""
    with explained(place, "open"):
        if name not in connection.list_tables().tables:
            return None
        versions = f"{place}/{name}.lance/_versions"
        if place.startswith("s3://"):
            unfinished = not list_objects(versions)
        else:
            # A version that is being written has a longer name until it is whole.
            unfinished = not is_uri(place) and not any(Path(versions).glob("*.manifest"))
        return None if unfinished else connection.open_table(name)


def read_about(place: str, connection: Any) -> dict[str, Any] | None:
    """Read the record of a database; None if there is none. One that is damaged or of another format is refused."""
    table = open_table(place, connection, ABOUT)
    if table is None:
        return None
    with explained(place, "read"):
        rows = table.to_arrow()
    return read_record(place, rows["content"][0].as_py() if len(rows) else "")


def about_row(about: dict[str, Any]) -> pa.Table:
    """Return the row that `read_about` reads."""
    return pa.table({"content": [json.dumps(about, sort_keys=True)]})


@contextmanager
def lock(place: str) -> Iterator[None]:
    """Hold a local database for writing; the system releases it when the process ends, however that is."""
    if is_uri(place):
        yield
        return
    with explained(place, "write to"), FileLock(Path(place) / ".lock"):
        yield
