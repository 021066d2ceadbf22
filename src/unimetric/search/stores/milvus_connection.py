"""Connections to Milvus: a server, or a file of this machine that milvus-lite serves within the process."""

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.errors import UserError, cause
from unimetric.search.errors import DatabaseError, DatabaseMissingError
from unimetric.search.stores.base import MAKE_ONE, milvus_parts

_LITE: dict[str, tuple[Any, Any, int, int]] = {}
"""Server, files, port and users of every local file that is open: one process may open a file once only."""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Connection:
    """A client, and the local file that it reads; None for a server."""

    client: Any
    file: str | None

    def close(self) -> None:
        """Close it; the last one of a file closes the file too."""
        self.client.close()
        if self.file is not None:
            _release(self.file)


def connect(place: str, create: bool) -> Connection:
    """Connect to the server or file of a place; a server gets the token (``user:password``) in ``MILVUS_TOKEN``."""
    address, _ = milvus_parts(place)
    # gRPC prints a line for every connection that ends.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        from pymilvus import MilvusClient
    except ModuleNotFoundError as error:
        raise UserError(f"{place} needs {error.name}, which is missing; pip install 'unimetric[milvus]'") from error
    # It logs every error that it raises, with a traceback.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL + 1)
    if address.startswith("http"):
        with explained(place, "reach"):
            return Connection(MilvusClient(uri=address, token=os.environ.get("MILVUS_TOKEN", "")), None)
    if not create and not Path(address).is_dir():
        raise DatabaseMissingError(f"there is no search database {place}; {MAKE_ONE}")
    port = _acquire(address, place)
    return Connection(MilvusClient(uri=f"http://127.0.0.1:{port}"), address)


@contextmanager
def closing_on_error(connection: Connection) -> Iterator[None]:
    """Close a connection that could not be used."""
    try:
        yield
    except BaseException:
        connection.close()
        raise


@contextmanager
def explained(place: str, action: str) -> Iterator[None]:
    """Raise Milvus's errors as a `DatabaseError`; ``action`` is a verb such as ``read``."""
    from grpc import RpcError
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, RpcError) as error:
        raise DatabaseError(
            f"cannot {action} the search database {place}: {cause(error)}; check the address and that Milvus is running"
        ) from error


def _acquire(file: str, place: str) -> int:
    try:
        from milvus_lite.adapter.grpc.server import start_server_in_thread
        from milvus_lite.exceptions import DataDirLockedError
    except ModuleNotFoundError as error:
        raise UserError(f"{place} needs {error.name}, which is missing; pip install 'unimetric[milvus]'") from error
    # Its server lacks what clients ask for first, and logs that with a traceback.
    logging.getLogger("grpc._server").setLevel(logging.CRITICAL + 1)
    with _LOCK:
        if file in _LITE:
            server, files, port, users = _LITE[file]
        else:
            try:
                Path(file).parent.mkdir(parents=True, exist_ok=True)
                server, files, port = start_server_in_thread(data_dir=file, host="127.0.0.1", port=0)
            except DataDirLockedError as error:
                raise DatabaseError(
                    f"cannot open the search database {place}: another process has it open; a local Milvus file is for "
                    "one process at a time"
                ) from error
            except OSError as error:
                raise DatabaseError(f"cannot open the search database {place}: {error.strerror or error}") from error
            users = 0
        _LITE[file] = server, files, port, users + 1
    return int(port)


def _release(file: str) -> None:
    with _LOCK:
        server, files, port, users = _LITE.pop(file)
        if users > 1:
            _LITE[file] = server, files, port, users - 1
        else:
            server.stop(grace=None).wait()
            files.close()
