"""From the characters of a condition to words, quoted names, numbers, texts, dates, times and operators."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, datetime, timezone
from typing import Literal

from unimetric.search.errors import FilterError

KEYWORDS = frozenset(("and", "or", "not", "like", "ilike", "in", "between", "is", "null", "true", "false"))
"""Words with a meaning of their own; a column of such a name is written in backticks."""

_PATTERNS = re.compile(
    r"""
    (?P<number>(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?P<tail>\w*))
    |(?P<text>'(?:[^']|'')*')
    |(?P<name>`[^`]*`|"[^"]*")
    |(?P<word>[^\W\d]\w*)
    |(?P<refused>--|/\*|\|\||&&)
    |(?P<operator><>|<=|>=|!=|==|[<>=+\-*/%(),])
    """,
    re.VERBOSE,
)

_REASONS = {
    "--": "comments cannot be used; write - (-x) with a space for a double minus",
    "/*": "comments cannot be used",
    "||": "texts cannot be joined; for a choice write OR",
    "&&": "write AND",
    ";": "it has to be a single condition, without ;",
    "'": "the text has no closing quote",
    '"': "the column name has no closing quote",
    "`": "the column name has no closing quote",
    "[": "lists are written in parentheses, names with spaces in backticks; a text has no parts",
    ":": "there are no casts and no parameters",
    "!": "write NOT, or <> for not equal",
    "~": "write LIKE with % and _ for patterns",
    "\u2264": "write <=",
    "\u2265": "write >=",
    "\u2260": "write <>",
    "\u2212": "write - for minus",
    "\u2013": "write - for minus",
    **dict.fromkeys("\u2018\u2019\u201c\u201d\u00b4\u201e", "write texts in straight single quotes, '"),
}


_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.(\d{3}|\d{6}))?)?(Z|[+-]\d\d:\d\d)?", re.ASCII)

DATE_FORM = "a date is written '2020-01-31'"
TIME_FORM = "a time is written '2020-01-31 12:00:00', in UTC or with its offset such as +02:00"


@dataclass(frozen=True)
class Token:
    """A token of a condition at a position, counted from 1, with the character around a quoted name.

    Keywords are operators, in lower case; texts and names are without quotes. ``end`` comes once, last.
    """

    kind: Literal["number", "text", "name", "operator", "end"]
    text: str
    position: int
    quoted: str = ""


def tokenize(where: str) -> Iterator[Token]:
    """Yield the tokens of a condition; a `FilterError` at what the grammar does not have, or an open quote."""
    position = 0
    while position < len(where):
        if where[position].isspace():
            position += 1
            continue
        match = _PATTERNS.match(where, position)
        if match is None:
            character = where[position]
            reason = _REASONS.get(character, f"the character {character!a} cannot be used outside of quotes")
            raise FilterError(where, position + 1, reason)
        yield _token(where, match)
        position = match.end()
    yield Token("end", "", len(where) + 1)


def _token(where: str, match: re.Match[str]) -> Token:
    text, start = match[0], match.start() + 1
    if match.lastgroup == "refused":
        raise FilterError(where, start, _REASONS[text])
    if match["number"] is not None:
        if match["tail"]:
            raise FilterError(where, start, f"{text[:40]!r} is not a number")
        return Token("number", text, start)
    if match["text"] is not None:
        return Token("text", _unicode(where, text[1:-1].replace("''", "'"), start), start)
    if match["name"] is not None:
        return Token("name", _unicode(where, text[1:-1], start), start, text[0])
    if match["word"] is not None and text.lower() not in KEYWORDS:
        return Token("name", text, start)
    return Token("operator", {"!=": "<>", "==": "="}.get(text, text.lower()), start)


def _unicode(where: str, text: str, position: int) -> str:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise FilterError(where, position, "the text is not valid Unicode")
    return text


def read_number(text: str) -> float:
    """Read a number as the 64-bit float that it is compared as; a `ValueError` for a whole one that none holds exactly.

    >>> read_number("20"), read_number(".5"), read_number("1e3")
    (20.0, 0.5, 1000.0)
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("the number is beyond the range of a 64-bit float, 1.8e308")
    digits = text.lstrip("0")
    # Shorter ones are exact; int() refuses thousands of digits.
    if digits.isdigit() and len(digits) > 15 and (len(digits) > 400 or int(digits) != int(value)):
        raise ValueError("no 64-bit float is exactly this whole number; write it with an exponent, such as 1.5e17")
    return value


def read_date(text: str) -> date:
    """Read a date, or raise a `ValueError`.

    >>> read_date("2020-02-29")
    datetime.date(2020, 2, 29)
    """
    if not _DATE.fullmatch(text):
        raise ValueError(DATE_FORM)
    return date.fromisoformat(text)


def read_time(text: str) -> datetime:
    """Read a time, or a date as its first moment, in UTC without a zone, or raise a `ValueError`.

    >>> read_time("2020-01-31T12:00+02:00")
    datetime.datetime(2020, 1, 31, 10, 0)
    """
    if _DATE.fullmatch(text):
        return datetime.fromisoformat(text)
    if not _TIME.fullmatch(text):
        raise ValueError(TIME_FORM)
    value = datetime.fromisoformat(text.replace("Z", "+00:00"))
    try:
        return value if value.tzinfo is None else value.astimezone(timezone.utc).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError("the time is out of range in UTC") from error
