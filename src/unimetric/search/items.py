"""Items and answers of a search database."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from unimetric.data.sources.metadata import Value
from unimetric.errors import ArgumentError, check_kind, shown
from unimetric.search.calibration import Strength


class ItemNotFoundError(ArgumentError):
    """The database holds no item of that id."""

    code: ClassVar[str] = "item_not_found"


def no_item(id: str) -> ItemNotFoundError:
    """There is no item of this id."""
    return ItemNotFoundError(f"no item {shown(id)}; take the id of a match")


@dataclass(frozen=True)
class NewItem:
    """An image to add, or to update if the database has one of its dataset and path."""

    image: Path | bytes
    """A file, or its content."""
    dataset: str
    """The catalogue that it belongs to."""
    label: str = ""
    """The class that it shows; unique within its dataset only."""
    path: str | None = None
    """The path or URI to show for it. By default the file's path with links resolved; for content without one, its
    hash."""
    metadata: Mapping[str, Value] = field(default_factory=dict)
    """Further columns; new ones are added, and are None in all other rows."""

    def __post_init__(self) -> None:
        check_kind("image", self.image, (Path, bytes), "a Path, or the bytes of a file")
        check_kind("dataset", self.dataset, str, "a text")
        check_kind("label", self.label, str, "a text")
        check_kind("path", self.path, (str, type(None)), "a text")
        check_kind("metadata", self.metadata, Mapping, "values by the names of their columns")


@dataclass(frozen=True)
class Refused:
    """An image that could not be read, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Added:
    """The result of adding items; everything in ``ids`` is on the disk."""

    ids: tuple[str | None, ...]
    """The id of every item, in the order given; None for those that were refused."""
    written: int
    """Rows that are new or were replaced."""
    unchanged: int
    """Items that the database already held unchanged."""
    refused: tuple[Refused, ...]


@dataclass(frozen=True)
class StoredItem:
    """A row without its vector and thumbnail."""

    id: str
    """32 hexadecimal digits that depend on dataset and path only."""
    dataset: str
    label: str
    path: str
    """The file, absolute, links resolved; or the URI."""
    metadata: Mapping[str, Value]
    content_hash: str
    """SHA-256 of the file's bytes, in hexadecimal."""


@dataclass(frozen=True)
class Match:
    """One answer to a query, the most similar first."""

    id: str
    score: float
    """Cosine similarity, from -1 to 1; of a hyperbolic model minus the distance, at most 0."""
    dataset: str
    label: str
    path: str
    metadata: Mapping[str, Value]
    is_match: bool | None
    """True if the confidence is at least 0.5 or the picture is identical; with a false-match rate, if the score reaches
    its threshold. None without a calibration."""
    confidence: float | None
    """From 0 to 1: the measured share of right answers among those that are as similar. None without a calibration."""
    strength: Strength | None = None
    """``identical``, or a word for the confidence: ``strong`` from 0.9, ``possible`` from 0.5, else ``weak``."""
    copies: tuple[Match, ...] = ()
    """Copies of its picture that were folded into it, the most similar first; empty unless copies are grouped."""
