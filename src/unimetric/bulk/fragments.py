"""The result: a folder of Parquet files, each of one piece, that appears whole or not at all."""

from __future__ import annotations

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

from unimetric.bulk import storage
from unimetric.errors import UserError

ABOUT_FILE = "fragments.json"
_SKIPPED = b"unimetric.skipped"
_FINGERPRINT = b"unimetric.fingerprint"
_BASE = b"unimetric.base"


@dataclass(frozen=True)
class About:
    """What all fragments of a folder have in common; another run may only go on with the same.

    Attributes:
        fingerprint: The model's.
        embedding_size: E.
        precision: ``bf16``, ``fp32`` or ``int8``.
        batch_size: Images per forward pass.
        thumbnails: Whether thumbnails are kept.
        fragments: How many there will be.
        plan: SHA-256 of the plan, so of all image names, labels and datasets.
    """

    fingerprint: str
    embedding_size: int
    precision: str
    batch_size: int
    thumbnails: bool
    fragments: int
    plan: str
    format: int = 1


@dataclass(frozen=True)
class Row:
    """An embedded image, but for its vector."""

    path: str
    label: str
    dataset: str
    content_hash: str
    thumbnail: bytes | None


@dataclass(frozen=True)
class Skipped:
    """An image that could not be read, and why."""

    path: str
    reason: str


def begin(folder: str, about: About) -> set[str]:
    """Record what the fragments are, or check it against what is recorded, and return the names of finished ones.

    Raises:
        UserError: the folder holds something else, or cannot be written.
    """
    place = storage.join(folder, ABOUT_FILE)
    present = {posixpath.basename(file) for file in storage.list_files(folder, recursive=False)}
    if ABOUT_FILE not in present:
        other = [name for name in sorted(present) if not name.startswith(".")]
        if other:
            raise UserError(f"{folder} holds other files ({other[0]}); name an empty folder with --out")
        storage.write_whole(place, (json.dumps(asdict(about), indent=2) + "\n").encode())
        return set()
    recorded = read_about(folder)
    for name, value in asdict(about).items():
        if getattr(recorded, name) != value:
            raise UserError(
                f"{folder} holds fragments of another run ({_WORDS.get(name, name)} {getattr(recorded, name)}, now "
                f"{value}); repeat that run's command, or name another folder with --out"
            )
    return {name for name in present if name.startswith("part-") and name.endswith(".parquet")}


_WORDS = {"fingerprint": "model", "plan": "images with the digest", "fragments": "number of fragments"}


def read_about(folder: str) -> About:
    """What `begin` recorded.

    Raises:
        UserError: the folder holds no fragments, or the record is damaged.
    """
    place = storage.join(folder, ABOUT_FILE)
    try:
        return About(**json.loads(storage.read_bytes(place)))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{place} is missing or damaged: name a folder that unimetric embed --engine ray or --shard wrote"
        ) from error


def write_fragment(
    place: str,
    rows: Sequence[Row],
    vectors: NDArray[np.float32],
    skipped: Sequence[Skipped],
    fingerprint: str,
    base: str,
) -> None:
    """Write one fragment: the columns of ``unimetric embed``, ``content_hash`` (SHA-256) and ``thumbnail``.

    What was skipped, the model's fingerprint, and where relative paths start, are in the file's metadata: the
    fragment accounts for its images.

    Raises:
        UserError: it cannot be written.
    """
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).ravel())
    columns = {
        "path": pa.array([_unicode(row.path) for row in rows], pa.string()),
        "label": pa.array([_unicode(row.label) for row in rows], pa.string()),
        "dataset": pa.array([_unicode(row.dataset) for row in rows], pa.string()),
        "vector": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
        "content_hash": pa.array([row.content_hash for row in rows], pa.string()),
        "thumbnail": pa.array([row.thumbnail for row in rows], pa.binary()),
    }
    entries = json.dumps([[_unicode(entry.path), entry.reason] for entry in skipped])
    table = pa.table(columns).replace_schema_metadata({_SKIPPED: entries, _FINGERPRINT: fingerprint, _BASE: base})
    content = io.BytesIO()
    pq.write_table(table, content)
    storage.write_whole(place, content.getvalue())


def read_skipped(place: str) -> tuple[int, list[Skipped]]:
    """The number of rows of a fragment, and what it skipped; only the file's end is read.

    Raises:
        UserError: it is damaged.
    """
    try:
        with storage.open_file(place) as file:
            metadata = pq.read_metadata(file)
        entries = json.loads(metadata.metadata[_SKIPPED])
        return metadata.num_rows, [Skipped(path, reason) for path, reason in entries]
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError) as error:
        raise _damaged(place, error) from error


def fragment_files(folder: str) -> list[str]:
    """The fragments of a finished run, in order.

    Raises:
        UserError: the folder holds none, or not all.
    """
    about = read_about(folder)
    files = [
        file
        for file in storage.list_files(folder, recursive=False)
        if posixpath.basename(file).startswith("part-") and file.endswith(".parquet")
    ]
    if len(files) != about.fragments:
        raise UserError(
            f"{folder} holds {len(files)} of {about.fragments} fragments; repeat the unimetric embed command first"
        )
    return files


def read_fragment(place: str, fingerprint: str, rows: int = 8192) -> Iterator[dict[str, Any]]:
    """The rows of a fragment in parts: lists by column name, ``vector`` as float32 [n, E], ``base`` as text.

    Raises:
        UserError: it is damaged, or holds another model's vectors.
    """
    try:
        with storage.open_file(place) as opened:
            file = pq.ParquetFile(opened)
            found = file.metadata.metadata[_FINGERPRINT].decode()
            if found != fingerprint:
                raise UserError(
                    f"{place} holds vectors of another model (fingerprint {found[:12]}, not {fingerprint[:12]}); "
                    "name the model that they were embedded with"
                )
            for batch in file.iter_batches(batch_size=rows):
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
    return UserError(f"the fragment {place} is damaged ({' '.join(str(error).split())}); delete it and embed again")


def _unicode(text: str) -> str:
    """File names may hold bytes that are no UTF-8, which Parquet cannot hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
