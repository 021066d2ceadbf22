"""Requests and answers, as the OpenAPI description shows them."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic.config import JsonDict

from unimetric.search.calibration import Strength
from unimetric.search.query import MAX_K

ID = "3f2a9c0e5b7d41f88a6c1e2d3b4f5a60"
"""An example."""

PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAFElEQVR4nGPUSl7GgA0wYRUdtBIA8/4BQ/tLeKUAAAAASUVORK5CYII="
"""A small PNG, for examples."""

_COPY: JsonDict = {
    "id": ID,
    "score": 0.83,
    "dataset": "shoes",
    "label": "air-runner",
    "path": "/data/shoes/air-runner/2.jpg",
    "metadata": {"price": 89.5},
    "is_match": True,
    "confidence": 0.97,
    "strength": "strong",
    "image": f"v1/items/{ID}/image",
}

_MATCH: JsonDict = {**_COPY, "copies": []}

_ITEM: JsonDict = {
    **{name: _COPY[name] for name in ("id", "dataset", "label", "path", "metadata", "image")},
    "content_hash": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
}

_ANSWER: JsonDict = {"no_match": False, "threshold": None, "matches": [_MATCH]}

MAX_PICTURES = 10
"""Pictures of one query, at most."""
_Some = Field(min_length=1, max_length=MAX_PICTURES)

Value = str | int | float | bool | date | datetime | None
Name = Annotated[str, Field(max_length=1000, pattern=r"^[^\x00]*$")]
_Base64 = Annotated[str, Field(json_schema_extra={"contentEncoding": "base64"})]


def examples(*values: JsonDict) -> ConfigDict:
    """Return the configuration of a model with these examples."""
    return ConfigDict(json_schema_extra={"examples": [*values]})


class _In(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class SearchRequest(_In):
    """A search for an image, an item, or several of them together, in some or all of the datasets."""

    model_config = examples({"image": PIXEL, "k": 5}, {"id": ID, "k": 5}, {"images": [PIXEL, PIXEL], "k": 5})

    k: int = Field(10, ge=1, le=MAX_K, description="Number of matches, at most.")
    datasets: list[Name] | None = Field(
        None, min_length=1, max_length=1000, description="The only datasets to search in; all by default."
    )
    where: str | None = Field(
        None,
        max_length=10_000,
        description="A condition on the columns; docs/search.md has its grammar.",
        examples=["price < 20"],
    )
    exact: bool = Field(False, description="Compare with every item, without the approximate index.")
    guarantee: float | None = Field(
        None,
        ge=0.5,
        lt=1,
        description="Instead of k matches, return one item of each class that the image may be of, so that its class "
        "is among them with this probability. It excludes where and id.",
        examples=[0.95],
    )
    guarantee_delta: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="Accepted probability that the images of the calibration were too untypical for the guarantee.",
    )
    group_copies: bool | None = Field(
        None, description="One match for all copies of a picture; by default as /v1/datasets gives it."
    )
    sort: Name | None = Field(
        None,
        description=f"A column: return the first k in its order of the {MAX_K} most similar items. Matches come first, "
        "and items without a value last.",
        examples=["price"],
    )
    descending: bool = Field(False, description="Sort from the highest value down.")
    image: _Base64 = Field("", description="The image's file.")
    id: str = Field("", description='An item of the database, for "more like this"; it is left out of the answer.')
    vector: list[Annotated[float, Field(allow_inf_nan=False)]] | None = Field(
        None,
        min_length=1,
        max_length=65_536,
        description="A vector of the database's model, such as /v1/embed returns; no model runs.",
    )
    images: Annotated[list[_Base64], _Some] | None = Field(
        None, description="Images that are one query, alone or with ids: matches are like all of them."
    )
    ids: Annotated[list[str], _Some] | None = Field(
        None,
        description="Items of the database that are one query, alone or with images; they are left out of the answer.",
    )
    each: bool = Field(
        False, description="Each of the images is a query of its own; the answers are in this order. It excludes ids."
    )

    @model_validator(mode="after")
    def one_query(self) -> SearchRequest:
        """Check that the query is one image, one item, one vector, or several pictures."""
        named = self.model_fields_set & {"image", "id", "vector", "images", "ids"}
        given = {name for name in named if getattr(self, name) is not None}
        if len(given & {"image", "id", "vector"}) + bool(given & {"images", "ids"}) != 1:
            raise ValueError("send either image, id or vector, or images and ids for several pictures together")
        if self.each and (self.images is None or self.ids is not None):
            raise ValueError("each is for images alone: leave it out, or send images without ids")
        if len(self.images or []) + len(self.ids or []) > MAX_PICTURES:
            raise ValueError(f"images and ids are more than {MAX_PICTURES} pictures: leave some out")
        if self.guarantee is not None and not (given & {"image", "vector"} or self.each):
            raise ValueError("guarantee needs one image: it is calibrated for images that are not in the database")
        return self

    @field_validator("exact", "group_copies", "each", "descending", mode="before")
    @classmethod
    def true_or_false(cls, value: object, info: ValidationInfo) -> object:
        """Accept no other words: the description has only these."""
        if isinstance(value, str) and value.lower() not in ("true", "false"):
            raise ValueError(f"{info.field_name} is {value[:80]!r}: use true or false")
        return value


class EmbedRequest(_In):
    """An image to embed."""

    model_config = examples({"image": PIXEL})

    image: _Base64 = Field(description="The image's file.")


class AddRequest(_In):
    """An image to add to the database, or to replace there."""

    model_config = examples({"image": PIXEL, "dataset": "shoes", "label": "air-runner"})

    dataset: Name = Field(min_length=1, description="The catalogue that it belongs to.", examples=["shoes"])
    label: Name = Field("", description="Class of the image; unique within its dataset only.")
    path: str | None = Field(
        None,
        min_length=1,
        max_length=4000,
        pattern=r"^[^\x00]+$",
        description="Where it came from, a path or a URI, to be shown. A file there is read for the item's original "
        "alone, and shown only if it has the same content. An item of the same dataset and path is replaced. By "
        "default the content's hash.",
    )
    image: _Base64 = Field(description="The image's file.")
    metadata: dict[str, str | int | float | bool | None] = Field(
        default_factory=dict, description="Further columns.", examples=[{"price": 89.5}]
    )


class FoldedCopy(BaseModel):
    """An item whose picture is a copy of a match's."""

    model_config = examples(_COPY)

    id: str
    score: float = Field(description="Cosine similarity, or minus the distance of a hyperbolic model.")
    dataset: str
    label: str
    path: str
    metadata: dict[str, Value]
    is_match: bool | None = Field(
        description="True if the confidence is at least 0.5 or the picture is identical; with a false-match rate, if "
        "the score reaches its threshold. Null without a calibration."
    )
    confidence: float | None = Field(
        description="The measured share of right answers among those that are as similar; null without a calibration."
    )
    strength: Strength | None = Field(
        description="identical, or a word for the confidence: strong from 0.9, possible from 0.5, else weak."
    )
    image: str = Field(description="Address of its picture, relative to the service.")


class Match(FoldedCopy):
    """An item that was found."""

    model_config = examples(_MATCH)

    copies: list[FoldedCopy] = Field(
        description="Copies of its picture that are no matches of their own, the most similar first; empty unless "
        "copies are grouped."
    )


class SearchAnswer(BaseModel):
    """The most similar items, the best first."""

    model_config = examples(_ANSWER)

    no_match: bool | None = Field(
        description="True where nothing in the database is a match, or the set with a guarantee is empty. Null "
        "without a calibration."
    )
    threshold: float | None = Field(
        description="The score from which an item is a match at the service's false-match rate; null without one."
    )
    matches: list[Match]


class SearchAnswers(BaseModel):
    """The answers to several queries, in their order."""

    model_config = examples({"answers": [_ANSWER]})

    answers: list[SearchAnswer]


class Embedding(BaseModel):
    """An image as a vector."""

    model_config = examples({"embedding": [0.6, -0.8], "size": 2, "model": "4be1c2..."})

    embedding: list[float]
    size: int = Field(description="Length of the vector.")
    model: str = Field(description="The model's fingerprint; vectors of other models cannot be compared with it.")


class Item(BaseModel):
    """A row of the database without its vector."""

    model_config = examples(_ITEM)

    id: str
    dataset: str
    label: str
    path: str
    metadata: dict[str, Value]
    content_hash: str = Field(description="SHA-256 of the image's file, in hexadecimal.")
    image: str = Field(description="Address of its picture, relative to the service.")


class Items(BaseModel):
    """Some rows."""

    model_config = examples({"items": [_ITEM]})

    items: list[Item]


class AddedItem(BaseModel):
    """Result of adding an item; it is on the disk."""

    model_config = examples({"id": ID, "status": "written"})

    id: str
    status: str = Field(description="written, or unchanged where the database held it already.")


class State(BaseModel):
    """State of the service."""

    model_config = examples({"status": "ok"})

    status: str


class Failure(BaseModel):
    """An error."""

    code: str = Field(description="One word for programs.")
    message: str = Field(description="One sentence for people.")


class ErrorAnswer(BaseModel):
    """The one shape of every error."""

    model_config = examples({"error": {"code": "not_an_image", "message": "this is not an image; send a JPEG or PNG"}})

    error: Failure


def body_of(model: type[BaseModel], alone: Sequence[str] = (), without: Sequence[str] = ()) -> dict[str, Any]:
    """Describe a body that is JSON, or a form of the same fields.

    Args:
        model: Its fields; a form has files in the place of base64.
        alone: Fields of which each is a query.
        without: Fields that a form does not have.
    """
    described = model.model_json_schema()
    form = _as_form({name: value for name, value in described.items() if name != "examples"})
    form["properties"] = {name: field for name, field in form["properties"].items() if name not in without}
    if alone:
        described |= _alternatives(*alone)
        form |= _alternatives(*(name for name in alone if name not in without))
    content = {"multipart/form-data": {"schema": form}, "application/json": {"schema": described}}
    return {"requestBody": {"required": True, "content": content}}


def _as_form(described: Any) -> Any:
    """Return the description of a value in JSON as that of a part of a form."""
    if isinstance(described, list):
        return [_as_form(each) for each in described]
    if not isinstance(described, dict):
        return described
    if isinstance(described.get("additionalProperties"), dict):
        kept = {name: described[name] for name in ("title", "description")}
        return {**kept, "type": "string", "contentMediaType": "application/json", "default": "{}"}
    # A form cannot hold an empty list.
    form = {name: _as_form(value) for name, value in described.items() if name not in ("contentEncoding", "minItems")}
    return {**form, "format": "binary"} if "contentEncoding" in described else form


def _alternatives(*alone: str) -> JsonDict:
    """Describe that a query is one of these fields alone, several pictures together, or images of which each is one."""
    one: list[JsonDict] = [{"required": [name], **_without("images", "ids")} for name in alone]
    several: JsonDict = {"anyOf": [{"required": ["images"]}, {"required": ["ids"]}], **_without(*alone)}
    each: JsonDict = {"required": ["images", "each"], **_without("ids", *alone, each=True)}
    return {"oneOf": [*one, several, each]}


def _without(*names: str, each: bool = False) -> JsonDict:
    return {"properties": {**dict.fromkeys(names, False), "each": {"const": each}}}
