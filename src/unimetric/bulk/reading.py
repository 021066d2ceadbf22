"""Reading of a unit's images as bytes: from files, WebDataset archives, and Parquet files that hold images."""

import json
import math
import posixpath
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from unimetric.bulk.work_units import WorkUnit
from unimetric.data.images import ImageError, file_reason, image_file, is_image_name, without_box
from unimetric.data.labels import clean_label
from unimetric.errors import UserError, cause
from unimetric.storage import objects as storage
from unimetric.storage.access import StorageError

MAX_BYTES = 1 << 30
"""Largest member of an archive; larger ones are refused before they are read."""


@dataclass(frozen=True, slots=True)
class Source:
    """An image's name and labels, with its bytes, an error, or None if it is read from its path."""

    path: str
    label: str
    dataset: str
    content: bytes | ImageError | None = None

    def read(self, base: Path) -> bytes:
        """Read the image's bytes, or raise an `ImageError`; a relative path starts at ``base``."""
        if isinstance(self.content, ImageError):
            raise self.content
        return _read(self.path, base) if self.content is None else self.content


def sources(unit: WorkUnit) -> Iterator[Source]:
    """Yield the images of a unit in a defined order; a truncated archive ends with an entry that names it.

    Raises:
        UserError: the archive is missing; a finished shard would lack it for ever.
    """
    if unit.kind == "files":
        yield from (Source(*image) for image in unit.images)
        return
    read = _tar_images if unit.kind == "tar" else _table_images
    try:
        yield from read(unit)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {unit.place}; check the path") from error
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        yield Source(unit.place, "", unit.dataset, ImageError(f"cannot be read ({reason})"))


def _read(place: str, base: Path) -> bytes:
    path = storage.local_path(place)
    try:
        if path is None:
            return storage.read_bytes(without_box(place))
        path = image_file(base / path)
        # Opening a named pipe would block.
        if not stat.S_ISREG(path.stat().st_mode):
            raise ImageError("a folder, not a file" if path.is_dir() else "not a regular file")
        return path.read_bytes()
    except StorageError:
        # The next attempt may find the image; a finished shard would lack it for ever.
        raise
    except (pa.ArrowException, UserError) as error:
        raise ImageError(f"cannot be read ({cause(error)})") from error
    except (OSError, ValueError) as error:
        raise ImageError(file_reason(error)) from error


def _tar_images(unit: WorkUnit) -> Iterator[Source]:
    """Yield the images of an archive; neighbouring files of one name up to the first dot are a sample (WebDataset)."""
    with storage.open_file(unit.place) as file:
        # Detects archives that are truncated between two files.
        whole = _has_end(file)
        unlabelled: set[str] = set()
        for key, group in groupby(_members(file), key=lambda member: _sample_name(member[0])):
            members = dict(group)
            labels = _labels(members)
            if labels and key in unlabelled:
                raise UserError(
                    f"{unit.place}: the label of {key} does not lie beside its image; pack the archive sorted by name, "
                    "as tar --sort=name does"
                )
            for image in _sample(unit, key, members, labels):
                yield image
                if not image.label:
                    unlabelled.add(key)
            whole = whole or "" in members
    if not whole:
        yield Source(unit.place, "", unit.dataset, ImageError("truncated or damaged archive"))


def _sample_name(name: str) -> str:
    folder, own = posixpath.split(name)
    return posixpath.join(folder, own.partition(".")[0])


def _has_end(file: IO[bytes]) -> bool:
    """Return True if a tar file ends with two blocks of zeros."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 1024))
    last = file.read(1024)
    file.seek(0)
    return len(last) == 1024 and not any(last)


def _members(file: IO[bytes]) -> Iterator[tuple[str, bytes | ImageError]]:
    """Yield name and content of every file; after damage comes an entry without a name."""
    try:
        with tarfile.open(fileobj=file, mode="r|") as archive:
            for member in archive:
                # macOS packs a hidden file beside each of its own.
                if not member.isfile() or posixpath.basename(member.name).startswith("."):
                    continue
                if member.size > MAX_BYTES:
                    yield member.name, ImageError(f"too many bytes ({member.size} > {MAX_BYTES})")
                    continue
                opened = archive.extractfile(member)
                content = b"" if opened is None else opened.read()
                yield member.name, content if len(content) == member.size else ImageError("truncated")
    except (tarfile.TarError, EOFError):
        yield "", ImageError("truncated or damaged archive")


def _sample(
    unit: WorkUnit, key: str, members: dict[str, bytes | ImageError], labels: dict[str, str]
) -> Iterator[Source]:
    stems = {posixpath.splitext(name)[0] for name in members if is_image_name(name)}
    # Images such as 22.05.png and 22.06.png are one sample by the rule, but each has the label of its own name.
    common = next((label for stem, label in labels.items() if stem == key or stem not in stems), "")
    for name, content in members.items():
        if not name:
            yield Source(unit.place, "", unit.dataset, content)
        elif is_image_name(name):
            label = labels.get(posixpath.splitext(name)[0], common)
            yield Source(f"{unit.place}#{name}", label, unit.dataset, content)


def _labels(members: dict[str, bytes | ImageError]) -> dict[str, str]:
    """Return the labels in ``.cls``, ``.label``, and the entry ``label`` of ``.json``, by file name without ending."""
    labels: dict[str, str] = {}
    for name, content in members.items():
        stem, ending = posixpath.splitext(name)
        if isinstance(content, ImageError) or ending not in (".cls", ".label", ".json"):
            continue
        label = _json_label(content) if ending == ".json" else _text(content)
        if label:
            labels.setdefault(stem, label)
    return labels


def _json_label(content: bytes) -> str:
    try:
        values = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    return _text(values.get("label")) if isinstance(values, dict) else ""


def _text(value: Any) -> str:
    """Return a label or a dataset's name in the form of a manifest: "" for a missing value, ``a|b`` for a list."""
    if isinstance(value, list):
        return "|".join(sorted({_text(each) for each in value} - {""}))
    if isinstance(value, float) and (math.isnan(value) or value.is_integer()):
        # pandas makes floats of whole numbers in a column with missing values.
        value = None if math.isnan(value) else int(value)
    return "" if value is None else clean_label(_decoded(value))


def _decoded(value: Any) -> str:
    return value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else str(value)


def _table_images(unit: WorkUnit) -> Iterator[Source]:
    with storage.open_file(unit.place) as opened:
        file = pq.ParquetFile(opened)
        wanted = [name for name in ("image", "path", "label", "dataset") if name in file.schema_arrow.names]
        number = 0
        for batch in file.iter_batches(batch_size=64, columns=wanted):
            for row in batch.to_pylist():
                yield _row(unit, row, number)
                number += 1


def _row(unit: WorkUnit, row: dict[str, Any], number: int) -> Source:
    image = row["image"]
    inner = None
    if isinstance(image, dict):
        inner, image = image.get("path"), image.get("bytes")
    path = _decoded(row.get("path") or f"{unit.place}#{inner or number}")
    content = ImageError("no image in this row") if image is None else image
    return Source(path, _text(row.get("label")), _text(row.get("dataset")) or unit.dataset, content)
