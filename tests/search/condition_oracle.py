"""Random conditions as text, each with its value for a row by a plain evaluation in Python."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from hypothesis import strategies as st

Row = Mapping[str, Any]

KINDS = {
    "price": "number",
    "in stock": "number",
    "label": "text",
    "größe": "text",
    "sold": "boolean",
    "and": "boolean",
    "made": "date",
    "when": "time",
}


@dataclass(frozen=True)
class Written:
    """A piece of a condition.

    Attributes:
        text: As it is written.
        level: How tightly it binds; 9 for what needs no parentheses anywhere.
        value: Of a row; None is NULL.
    """

    text: str
    level: int
    value: Callable[[Row], Any]

    def __repr__(self) -> str:
        return self.text

    def within(self, level: int) -> str:
        return self.text if self.level >= level else f"({self.text})"


def name(column: str) -> str:
    return column if column in ("price", "label", "größe", "sold", "made") else f"`{column}`"


def column(column: str) -> Written:
    return Written(name(column), 9, lambda row: row[column])


def columns(kind: str) -> st.SearchStrategy[Written]:
    return st.sampled_from([column(key) for key, value in KINDS.items() if value == kind])


def constant(text: str, value: Any) -> Written:
    return Written(text, 9, lambda row: value)


def lifted(compute: Callable[..., Any], *parts: Written) -> Callable[[Row], Any]:
    """NULL where a part is NULL."""

    def value(row: Row) -> Any:
        values = [part.value(row) for part in parts]
        return None if None in values else compute(*values)

    return value


def divided(left: float, right: float) -> float | None:
    return None if right == 0 else left / right


def remainder(left: float, right: float) -> float | None:
    if right == 0:
        return None
    return math.nan if math.isinf(left) or math.isnan(left) or math.isnan(right) else math.fmod(left, right)


ARITHMETIC: dict[str, tuple[int, Callable[[float, float], float | None]]] = {
    "+": (5, lambda a, b: a + b),
    "-": (5, lambda a, b: a - b),
    "*": (6, lambda a, b: a * b),
    "/": (6, divided),
    "%": (6, remainder),
}
COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": lambda a, b: a == b,
    "<>": lambda a, b: a != b,
    "!=": lambda a, b: a != b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}

NUMBERS = ["0", "1", "2", "2.5", ".5", "3.", "1e308", "1E-3", "10", "0.1", "9007199254740992", "5e-324"]
TEXTS = ["", "a", "b", "ab", "it's", 'a"b', "a%b", "a_b", "a\\b", "größe", "A", "ÖB", "a\nb", "--", "日本", "`"]
PATTERNS = [
    "",
    "%",
    "_",
    "a%",
    "%b",
    "%a%",
    "a_b",
    r"a\%b",
    r"a\_b",
    r"a\\b",
    r"%\\%",
    "__",
    "Ö_",
    "it's",
    "a\nb",
    "%%",
]
DATES = ["2020-01-01", "2020-02-29", "1969-12-31", "0001-01-01", "9999-12-31"]
TIMES = ["2020-01-01 12:00", "2020-01-01T12:00:00Z", "1969-12-31 23:59:59.999999", "2020-01-01 12:00:00+02:00"]


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def utc(text: str) -> datetime:
    value = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return value if value.tzinfo is None else (value - value.utcoffset()).replace(tzinfo=None)  # type: ignore[operator]


@st.composite
def numbers(draw: st.DrawFn, depth: int = 3) -> Written:
    choice = draw(st.integers(0, 5 if depth else 1))
    if choice == 0:
        return draw(columns("number"))
    if choice == 1:
        text = draw(st.sampled_from(NUMBERS))
        return constant(text, float(text))
    if choice == 2:
        inner = draw(numbers(depth - 1))
        return Written(f"- {inner.within(7)}", 7, lifted(lambda a: -a, inner))
    operator = draw(st.sampled_from(sorted(ARITHMETIC)))
    level, compute = ARITHMETIC[operator]
    left, right = draw(numbers(depth - 1)), draw(numbers(depth - 1))
    space = draw(st.sampled_from([" ", "  ", "\n"]))
    text = f"{left.within(level)}{space}{operator}{space}{right.within(level + 1)}"
    return Written(text, level, lifted(compute, left, right))


def compared(number: Written) -> Written:
    """A number as it is compared: NaN is NULL."""

    def value(row: Row) -> float | None:
        found = number.value(row)
        return None if found is None or math.isnan(found) else found

    return Written(number.text, number.level, value)


@st.composite
def operands(draw: st.DrawFn, kind: str) -> Written:
    """A value that can be compared with a column of the kind."""
    if kind == "number":
        return compared(draw(numbers()))
    if kind == "null":
        return constant("NULL", None)
    if draw(st.booleans()):
        return draw(columns(kind))
    if kind == "boolean":
        return draw(st.sampled_from([constant("true", True), constant("FALSE", False)]))
    if kind == "text":
        text = draw(st.sampled_from(TEXTS))
        return constant(quoted(text), text)
    if kind == "date":
        text = draw(st.sampled_from(DATES))
        return constant(draw(st.sampled_from(["date ", ""])) + quoted(text), date.fromisoformat(text))
    text = draw(st.sampled_from(TIMES))
    return constant(draw(st.sampled_from(["timestamp ", "TIMESTAMP", ""])) + quoted(text), utc(text))


@st.composite
def comparisons(draw: st.DrawFn) -> Written:
    kind = draw(st.sampled_from(["number", "number", "text", "boolean", "date", "time"]))
    operator = draw(st.sampled_from(["=", "<>"] if kind == "boolean" else sorted(COMPARISONS)))
    left = compared(draw(numbers())) if kind == "number" else draw(columns(kind))
    right = draw(operands(draw(st.sampled_from([kind, kind, kind, "null"]))))
    text = f"{left.within(5)} {operator} {right.within(5)}"
    return Written(text, 4, lifted(COMPARISONS[operator], left, right))


@st.composite
def lists(draw: st.DrawFn) -> Written:
    kind = draw(st.sampled_from(["number", "text", "boolean", "date", "time"]))
    left = draw(columns(kind))
    if kind == "number" and draw(st.booleans()):
        further = draw(numbers())
        value = lifted(lambda a, b: a + b, left, further)
        left = compared(Written(f"{left.text} + {further.within(6)}", 5, value))
    choices = {
        "number": [constant(text, float(text)) for text in NUMBERS] + [constant("-1", -1.0)],
        "text": [constant(quoted(text), text) for text in TEXTS],
        "boolean": [constant("true", True), constant("false", False)],
        "date": [constant(quoted(text), date.fromisoformat(text)) for text in DATES],
        "time": [constant(f"timestamp {quoted(text)}", utc(text)) for text in TIMES],
    }[kind]
    items = draw(st.lists(st.sampled_from([*choices, constant("NULL", None)]), min_size=1, max_size=6))
    return opposite(
        draw(st.booleans()),
        f"{left.within(5)} {{}}IN ({', '.join(item.text for item in items)})",
        lambda row: one_of(left.value(row), [item.value(row) for item in items]),
    )


def one_of(value: Any, items: list[Any]) -> bool | None:
    if value is None:
        return None
    if value in [item for item in items if item is not None]:
        return True
    return None if None in items else False


def opposite(is_not: bool, text: str, value: Callable[[Row], bool | None]) -> Written:
    """``text`` with NOT at its braces, or without."""
    if not is_not:
        return Written(text.replace("{}", ""), 4, value)

    def turned(row: Row) -> bool | None:
        found = value(row)
        return None if found is None else not found

    return Written(text.replace("{}", "NOT "), 4, turned)


@st.composite
def ranges(draw: st.DrawFn) -> Written:
    kind = draw(st.sampled_from(["number", "text", "date"]))
    value, low, high = draw(operands(kind)), draw(operands(kind)), draw(operands(kind))
    if kind != "number":
        value = draw(columns(kind))

    def within(row: Row) -> bool | None:
        parts = lifted(lambda a, b: a >= b, value, low)(row), lifted(lambda a, b: a <= b, value, high)(row)
        return False if False in parts else None if None in parts else True

    text = f"{value.within(5)} {{}}BETWEEN {low.within(5)} AND {high.within(5)}"
    return opposite(draw(st.booleans()), text, within)


@st.composite
def patterns(draw: st.DrawFn) -> Written:
    left, pattern = draw(columns("text")), draw(st.sampled_from(PATTERNS))
    word = draw(st.sampled_from(["LIKE", "ilike"]))
    pieces = re.findall(r"\\.|.", pattern, re.DOTALL)
    wild = {"%": ".*", "_": "."}
    expression = "".join(wild.get(piece) or re.escape(piece[-1]) for piece in pieces)
    compiled = re.compile(expression, re.DOTALL | (re.IGNORECASE if word == "ilike" else 0))
    matched = lifted(lambda text: compiled.fullmatch(text) is not None, left)
    return opposite(draw(st.booleans()), f"{left.text} {{}}{word} {quoted(pattern)}".replace("{{}}", "{}"), matched)


@st.composite
def nulls(draw: st.DrawFn) -> Written:
    kind = draw(st.sampled_from(sorted(set(KINDS.values()))))
    value = draw(operands("number")) if kind == "number" else draw(columns(kind))
    return (
        opposite(False, f"{value.within(5)} IS NULL", lambda row: value.value(row) is None)
        if draw(st.booleans())
        else Written(f"{value.within(5)} IS NOT NULL", 4, lambda row: value.value(row) is not None)
    )


@st.composite
def conditions(draw: st.DrawFn, depth: int = 3) -> Written:
    choice = draw(st.integers(0, 8 if depth else 5))
    if choice == 0:
        return draw(columns("boolean"))
    if choice <= 5:
        leaves = (comparisons(), lists(), ranges(), patterns(), nulls())
        return draw(leaves[choice - 1])
    if choice == 6:
        inner = draw(conditions(depth - 1))
        turned = lifted(lambda value: not value, inner)
        return Written(f"NOT {inner.within(3)}", 3, turned)
    word = draw(st.sampled_from(["AND", "and"] if choice == 7 else ["OR", "or"]))
    level = 2 if choice == 7 else 1
    left, right = draw(conditions(depth - 1)), draw(conditions(depth - 1))
    decisive = choice == 8

    def both(row: Row) -> bool | None:
        parts = left.value(row), right.value(row)
        return decisive if decisive in parts else None if None in parts else not decisive

    return Written(f"{left.within(level)} {word} {right.within(level)}", level, both)
