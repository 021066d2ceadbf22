"""Answers about the catalogues, their columns and the indexing, as the OpenAPI description shows them."""

from pydantic import BaseModel, ConfigDict, Field
from pydantic.config import JsonDict

from unimetric.search.columns import MOST_CHOICES
from unimetric.search.query import MAX_K
from unimetric.search.upgrade.state import UpgradeState
from unimetric.service.folder import IndexingState
from unimetric.service.schemas import Value, examples

_COLUMN: JsonDict = {
    "name": "colour",
    "kind": "text",
    "distinct": 2,
    "missing": 0,
    "choices": [{"value": "red", "items": 310}, {"value": "black", "items": 250}],
    "low": None,
    "high": None,
}

_INDEXING: JsonDict = {
    "folder": "/data/photos",
    "phase": "indexing",
    "done": 1100,
    "total": 5000,
    "written": 1024,
    "seconds_left": 210.0,
    "skipped": [{"path": "/data/photos/roses/7.jpg", "reason": "cut off before its end"}],
    "skipped_total": 1,
    "problem": None,
    "train_command": "unimetric train /data/photos --out runs/mine",
}

_UPGRADE: JsonDict = {"answers": "new", "model": "9f86d081884c7d65", "embedded": 1100, "rows": 5000}


class Dataset(BaseModel):
    """A catalogue."""

    name: str
    items: int
    threshold: float | None = Field(
        description="The score from which an item is a match in a search of it alone, at a chosen false-match rate."
    )


class Datasets(BaseModel):
    """Datasets, columns and limits."""

    model_config = examples(
        {
            "datasets": [{"name": "shoes", "items": 1200, "threshold": 0.58}],
            "items": 1200,
            "threshold": 0.61,
            "columns": {"price": "number"},
            "model": "4be1c2...",
            "max_k": MAX_K,
            "max_upload_bytes": 10_000_000,
            "max_pixels": 50_000_000,
            "writable": False,
            "group_copies": False,
        }
    )

    datasets: list[Dataset] = Field(description="In alphabetical order.")
    items: int = Field(description="Of all datasets together.")
    threshold: float | None = Field(description="Of a search in all datasets.")
    columns: dict[str, str] = Field(description="The type of every metadata column that a condition may name.")
    model: str = Field(description="The model's fingerprint.")
    max_k: int
    max_upload_bytes: int
    max_pixels: int
    writable: bool
    group_copies: bool = Field(description="Copies of a picture are one match, unless a search asks for all.")


class Choice(BaseModel):
    """A value of a column."""

    model_config = examples({"value": "red", "items": 310})

    value: Value
    items: int = Field(description="Number of items that have it.")


class Column(BaseModel):
    """Range and choices of a metadata column."""

    model_config = examples(_COLUMN)

    name: str
    kind: str = Field(description="text, number, boolean, date or time.")
    distinct: int = Field(description="Number of distinct values.")
    missing: int = Field(description="Number of items without a value.")
    choices: list[Choice] = Field(
        description=f"The most frequent value first; empty where there are more than {MOST_CHOICES}."
    )
    low: Value = Field(description="The least value of a number, date or time.")
    high: Value = Field(description="The greatest value, likewise.")


class Columns(BaseModel):
    """All metadata columns that a condition may name."""

    model_config = examples({"columns": [_COLUMN]})

    columns: list[Column]


class Status(BaseModel):
    """State of the service, of the indexing where a folder of images is served, and of an upgrade to another model."""

    # The states describe their fields by docstrings.
    model_config = ConfigDict(
        use_attribute_docstrings=True,
        **examples({"ready": True, "items": 1024, "indexing": _INDEXING, "upgrade": _UPGRADE}),
    )

    ready: bool = Field(description="Images are embedded now.")
    items: int = Field(description="Images that can be found.")
    indexing: IndexingState | None = Field(description="Null where a database is served.")
    upgrade: UpgradeState | None = Field(description="Null where the database is not being upgraded.")
