"""Conditions on the rows: SQL that people type, held in parentheses that it cannot leave."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from unimetric.errors import UserError

MAX_LENGTH = 10_000
"""Characters of a condition."""

_EXAMPLE = "write a condition such as: price < 20 AND label = 'hat'"


def text(value: str) -> str:
    """A text as an SQL literal.

    >>> print(text("it's"))
    'it''s'
    """
    return "'" + value.replace("'", "''") + "'"


def is_one_of(column: str, values: Iterable[str]) -> str:
    """The condition that a column of text holds one of these values.

    >>> print(is_one_of("dataset", ["hats", "it's"]))
    dataset IN ('hats', 'it''s')
    """
    return f"{column} IN ({', '.join(map(text, values))})"


def all_of(conditions: Sequence[str | None]) -> str | None:
    """All conditions at once, each in parentheses; None if there are none.

    >>> print(all_of(["price < 20 OR price > 90", None, "dataset = 'hats'"]))
    (price < 20 OR price > 90) AND (dataset = 'hats')
    """
    return " AND ".join(f"({condition})" for condition in conditions if condition is not None) or None


def checked(where: str) -> str:
    """A condition as it was typed, after making sure that it ends where its parentheses do.

    The database's parser reads one expression and leaves unread what follows it. So ``1=1) OR (1=1`` would be more than
    the condition that it is read as alone, were it put in parentheses. Here brackets must match outside of quotes, and
    what changes how the rest is read (comments, ``;``, ``$``, letters before a quote) is refused.

    Raises:
        UserError: so it is not, or it is empty or too long.

    >>> print(checked(" label = 'a)b' "))
    label = 'a)b'
    """
    where = where.strip()
    if not where:
        raise UserError(f"the condition (where) is empty; leave it out, or {_EXAMPLE}")
    if len(where) > MAX_LENGTH:
        raise UserError(f"the condition (where) has {len(where)} characters; use at most {MAX_LENGTH}")
    if reason := _fault(where):
        raise UserError(f"the condition (where) {shown(where)} cannot be read: {reason}; {_EXAMPLE}")
    return where


def shown(where: str) -> str:
    """A condition in quotes, for error messages; long ones are cut."""
    return repr(where if len(where) <= 120 else where[:117] + "...")


def _fault(where: str) -> str | None:
    """Why a condition may not be put in parentheses; None if it may."""
    depth = 0
    quote = ""
    previous = ""
    for character in where:
        if character == "\0" or (not character.isprintable() and character not in "\t\n\r\u3000\xa0"):
            return f"it holds the character {character!a}"
        if quote:
            # A doubled quote closes and opens again, which comes to the same.
            quote = "" if character == quote else quote
        elif character in "'\"`":
            if previous.isalnum() or previous in ("_", "&"):
                return f"there is {previous!r} right before a quote"
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            if depth < 0:
                return f"a {character!r} closes nothing"
        elif character in ";$\\":
            return f"it holds {character!r} outside of quotes"
        elif previous + character in ("--", "/*"):
            return f"it holds {previous + character!r} outside of quotes"
        previous = character
    if quote:
        return f"the quote {quote} is not closed"
    return "a bracket is not closed" if depth else None
