"""Files of vectors, rows and graph beside a database, mapped into memory.

They are a copy that may be deleted at any time: a missing, damaged or old one is made anew from the database. Their
checksums are read once; later, files that nobody wrote to since are opened without reading them.
"""

import hashlib
import json
import logging
import os
import shutil
import time
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from filelock import FileLock
from filelock import Timeout as FileLockTimeout

from unimetric.errors import UserError
from unimetric.files import cache_folder, check_writable, make_folder, write_json, write_text
from unimetric.search.memory.blocks import Block
from unimetric.search.memory.cells import packed
from unimetric.search.memory.graph import Graph
from unimetric.search.stores.base import is_uri

log = logging.getLogger(__name__)

_FORMAT = 3
_FOLDER = ".memory"
_CURRENT, _CHECKED = "current.json", "checked.json"
_ARRAYS = ("numbers", "vectors", "inverse", "by_id")
_ROWS, _GRAPH = "rows.arrow", "graph.usearch"
_CHUNK = 1 << 24
_SETTLED = 50_000_000
"""Nanoseconds after which a further write to a file changes its times for certain."""


@dataclass(frozen=True, eq=False)
class Saved:
    """Content of the files.

    Attributes:
        identity: The database's, from `RowNumbers.identity`.
        block: The rows.
        graph: Over the first of them.
        counts: From `measured_counts`; None if some rows are not in the graph.
        folder: Where the files are.
    """

    identity: str
    block: Block
    graph: Graph
    counts: dict[int, int | None] | None
    folder: Path


class MemoryFiles:
    """The files of a database in its folder, or in the user's cache for object storage or a folder of others."""

    def __init__(self, place: str) -> None:
        self._place = place
        self.folder = _folder_of(place)

    @property
    def stamp(self) -> int | None:
        """A number that changes when the files are replaced; None if there are none."""
        try:
            return (self.folder / _CURRENT).stat().st_mtime_ns
        except OSError:
            return None

    def load(self) -> Saved | None:
        """Map the files into memory; None if there are none, or they are damaged."""
        try:
            return self._load()
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, pa.ArrowInvalid) as error:
            log.warning("the vectors in %s are damaged (%s); they are made again", self.folder, error)
            return None

    def save(self, identity: str, block: Block, graph: Graph, counts: dict[int, int | None] | None) -> Saved:
        """Write the files, replace the ones before, and map them into memory; an `OSError` if that fails."""
        make_folder(self.folder)
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir()
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(block, name))
        rows = packed(block.rows)
        with pa.OSFile(str(folder / _ROWS), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
            writer.write_batch(rows)
        graph.save(folder / _GRAPH)
        about = {
            "format": _FORMAT,
            "folder": folder.name,
            "identity": identity,
            "counts": None if counts is None else {str(k): count for k, count in counts.items()},
            "sums": {file.name: _flushed_sum(file) for file in sorted(folder.iterdir())},
        }
        write_json(self.folder / _CURRENT, about)
        for other in self.folder.iterdir():
            # Mapped files of other processes stay readable, or cannot be deleted and are tried again.
            if other.is_dir() and other != folder:
                shutil.rmtree(other, ignore_errors=True)
        saved = self.load()
        if saved is None:
            raise OSError(f"the vectors that were written to {folder} cannot be read")
        return saved

    def lock(self) -> FileLock | None:
        """Return the lock of those who write, held; None if another process holds it."""
        make_folder(self.folder)
        lock = FileLock(self.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except FileLockTimeout:
            return None
        return lock

    def _load(self) -> Saved:
        about = _read(self.folder / _CURRENT)
        folder = self.folder / Path(str(about["folder"])).name
        self._check(folder, about["sums"])
        arrays: dict[str, Any] = {
            name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False)) for name in _ARRAYS
        }
        rows = pa.ipc.open_file(pa.memory_map(str(folder / _ROWS))).get_batch(0)
        if len({len(array) for name, array in arrays.items() if name != "by_id"} | {len(rows)}) != 1:
            raise ValueError("its files are of different lengths")
        counts = about["counts"]
        return Saved(
            about["identity"],
            Block(rows=rows, **arrays),
            Graph.open(folder / _GRAPH, view=True),
            None if counts is None else {int(k): count for k, count in counts.items()},
            folder,
        )

    def _check(self, folder: Path, sums: dict[str, list[int]]) -> None:
        """Compare files with their checksums, unless that was done and none was written to since."""
        found = {name: _state(folder / name) for name in sums}
        checked = self.folder / _CHECKED
        if checked.is_file() and checked.read_bytes() == _record(folder, found).encode():
            return
        for name, wanted in sums.items():
            if _sum(folder / name) != wanted:
                raise ValueError(f"{name} was changed")
        if time.time_ns() - max(max(state[2:]) for state in found.values()) < _SETTLED:
            return
        try:
            write_text(checked, _record(folder, found))
        except UserError as error:
            log.info("checksums are read at every start: %s", error)


def open_graph(saved: Saved) -> Graph:
    """Return the graph of some files as one that can be extended."""
    return Graph.open(saved.folder / _GRAPH, view=False)


def _folder_of(place: str) -> Path:
    if not is_uri(place):
        folder = Path(place) / _FOLDER
        try:
            check_writable(folder)
        except UserError:
            log.info("%s cannot be written; its vectors are kept in the user's cache", place)
        else:
            return folder
    return cache_folder() / "memory" / hashlib.sha256(place.encode()).hexdigest()[:32]


def _state(file: Path) -> list[int]:
    """Return length, node and times of a file, in nanoseconds; a write changes a time."""
    status = file.stat()
    return [status.st_size, status.st_ino, status.st_mtime_ns, status.st_ctime_ns]


def _record(folder: Path, states: dict[str, list[int]]) -> str:
    return json.dumps({folder.name: states}) + "\n"


def _flushed_sum(file: Path) -> list[int]:
    with file.open("r+b") as content:
        os.fsync(content.fileno())
    return _sum(file)


def _sum(file: Path) -> list[int]:
    """Return the length and the CRC-32 of a file."""
    length = value = 0
    with file.open("rb") as content:
        while chunk := content.read(_CHUNK):
            length, value = length + len(chunk), zlib.crc32(chunk, value)
    return [length, value]


def _read(file: Path) -> dict[str, Any]:
    about = json.loads(file.read_text(encoding="utf-8"))
    if about["format"] != _FORMAT:
        raise ValueError(f"its format is {about['format']}")
    return dict(about)
