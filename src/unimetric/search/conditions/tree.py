"""Conditions as data.

A tree holds no negation: `negated` moves it down to the comparisons. Under SQL's three-valued logic that keeps the rows
a condition selects, and in a tree without negation a comparison that is unknown (NULL) may count as false.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Literal, TypeAlias

from unimetric.data.images.boxes import BOX_START

Kind: TypeAlias = Literal["text", "number", "boolean", "date", "time", "null"]

OPPOSITES = {"=": "<>", "<>": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
"""The comparisons, each with the one that holds where it does not."""


@dataclass(frozen=True)
class Column:
    """A column of the database, by its exact name."""

    name: str
    kind: Kind


@dataclass(frozen=True)
class Constant:
    """A number (finite), text, truth value, date or time (UTC, without a zone); None of kind ``null``."""

    value: str | float | bool | date | datetime | None
    kind: Kind


@dataclass(frozen=True)
class Arithmetic:
    """``left operator right`` in 64-bit floats; NULL where the result is not a number or a divisor is zero."""

    operator: Literal["+", "-", "*", "/", "%"]
    left: Value
    right: Value
    kind: Kind = "number"


Value: TypeAlias = "Column | Constant | Arithmetic"


@dataclass(frozen=True)
class Always:
    """A condition that holds for all rows, for none, or is unknown (None) for all."""

    holds: bool | None


@dataclass(frozen=True)
class Comparison:
    """``left operator right``, two values of one kind; the operator is one of `OPPOSITES`."""

    operator: str
    left: Value
    right: Value


@dataclass(frozen=True)
class IsIn:
    """The value is one of these constants; with ``negated``, it is known and none of them."""

    value: Value
    constants: tuple[Constant, ...]
    negated: bool = False


@dataclass(frozen=True)
class Like:
    """A text column matches a pattern of ``%`` (any text) and ``_`` (any character); ``\\`` escapes both and itself."""

    column: Column
    pattern: str
    ignore_case: bool = False
    negated: bool = False


@dataclass(frozen=True)
class IsNull:
    """The value is NULL; with ``negated``, it is not."""

    value: Value
    negated: bool = False


@dataclass(frozen=True)
class StartsWith:
    """A text column starts with this text, whatever characters are in it."""

    column: Column
    prefix: str


@dataclass(frozen=True)
class And:
    """Every part holds; two or more."""

    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Or:
    """At least one part holds; two or more."""

    parts: tuple[Condition, ...]


Condition: TypeAlias = "Always | Comparison | IsIn | Like | IsNull | StartsWith | And | Or"


def negated(condition: Condition) -> Condition:
    """Return the condition that holds where this one is false; where this one is unknown, it is unknown too."""
    if isinstance(condition, Always):
        return condition if condition.holds is None else Always(not condition.holds)
    if isinstance(condition, Comparison):
        return replace(condition, operator=OPPOSITES[condition.operator])
    if isinstance(condition, And):
        return Or(tuple(map(negated, condition.parts)))
    if isinstance(condition, Or):
        return And(tuple(map(negated, condition.parts)))
    if isinstance(condition, StartsWith):
        raise TypeError("a prefix cannot be negated")
    return replace(condition, negated=not condition.negated)


def joined(kind: type[And] | type[Or], left: Condition, right: Condition) -> Condition:
    """Return one `And` or `Or` of both, with the parts of nested ones of the same kind."""
    parts: list[Condition] = []
    for part in (left, right):
        parts += part.parts if isinstance(part, kind) else (part,)
    return kind(tuple(parts))


def all_of(conditions: Iterable[Condition | None]) -> Condition | None:
    """Return all conditions in one; None if there are none."""
    given = [condition for condition in conditions if condition is not None]
    return None if not given else given[0] if len(given) == 1 else And(tuple(given))


def equals(column: str, value: str) -> Condition:
    """Return the condition that a text column holds this value."""
    return Comparison("=", Column(column, "text"), Constant(value, "text"))


def is_one_of(column: str, values: Sequence[str]) -> Condition:
    """Return the condition that a text column holds one of these values."""
    return IsIn(Column(column, "text"), tuple(Constant(value, "text") for value in values))


def at_or_below(path: str) -> Condition:
    """Return the condition that a row's path is this one, a box in it, or in the folder of that name."""
    path = path.rstrip("/") or "/"
    folder = path if path == "/" else f"{path}/"
    # Compared as text: LIKE would take % and _ in names for wildcards.
    inner = (StartsWith(Column("path", "text"), start) for start in (folder, f"{path}{BOX_START}"))
    return Or((equals("path", path), *inner))
