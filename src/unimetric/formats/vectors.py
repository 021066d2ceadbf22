"""Measured vectors, kept beside ``metrics.json`` so that reports need no model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from unimetric.data.catalog import Item, item_identities
from unimetric.errors import UserError
from unimetric.files import write_atomically

VECTORS_FILE = "vectors.parquet"
"""Name of the file in a run folder, and in a folder that ``unimetric evaluate`` writes."""

_COLUMNS = ("path", "label", "dataset", "side", "vector")


@dataclass(frozen=True)
class MeasuredVectors:
    """Queries and gallery of a measurement, in its order.

    Attributes:
        query: N items.
        query_vectors: float32 [N, E].
        gallery: G items; the same tuple as ``query`` if every image is both.
        gallery_vectors: float32 [G, E].
    """

    query: tuple[Item, ...]
    query_vectors: NDArray[np.float32]
    gallery: tuple[Item, ...]
    gallery_vectors: NDArray[np.float32]

    @property
    def datasets(self) -> tuple[str, ...]:
        """The names of all datasets, in order of first occurrence."""
        return tuple(dict.fromkeys(item.dataset for item in (*self.query, *self.gallery)))

    def identities(self) -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
        """Return the identity of each query and gallery item: its dataset and the file behind its path."""
        return item_identities(self.query), item_identities(self.gallery)


def write_measured(path: Path, measured: MeasuredVectors) -> None:
    """Write a Parquet file with the columns ``path``, ``label``, ``dataset``, ``side`` and ``vector``.

    One row per query, then one per gallery item; if all images are both, one row each with ``side`` ``both``.
    ``vector`` holds E float32 numbers. Where an image has several labels, ``labels`` has all of them. Bytes that are
    not Unicode are written as ``\\udcNN``.
    """
    if measured.gallery is measured.query:
        items, vectors, sides = measured.query, measured.query_vectors, ["both"] * len(measured.query)
    else:
        items = (*measured.query, *measured.gallery)
        vectors = np.concatenate([measured.query_vectors, measured.gallery_vectors])
        sides = ["query"] * len(measured.query) + ["gallery"] * len(measured.gallery)
    columns = {
        "path": [as_unicode(str(item.path)) for item in items],
        "label": [as_unicode(item.label) for item in items],
        "dataset": [as_unicode(item.dataset) for item in items],
        "side": sides,
        "vector": pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), vectors.shape[1]),
    }
    if any(item.labels for item in items):
        several = [[as_unicode(label) for label in item.labels] or None for item in items]
        columns["labels"] = pa.array(several, pa.list_(pa.string()))
    table = pa.table(columns)
    write_atomically(path, lambda temporary: pq.write_table(table, temporary))


def read_measured(path: Path) -> MeasuredVectors:
    """Read a file of `write_measured`; a `UserError` if it is missing, damaged, or of another kind."""
    again = "write it again with: unimetric evaluate"
    if not path.is_file():
        raise UserError(f"{path} does not exist; {again}")
    try:
        present = pq.read_schema(path).names
        table = pq.read_table(path, columns=[*_COLUMNS, *(["labels"] if "labels" in present else [])])
        several = table["labels"].to_pylist() if "labels" in present else [None] * len(table)
        values: dict[str, list[Any]] = {name: table[name].to_pylist() for name in _COLUMNS[:4]}
        column = table["vector"].combine_chunks()
        vectors = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        vectors = vectors.reshape(len(column), -1)
        described = zip(values["path"], values["label"], values["dataset"], several, strict=True)
        items = [
            Item(Path(name), label, dataset, None, tuple(labels or ())) for name, label, dataset, labels in described
        ]
    except (pa.ArrowException, KeyError, ValueError, TypeError, AttributeError, OSError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path} is not a file of measured vectors ({reason}); {again}") from error
    sides = np.array(values["side"], dtype=object)
    if not set(sides) <= {"query", "gallery", "both"} or not len(sides) or not np.isfinite(vectors).all():
        raise UserError(f"{path} is damaged: empty, an unknown side, or vectors that are not finite; {again}")
    if set(sides) == {"both"}:
        everything = tuple(items)
        return MeasuredVectors(everything, vectors, everything, vectors)
    query, gallery = (np.flatnonzero((sides == side) | (sides == "both")) for side in ("query", "gallery"))
    return MeasuredVectors(
        tuple(items[row] for row in query), vectors[query], tuple(items[row] for row in gallery), vectors[gallery]
    )


def as_unicode(text: str) -> str:
    """Escape bytes of a file name that are not UTF-8, which neither Parquet nor a page can hold."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")
