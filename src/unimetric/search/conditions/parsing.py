"""From a condition as people write it to a tree: a parser by operator precedence, bounded in length, size and depth.

It recurses at most a few times per level of parentheses, of which there are at most `MAX_DEPTH`.
"""

import unicodedata
from collections.abc import Mapping
from typing import Literal, TypeAlias, cast

from unimetric.errors import nearest_names
from unimetric.search.conditions.tokens import Token, read_date, read_number, read_time, tokenize
from unimetric.search.conditions.tree import (
    OPPOSITES,
    Always,
    And,
    Arithmetic,
    Column,
    Comparison,
    Condition,
    Constant,
    IsIn,
    IsNull,
    Kind,
    Like,
    Or,
    Value,
    joined,
    negated,
)
from unimetric.search.errors import FilterError

MAX_LENGTH = 10_000
"""Characters of a condition, at most."""

MAX_OPERATORS = 100
"""AND, OR, NOT, comparisons, LIKE, IN, BETWEEN, IS and arithmetic in a condition, at most."""

MAX_DEPTH = 10
"""Parentheses within each other, at most."""

EXAMPLE = "price < 20 AND label = 'hat'"

_OR, _AND, _NOT, _COMPARISON, _SUM, _PRODUCT, _SIGN = range(1, 8)
_BINDING = {
    "or": _OR,
    "and": _AND,
    **dict.fromkeys((*OPPOSITES, "like", "ilike", "in", "between", "is", "not"), _COMPARISON),
    **dict.fromkeys("+-", _SUM),
    **dict.fromkeys("*/%", _PRODUCT),
}

_NAMES = {"text": "text", "number": "numbers", "boolean": "true or false", "date": "dates", "time": "times"}

Node: TypeAlias = "Value | Condition"


def parse_condition(where: str, columns: Mapping[str, str]) -> Condition:
    """Parse a condition on columns of a kind (text, number, boolean, date or time) each, or raise a `FilterError`."""
    if not where.strip():
        raise FilterError(where, None, f"it is empty; leave it out, or write one such as: {EXAMPLE}")
    if len(where) > MAX_LENGTH:
        raise FilterError(where, None, f"it has {len(where)} characters; use at most {MAX_LENGTH}")
    return _Parser(where, columns).parse()


class _Parser:
    def __init__(self, where: str, columns: Mapping[str, str]) -> None:
        self._where = where
        self._columns = columns
        self._folded = {_folded(name): name for name in columns}
        self._tokens = tokenize(where)
        self._token = next(self._tokens)
        self._operators = 0
        self._depth = 0

    def parse(self) -> Condition:
        condition = self._condition(self._expression(_OR), 1)
        if self._token.kind != "end":
            raise self._unexpected("expected AND, OR or the end")
        return condition

    def _expression(self, least: int) -> Node:
        """Parse up to the first operator that binds less than ``least``."""
        position = self._token.position
        left = self._operand()
        while self._token.kind == "operator" and _BINDING.get(self._token.text, 0) >= least:
            operator = self._operator()
            left = self._combined(left, operator, position)
        return left

    def _combined(self, left: Node, operator: Token, position: int) -> Node:
        binding = _BINDING[operator.text]
        if binding in (_OR, _AND):
            start = self._token.position
            right = self._expression(binding + 1)
            kind: type[And] | type[Or] = And if binding == _AND else Or
            return joined(kind, self._condition(left, position), self._condition(right, start))
        if binding in (_SUM, _PRODUCT):
            start = self._token.position
            right = self._expression(binding + 1)
            values = self._number(left, position), self._number(right, start)
            if "null" in (values[0].kind, values[1].kind):
                return Constant(None, "null")
            return Arithmetic(cast('Literal["+", "-", "*", "/", "%"]', operator.text), *values)
        return self._predicate(self._value(left, position), operator, position)

    def _operand(self) -> Node:
        """Parse a value, something in parentheses, or either behind signs or NOTs."""
        if self._is_next("-", "+"):
            minus = False
            while self._is_next("-", "+"):
                minus ^= self._operator().text == "-"
            position = self._token.position
            value = self._number(self._primary(), position)
            return _minus(value) if minus else value
        if self._is_next("not"):
            opposite = False
            while self._is_next("not"):
                self._operator()
                opposite = not opposite
            position = self._token.position
            condition = self._condition(self._expression(_NOT + 1), position)
            return negated(condition) if opposite else condition
        return self._primary()

    def _primary(self) -> Node:
        token = self._token
        if self._is_next("("):
            return self._parentheses()
        if token.kind == "name":
            return self._named(self._advance())
        if token.kind in ("number", "text") or self._is_next("true", "false", "null"):
            return self._constant()
        raise self._unexpected("expected a column, a value or a parenthesis")

    def _parentheses(self) -> Node:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._error(self._token.position, f"parentheses are nested more than {MAX_DEPTH} deep")
        opened = self._advance()
        inside = self._expression(_OR)
        if not self._took(")"):
            raise self._unexpected(f"expected ) for the ( at character {opened.position}")
        self._depth -= 1
        return inside

    def _named(self, token: Token) -> Value:
        """Return a column, or a date or time for `date '…'` and `timestamp '…'`."""
        if not token.quoted and self._token.kind == "text" and token.text.lower() in ("date", "timestamp"):
            written = self._advance()
            kind: Kind = "date" if token.text.lower() == "date" else "time"
            return self._read(Constant(written.text, "text"), kind, written.position)
        if not token.quoted and self._is_next("("):
            raise self._error(token.position, f"{token.text!r} before a parenthesis: functions cannot be used")
        name = token.text if token.text in self._columns else self._folded.get(_folded(token.text))
        if name is None:
            hint = "" if token.quoted == "`" else f"; a text is written in single quotes, {_quoted(token.text)}"
            raise self._error(
                token.position, f"no column is called {token.text!r}; {nearest_names(token.text, self._columns)}{hint}"
            )
        return Column(name, cast(Kind, self._columns[name]))

    def _constant(self) -> Constant:
        """Parse a number, text, true, false or NULL."""
        token = self._advance()
        if token.kind == "text":
            return Constant(token.text, "text")
        if token.kind == "number":
            try:
                return Constant(read_number(token.text), "number")
            except ValueError as error:
                raise self._error(token.position, str(error)) from error
        return Constant(None, "null") if token.text == "null" else Constant(token.text == "true", "boolean")

    def _predicate(self, left: Value, operator: Token, position: int) -> Condition:
        """Parse what follows the left value: a comparison, LIKE, IN, BETWEEN or IS NULL."""
        word, opposite = operator, False
        if operator.text == "is":
            opposite = self._took("not")
            if not self._took("null"):
                raise self._unexpected("expected NULL or NOT NULL after IS")
            return _is_null(left, opposite)
        if operator.text == "not":
            opposite = True
            word = self._advance()
        if word.text in ("like", "ilike"):
            condition: Condition = self._like(left, word, position)
        elif word.text == "in":
            condition = self._is_in(left, position)
        elif word.text == "between":
            condition = self._between(left, position)
        elif not opposite:
            start = self._token.position
            right = self._value(self._expression(_COMPARISON + 1), start)
            if self._is_next(*OPPOSITES):
                raise self._error(self._token.position, "comparisons cannot be chained; write a < b AND b < c")
            return self._comparison(word.text, left, right, position, start)
        else:
            raise self._error(word.position, "expected LIKE, ILIKE, IN or BETWEEN after NOT")
        return negated(condition) if opposite else condition

    def _like(self, left: Value, word: Token, position: int) -> Condition:
        if not isinstance(left, Column) or left.kind != "text":
            raise self._error(position, f"{word.text.upper()} takes a column of text on its left")
        if self._token.kind != "text":
            raise self._unexpected(f"expected a text in single quotes after {word.text.upper()}")
        pattern = self._advance()
        rest = pattern.text.replace("\\\\", "").replace("\\%", "").replace("\\_", "")
        if "\\" in rest:
            raise self._error(
                pattern.position,
                r"in a pattern, \ is only allowed before %, _ or another \; write \\ for the character itself",
            )
        return Like(left, pattern.text, word.text == "ilike")

    def _is_in(self, left: Value, position: int) -> Condition:
        if isinstance(left, Constant):
            raise self._error(position, "IN takes a column or arithmetic on its left")
        if not self._is_next("("):
            raise self._unexpected("expected a list in parentheses after IN")
        constants: list[Constant] = []
        unknown = False
        more = True
        while more:
            self._advance()
            start, node = self._token.position, self._operand()
            if not isinstance(node, Constant):
                raise self._error(start, "a list holds numbers, texts, dates, true, false or NULL only")
            compared = self._comparison("=", left, node, position, start)
            if isinstance(compared, Comparison):
                constants.append(cast(Constant, compared.right))
            else:
                unknown = True
            more = self._is_next(",")
        if not self._took(")"):
            raise self._unexpected("expected , or ) in the list")
        if not unknown:
            return IsIn(left, tuple(constants))
        return Or((IsIn(left, tuple(constants)), Always(None))) if constants else Always(None)

    def _between(self, left: Value, position: int) -> Condition:
        start = self._token.position
        low = self._value(self._expression(_SUM), start)
        if not self._took("and"):
            raise self._unexpected("expected AND between the two bounds of BETWEEN")
        end = self._token.position
        high = self._value(self._expression(_SUM), end)
        above = self._comparison(">=", left, low, position, start)
        return joined(And, above, self._comparison("<=", left, high, position, end))

    def _comparison(self, operator: str, left: Value, right: Value, position: int, start: int) -> Condition:
        """Compare two values that start at these positions."""
        if "null" in (left.kind, right.kind):
            return Always(None)
        if isinstance(right, Constant):
            right = self._read(right, left.kind, start)
        elif isinstance(left, Constant):
            left = self._read(left, right.kind, position)
        if left.kind != right.kind:
            raise self._error(start, f"{_shown(left)} cannot be compared with {_shown(right)}{_remedy(left, right)}")
        if left.kind == "boolean" and operator not in ("=", "<>"):
            raise self._error(position, "true and false have no order; compare them with = or <>")
        return Comparison(operator, left, right)

    def _read(self, constant: Constant, kind: Kind, position: int) -> Constant:
        """Read a text as the date or time that it is compared with, and a date as a time."""
        if kind not in ("date", "time") or constant.kind not in ("text", "date"):
            return constant
        try:
            if kind == "time":
                return Constant(read_time(str(constant.value)), "time")
            return Constant(read_date(str(constant.value)), "date")
        except ValueError as error:
            raise self._error(position, f"{str(constant.value)[:40]!r} is no {kind}: {error}") from error

    def _number(self, node: Node, position: int) -> Value:
        value = self._value(node, position)
        if value.kind not in ("number", "null"):
            raise self._error(position, f"{_shown(value)}: arithmetic takes numbers")
        return value

    def _value(self, node: Node, position: int) -> Value:
        if not isinstance(node, Column | Constant | Arithmetic):
            raise self._error(position, "expected a column or a value here, not a condition")
        return node

    def _condition(self, node: Node, position: int) -> Condition:
        """Return a node as a condition: a column or constant of true and false is one."""
        if not isinstance(node, Column | Constant | Arithmetic):
            return node
        if isinstance(node, Constant) and node.kind in ("boolean", "null"):
            return Always(cast("bool | None", node.value))
        if node.kind == "boolean":
            return Comparison("=", node, Constant(True, "boolean"))
        if self._token.kind in ("name", "text", "number"):
            raise self._unexpected("expected a comparison, LIKE, IN, BETWEEN or IS NULL")
        raise self._error(position, f"{_shown(node)} is not a condition; compare it, such as: {EXAMPLE}")

    def _operator(self) -> Token:
        self._operators += 1
        if self._operators > MAX_OPERATORS:
            raise self._error(self._token.position, f"there are more than {MAX_OPERATORS} operators; write it shorter")
        return self._advance()

    def _is_next(self, *operators: str) -> bool:
        return self._token.kind == "operator" and self._token.text in operators

    def _took(self, operator: str) -> bool:
        """Advance past this operator if it is next."""
        if not self._is_next(operator):
            return False
        self._advance()
        return True

    def _advance(self) -> Token:
        token = self._token
        self._token = next(self._tokens, token)
        return token

    def _unexpected(self, reason: str) -> FilterError:
        token = self._token
        found = "the condition ends" if token.kind == "end" else f"{token.text[:40]!r} is not expected"
        return self._error(token.position, f"{found} here: {reason}")

    def _error(self, position: int, reason: str) -> FilterError:
        return FilterError(self._where, position, reason)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _minus(value: Value) -> Value:
    if isinstance(value, Constant):
        return value if value.value is None else Constant(-cast(float, value.value) + 0.0, "number")
    return Arithmetic("*", value, Constant(-1.0, "number"))


def _is_null(value: Value, opposite: bool) -> Condition:
    if isinstance(value, Constant):
        return Always((value.value is None) != opposite)
    return IsNull(value, opposite)


def _shown(value: Value) -> str:
    if isinstance(value, Column):
        return f"the column {value.name!r} ({_NAMES[value.kind]})"
    if isinstance(value, Constant):
        return f"{value.value if value.kind != 'text' else _quoted(str(value.value))} ({value.kind})"
    return "the result of arithmetic (numbers)"


def _quoted(text: str) -> str:
    return "'" + (text if len(text) <= 40 else text[:37] + "...") + "'"


def _remedy(left: Value, right: Value) -> str:
    if isinstance(right, Constant) and right.kind == "number" and left.kind == "text":
        return "; write the number in single quotes to compare it as text"
    if isinstance(right, Constant) and right.kind == "text" and left.kind == "number":
        return "; write the number without quotes"
    if left.kind == "boolean" and isinstance(right, Constant):
        return "; compare it with TRUE or FALSE, or write the column alone"
    if left.kind == "text" and right.kind in ("date", "time"):
        return "; to compare it as text, leave out the word before the quotes"
    return ""
