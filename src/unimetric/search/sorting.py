"""Items and answers in the order of a column, instead of by similarity."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from unimetric.search.items import Match

T = TypeVar("T")

_NUMBER = re.compile("([0-9]+)")


@dataclass(frozen=True)
class Order:
    """The order of a column: a metadata column, or label, dataset or path."""

    column: str
    descending: bool = False


def in_order(rows: Iterable[T], value: Callable[[T], Any], descending: bool) -> list[T]:
    """Return rows by their values; those without one come last, and equal ones stay in their order.

    >>> in_order(["b10", "B9", None, "a"], lambda row: row, descending=True)
    ['b10', 'B9', 'a', None]
    """
    every = list(rows)
    present = sorted(
        (row for row in every if value(row) is not None), key=lambda row: _key(value(row)), reverse=descending
    )
    return [*present, *(row for row in every if value(row) is None)]


def sorted_matches(matches: Sequence[Match], order: Order | None) -> list[Match]:
    """Return answers in the order of a column, if there is one: matches first, then the others."""
    if order is None:
        return list(matches)

    def value(match: Match) -> Any:
        return match.metadata[order.column] if order.column in match.metadata else getattr(match, order.column, None)

    weak = [match for match in matches if match.is_match is False]
    others = [match for match in matches if match.is_match is not False]
    return [*in_order(others, value, order.descending), *in_order(weak, value, order.descending)]


def _key(value: Any) -> Any:
    """Return texts without case, and with their numbers as numbers; other values as they are."""
    if not isinstance(value, str):
        return value
    first, *others = _NUMBER.split(value.casefold())
    numbers = [number.lstrip("0") for number in others[::2]]
    return first, [(len(number), number, text) for number, text in zip(numbers, others[1::2], strict=True)]
