"""Types of options in words, and values that YAML reads otherwise than they were meant."""

import datetime
import types
import typing
from collections.abc import Mapping
from typing import Any, Literal

import yaml

from unimetric.errors import nearest_names, shown

_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "Path": "a path",
    "NoneType": "null",
    "PositiveInt": "a whole number from 1",
    "NonNegativeInt": "a whole number from 0",
}

_READ_AS = {
    bool: "a truth value",
    int: "a number",
    float: "a number",
    datetime.date: "a date",
    datetime.datetime: "a date",
    types.NoneType: "nothing",
}


def expected(hint: Any, value: object = None) -> str:
    """The end of an error message: the values that an option takes, and the nearest name where it has names.

    >>> expected(int | None)
    'use a whole number or null'
    >>> expected(Literal["step", "cosine"], "cosin")
    "did you mean 'cosine'? valid: cosine, step"
    """
    if isinstance(value, str) and _is_literal(hint):
        return nearest_names(value, map(str, typing.get_args(hint)))
    return f"use {in_words(hint)}"


def in_words(hint: Any) -> str:
    """A type in words.

    >>> in_words(int | Literal["auto"])
    'a whole number or auto'
    >>> in_words(dict[str, int])
    'a mapping such as {name: 1}'
    """
    origin: Any = typing.get_origin(hint)
    parts = typing.get_args(hint)
    if origin is Literal:
        return " or ".join(str(part) for part in parts)
    if origin in (typing.Union, types.UnionType):
        last = [part for part in parts if _is_literal(part) or part is types.NoneType]
        return " or ".join(in_words(part) for part in [*(part for part in parts if part not in last), *last])
    if origin is list:
        return "a list such as [1, 2]" if parts == (int,) else "a list such as [a, b]"
    if origin is dict:
        return "a mapping such as {name: 1}"
    return _WORDS.get(getattr(hint, "__name__", ""), str(hint))


def _is_literal(hint: Any) -> bool:
    origin: Any = typing.get_origin(hint)
    return origin is Literal


def misread(value: Any, hint: object) -> str | None:
    """The remedy for text that YAML reads as a number, a truth value or a date, where the type asks for text.

    Args:
        value: From the command line (text) or a file.
        hint: Type of the option.

    Returns:
        The end of an error message, or None for values that are no such case.

    >>> misread("[2024, a]", list[str])
    "2024 is read as a number; write it in quotes, as in '2024'"
    >>> misread({False: 3}, dict[str, int])
    "False is read as a truth value; write it in quotes, as in 'no'"
    """
    origin = typing.get_origin(hint)
    if origin in (typing.Union, types.UnionType):
        alternatives = [part for part in typing.get_args(hint) if part is not types.NoneType]
        return misread(value, alternatives[0]) if len(alternatives) == 1 else None
    typed = value if isinstance(value, str) else None
    if isinstance(value, str):
        if hint is str or origin not in (list, dict):
            return None
        try:
            value = yaml.safe_load(value)
        except (yaml.YAMLError, ValueError, OverflowError, RecursionError, TypeError, LookupError, AttributeError):
            return None  # reported by the parser
    texts: list[Any] = []
    if hint is str and value is not None:
        texts = [value]
    elif origin is list and isinstance(value, list) and typing.get_args(hint) == (str,):
        texts = value
    elif origin is dict and isinstance(value, Mapping):
        texts = list(value)
    return next((remedy for text in texts if (remedy := _quoted(text, typed))), None)


def _quoted(value: object, typed: str | None) -> str:
    kind = _READ_AS.get(type(value))
    if kind is None:
        return ""
    text = ("yes" if value else "no") if isinstance(value, bool) else "null" if value is None else str(value)
    # A number or a date has other spellings as well: 010, 12:30, 1_000.
    example = f", as in {text!r}" if typed is None or text in typed else ""
    form = str(value) if isinstance(value, datetime.date) else shown(value)
    return f"{form} is read as {kind}; write it in quotes{example}"
