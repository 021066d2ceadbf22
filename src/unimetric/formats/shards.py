"""Folders of vectors in shards: Parquet files, one per work unit, each written whole or not at all."""

import io
import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unimetric.errors import UserError
from unimetric.files import parse_json
from unimetric.formats.vectors import as_unicode
from unimetric.storage import objects as storage

INFO_FILE = "shards.json"
_ROWS = 8192
"""Rows that are read at once."""
_SKIPPED = b"unimetric.skipped"
_FINGERPRINT = b"unimetric.fingerprint"
_BASE = b"unimetric.base"


@dataclass(frozen=True)
class ShardsInfo:
    """Properties shared by all shards of a folder; only a run with the same ones may resume it.

    Attributes:
        fingerprint: The model's.
        embedding_size: E.
        precision: ``bf16``, ``fp32`` or ``int8``.
        batch_size: Images per forward pass.
        thumbnails: True if thumbnails are kept.
        shards: The number of shards.
        plan: SHA-256 of the plan, which covers all image names, labels and datasets.
    """

    fingerprint: str
    embedding_size: int
    precision: str
    batch_size: int
    thumbnails: bool
    shards: int
    plan: str
    format: int = 1


@dataclass(frozen=True)
class Row:
    """An embedded image without its vector."""

    path: str
    label: str
    dataset: str
    content_hash: str
    thumbnail: bytes | None


@dataclass(frozen=True)
class Skipped:
    """An unreadable image and the reason."""

    path: str
    reason: str


def begin(folder: str, info: ShardsInfo) -> set[str]:
    """Record the shards' properties, or compare them with the recorded ones; return the names of finished shards."""
    place = storage.join(folder, INFO_FILE)
    present = {posixpath.basename(file) for file in storage.list_files(folder, recursive=False)}
    if INFO_FILE not in present:
        other = [name for name in sorted(present) if not name.startswith(".")]
        if other:
            raise UserError(f"{folder} holds other files ({other[0]}); name an empty folder with --out")
        storage.write_whole(place, (json.dumps(asdict(info), indent=2) + "\n").encode())
        return set()
    recorded = read_info(folder)
    for name, value in asdict(info).items():
        if getattr(recorded, name) != value:
            raise UserError(
                f"{folder} holds shards of another run ({_WORDS.get(name, name)} {getattr(recorded, name)}, now "
                f"{value}); repeat that run's command, or name another folder with --out"
            )
    return {name for name in present if name.startswith("part-") and name.endswith(".parquet")}


_WORDS = {"fingerprint": "model", "plan": "images with the digest", "shards": "number of shards"}


def read_info(folder: str) -> ShardsInfo:
    """Read the record of `begin`; a `UserError` if the folder holds no shards, or the record is damaged."""
    place = storage.join(folder, INFO_FILE)
    try:
        return ShardsInfo(**parse_json(storage.read_bytes(place)))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{place} is missing or damaged: name a folder that unimetric embed --engine ray or --shard wrote"
        ) from error


def write_shard(
    place: str,
    rows: Sequence[Row],
    vectors: NDArray[np.float32],
    skipped: Sequence[Skipped],
    fingerprint: str,
    base: str,
) -> None:
    """Write one shard: the columns of ``unimetric embed``, ``content_hash`` (SHA-256) and ``thumbnail``.

    The file's metadata holds the skipped images, the model's fingerprint and the folder that relative paths start from.
    """
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    columns = {
        "path": pa.array([as_unicode(row.path) for row in rows], pa.string()),
        "label": pa.array([as_unicode(row.label) for row in rows], pa.string()),
        "dataset": pa.array([as_unicode(row.dataset) for row in rows], pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        "content_hash": pa.array([row.content_hash for row in rows], pa.string()),
        "thumbnail": pa.array([row.thumbnail for row in rows], pa.binary()),
    }
    entries = json.dumps([[as_unicode(entry.path), entry.reason] for entry in skipped])
    table = pa.table(columns).replace_schema_metadata({_SKIPPED: entries, _FINGERPRINT: fingerprint, _BASE: base})
    content = io.BytesIO()
    pq.write_table(table, content)
    storage.write_whole(place, content.getvalue())


def read_skipped(place: str) -> tuple[int, list[Skipped]]:
    """Return a shard's number of rows and its skipped images; only the end of the file is read."""
    try:
        with storage.open_file(place) as file:
            metadata = pq.read_metadata(file)
        entries = parse_json(metadata.metadata[_SKIPPED])
        return metadata.num_rows, [Skipped(path, reason) for path, reason in entries]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _damaged(place, error) from error


def shard_files(folder: str) -> list[str]:
    """Return the shards of a finished run, in order; a `UserError` if the folder holds none, or not all."""
    info = read_info(folder)
    files = [
        file
        for file in storage.list_files(folder, recursive=False)
        if posixpath.basename(file).startswith("part-") and file.endswith(".parquet")
    ]
    if len(files) != info.shards:
        raise UserError(
            f"{folder} holds {len(files)} of {info.shards} shards; repeat the unimetric embed command first"
        )
    return files


def read_shard(place: str, fingerprint: str) -> Iterator[dict[str, Any]]:
    """Yield a shard's rows in parts: lists by column name, ``vector`` as float32 [n, E], ``base`` as text."""
    try:
        with storage.open_file(place) as opened:
            file = pq.ParquetFile(opened)
            found = file.metadata.metadata[_FINGERPRINT].decode()
            if found != fingerprint:
                raise UserError(
                    f"{place} holds vectors of another model (fingerprint {found[:12]}, not {fingerprint[:12]}); "
                    "name the model that they were embedded with"
                )
            for batch in file.iter_batches(batch_size=_ROWS):
                columns: dict[str, Any] = {
                    name: batch[name].to_pylist() for name in batch.schema.names if name != "vector"
                }
                vectors = batch["vector"].flatten().to_numpy(zero_copy_only=False)
                if not np.isfinite(vectors).all():
                    raise UserError(f"{place} is damaged: vectors that are not finite; delete it and embed again")
                columns["base"] = file.metadata.metadata[_BASE].decode()
                columns["vector"] = vectors.reshape(batch.num_rows, -1)
                yield columns
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _damaged(place, error) from error


def _damaged(place: str, error: Exception) -> UserError:
    return UserError(f"the shard {place} is damaged ({' '.join(str(error).split())}); delete it and embed again")
