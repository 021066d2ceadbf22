"""Print conditions as Milvus's boolean expressions.

Metadata lies in one JSON field without empty values, so ``exists`` is NULL's opposite. Milvus compares a column with a
constant; what else the grammar of conditions allows is refused.
"""

from __future__ import annotations

import json
import re
from datetime import date, datetime

from unimetric.formats.vectors import as_unicode
from unimetric.search.conditions import tree
from unimetric.search.errors import UnsupportedError
from unimetric.search.stores.base import COLUMNS

METADATA = "metadata"
"""The JSON field with the metadata columns."""

_EVERY, _NONE = 'id != ""', 'id == ""'
_MIRRORED = {"=": "=", "<>": "<>", "<": ">", ">": "<", "<=": ">=", ">=": "<="}
_OPERATORS = {"=": "==", "<>": "!="}
_LAST, _SURROGATES = 0x10FFFF, range(0xD800, 0xE000)


def to_expression(condition: tree.Condition | None) -> str:
    """Return a condition as an expression, empty for all rows; an `UnsupportedError` if Milvus has none for it.

    >>> from unimetric.search.conditions.tree import all_of, equals, is_one_of
    >>> print(to_expression(all_of([is_one_of("dataset", ["hats", "it's"]), equals("label", "a")])))
    dataset in ["hats", "it's"] and label == "a"
    """
    return "" if condition is None else _printed(condition)


def stored_value(value: object) -> object:
    """Return a value of a metadata column as JSON holds it; dates and times as texts of the same order."""
    if isinstance(value, datetime):
        return value.isoformat(sep=" ", timespec="microseconds")
    return value.isoformat() if isinstance(value, date) else value


def _printed(condition: tree.Condition) -> str:
    if isinstance(condition, tree.Always):
        return _EVERY if condition.holds else _NONE
    if isinstance(condition, tree.And):
        return " and ".join(
            f"({_printed(part)})" if isinstance(part, tree.Or) else _printed(part) for part in condition.parts
        )
    if isinstance(condition, tree.Or):
        return " or ".join(f"({_printed(part)})" for part in condition.parts)
    if isinstance(condition, tree.Comparison):
        return _comparison(condition)
    if isinstance(condition, tree.IsIn):
        return _is_in(condition)
    if isinstance(condition, tree.Like):
        return _like(condition)
    if isinstance(condition, tree.IsNull):
        return _is_null(_column(condition.value), condition.negated)
    return _starts_with(condition.column, condition.prefix)


def _comparison(condition: tree.Comparison) -> str:
    left, operator, right = condition.left, condition.operator, condition.right
    if isinstance(left, tree.Constant):
        left, operator, right = right, _MIRRORED[operator], left
    column = _column(left)
    if not isinstance(right, tree.Constant):
        raise UnsupportedError("Milvus compares no two columns with each other: compare each with a constant")
    return _present(column, f"{_name(column)} {_OPERATORS.get(operator, operator)} {_constant(right)}")


def _is_in(condition: tree.IsIn) -> str:
    column = _column(condition.value)
    if column.name in COLUMNS:
        constants = ", ".join(map(_constant, condition.constants))
        return f"{_name(column)} {'not ' if condition.negated else ''}in [{constants}]"
    # Milvus has IN for its own fields, not within JSON.
    operator, word = ("!=", " and ") if condition.negated else ("==", " or ")
    each = word.join(f"{_name(column)} {operator} {_constant(constant)}" for constant in condition.constants)
    return _present(column, f"({each})")


def _like(condition: tree.Like) -> str:
    if condition.ignore_case:
        raise UnsupportedError("Milvus has no ILIKE: use LIKE, or several with OR")
    column, pattern = condition.column, condition.pattern
    pieces = re.findall(r"\\.|[^\\]", pattern, re.DOTALL)
    literal = [piece[-1] for piece in pieces if piece not in ("%", "_")]
    if len(literal) == len(pieces):
        like = f"{_name(column)} == {_text(''.join(literal))}"
    elif pieces[-1] == "%" and len(literal) == len(pieces) - 1:
        like = _starts_with(column, "".join(literal))
    elif set(literal) & set("%_\\"):
        raise UnsupportedError("Milvus's LIKE takes no \\% and \\_: compare with =, or end the pattern in its only %")
    else:
        like = f"{_name(column)} like {_text(pattern)}"
    return _present(column, f"not ({like})" if condition.negated else f"({like})")


def _is_null(column: tree.Column, negated: bool) -> str:
    if column.name in COLUMNS:
        return _EVERY if negated else _NONE
    return f"{'' if negated else 'not '}exists {_name(column)}"


def _starts_with(column: tree.Column, prefix: str) -> str:
    """Compare with the first text beyond the prefix, since LIKE would take % and _ in it for wildcards."""
    beyond = ""
    for length in range(len(prefix), 0, -1):
        following = ord(prefix[length - 1]) + 1
        if following <= _LAST:
            beyond = prefix[: length - 1] + chr(_SURROGATES.stop if following in _SURROGATES else following)
            break
    upper = f" and {_name(column)} < {_text(beyond)}" if beyond else ""
    return f"{_name(column)} >= {_text(prefix)}{upper}"


def _present(column: tree.Column, expression: str) -> str:
    """Return an expression that is false where the column is NULL."""
    return expression if column.name in COLUMNS else f"exists {_name(column)} and {expression}"


def _column(value: tree.Value) -> tree.Column:
    if isinstance(value, tree.Arithmetic):
        raise UnsupportedError("Milvus calculates no columns: compare a column with a constant")
    if isinstance(value, tree.Constant):
        raise UnsupportedError("Milvus compares no two constants: compare a column with a constant")
    return value


def _name(column: tree.Column) -> str:
    return column.name if column.name in COLUMNS else f"{METADATA}[{_text(column.name)}]"


def _constant(constant: tree.Constant) -> str:
    value = stored_value(constant.value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return repr(value) if isinstance(value, float | int) else _text(str(value))


def _text(value: str) -> str:
    return json.dumps(as_unicode(value), ensure_ascii=False)
