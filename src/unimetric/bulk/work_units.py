"""The plan: the images of each shard. It depends on the sources and two options, not on the machines."""

import hashlib
import json
import posixpath
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from unimetric.data.images import is_image_name
from unimetric.data.labels import clean_label
from unimetric.data.sources import read_sources
from unimetric.data.sources.manifest import parse_manifest
from unimetric.data.sources.tree import unusable_files
from unimetric.errors import UserError
from unimetric.files import path_exists
from unimetric.progress import log_notes, log_skipped
from unimetric.storage import objects as storage


@dataclass(frozen=True, slots=True)
class WorkUnit:
    """The images of one shard.

    Attributes:
        number: Its position in the plan.
        kind: ``files``: the images listed; ``tar``: a WebDataset archive; ``table``: a Parquet file that holds images.
        dataset: The name of an archive's dataset.
        place: The archive.
        images: Path or URI, label and dataset of every listed image.
    """

    number: int
    kind: str
    dataset: str = ""
    place: str = ""
    images: tuple[tuple[str, str, str], ...] = ()

    @property
    def name(self) -> str:
        """The name of its shard's file."""
        return f"part-{self.number:06}.parquet"

    def to_json(self) -> str:
        """Return the unit as JSON."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "WorkUnit":
        """Return the unit of a JSON text."""
        values = json.loads(text)
        return cls(**{**values, "images": tuple(tuple(image) for image in values["images"])})


def plan(sources: Sequence[str], rows: int) -> list[WorkUnit]:
    """Divide sources into units: listed images by ``rows``, and every archive as one unit.

    Sources are those of ``unimetric embed``, and ``.tar`` files (WebDataset), Parquet files with a column ``image``,
    folders of either, and URIs of all of them. One without an image, or that cannot be read, is a `UserError`.
    """
    images: list[tuple[str, str, str]] = []
    archives: list[tuple[str, str, str]] = []
    listed: list[str] = []
    for source in sources:
        name, place = _named(source)
        files = _archives(place)
        if files:
            dataset = name or _stem(place)
            archives += [("tar" if file.endswith(".tar") else "table", dataset, file) for file in files]
        elif storage.local_path(place) is None:
            images += _remote_images(place, name)
        else:
            path = str(storage.local_path(place)) if place.startswith("file://") else place
            listed.append(f"{name}={path}" if name else path)
    if listed or not sources:
        local = read_sources(listed, classes=False)
        log_notes(note for dataset in local for note in dataset.notes)
        log_skipped(unusable_files(local))
        images = [(str(item.path), item.label, item.dataset) for dataset in local for item in dataset.items] + images
    parts = [tuple(images[start : start + rows]) for start in range(0, len(images), rows)]
    units = [WorkUnit(number, "files", images=part) for number, part in enumerate(parts)]
    return units + [
        WorkUnit(number, kind, dataset, place)
        for number, (kind, dataset, place) in enumerate(archives, start=len(units))
    ]


def digest(units: Sequence[WorkUnit]) -> str:
    """Return the SHA-256 of a plan."""
    content = hashlib.sha256()
    for unit in units:
        content.update(unit.to_json().encode("utf-8", "backslashreplace") + b"\n")
    return content.hexdigest()


def holds_images(place: str) -> bool:
    """Return True if a readable Parquet file has a column ``image`` of bytes, or of ``{bytes, path}``."""
    try:
        with storage.open_file(place) as file:
            schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place} is not a readable Parquet file: {' '.join(str(error).split())}") from error
    if "image" not in schema.names:
        return False
    kind = schema.field("image").type
    if pa.types.is_struct(kind):
        return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _named(source: str) -> tuple[str | None, str]:
    """Split ``NAME=PLACE`` into its parts; the name is None if there is none, or if a file is called so as a whole."""
    name, sign, place = source.partition("=")
    if sign and not path_exists(source) and clean_label(name) and not set(name) & set("/\\:"):
        return clean_label(name), place
    return None, source


def _archives(place: str) -> list[str]:
    path = storage.local_path(place)
    if place.endswith(".tar") and (path is None or not path.is_dir()):
        if path is not None and not path.exists():
            raise UserError(f"there is no file {place}; check the path")
        return [place]
    if place.endswith((".parquet", ".pq")):
        if path is not None and not path.is_file():
            return []  # reported when manifests are read
        return [place] if holds_images(place) else []
    if place.endswith((".csv", ".tsv")) or (path is not None and not path.is_dir()):
        return []
    files = storage.list_files(place, recursive=False)
    archives = [file for file in files if file.endswith(".tar")]
    if not archives:
        archives = [file for file in files if file.endswith((".parquet", ".pq")) and holds_images(file)]
    return archives


def _stem(place: str) -> str:
    return clean_label(posixpath.splitext(posixpath.basename(place.rstrip("/")))[0])


def _remote_images(place: str, name: str | None) -> list[tuple[str, str, str]]:
    if place.endswith((".csv", ".tsv", ".parquet", ".pq")):
        return _remote_manifest(place, name)
    files = [file for file in storage.list_files(place) if is_image_name(file)]
    if not files:
        raise UserError(f"there are no images, .tar or .parquet files in {place}; check the address")
    root = place.rstrip("/")
    dataset = name or clean_label(posixpath.basename(root))
    # An image outside class folders has no label, as in a local folder.
    return [
        (file, "" if storage.parent(file) == root else clean_label(posixpath.basename(storage.parent(file))), dataset)
        for file in files
    ]


def _remote_manifest(place: str, name: str | None) -> list[tuple[str, str, str]]:
    try:
        content = storage.read_bytes(place)
    except OSError as error:
        raise UserError(f"the manifest {place} cannot be read ({' '.join(str(error).split())})") from error
    rows = parse_manifest(place, content, name, classes=False)
    folder = storage.parent(place)
    paths = (storage.join(folder, path) for path in rows.paths)
    return list(zip(paths, rows.labels, rows.datasets, strict=True))
