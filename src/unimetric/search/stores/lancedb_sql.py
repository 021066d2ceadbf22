"""Print conditions in the SQL that LanceDB parses.

Its parser gives up beyond about 45 nested expressions and takes exponential time for ``NOT (NOT (…))``. So parentheses
come only where the tree needs them, and a tree has no negation.
"""

from datetime import date, datetime

from unimetric.formats.vectors import as_unicode
from unimetric.search.conditions import tree


def to_sql(condition: tree.Condition) -> str:
    """Return a condition in LanceDB's SQL.

    >>> from unimetric.search.conditions.tree import all_of, equals, is_one_of
    >>> print(to_sql(all_of([is_one_of("dataset", ["hats", "it's"]), equals("label", "a")])))
    `dataset` IN ('hats', 'it''s') AND `label` = 'a'
    """
    if isinstance(condition, tree.Always):
        # Without negation around it, an unknown condition selects no rows either.
        return "true" if condition.holds else "false"
    if isinstance(condition, tree.And):
        return " AND ".join(
            f"({to_sql(part)})" if isinstance(part, tree.Or) else to_sql(part) for part in condition.parts
        )
    if isinstance(condition, tree.Or):
        return " OR ".join(map(to_sql, condition.parts))
    if isinstance(condition, tree.Comparison):
        return f"{_value(condition.left)} {condition.operator} {_value(condition.right)}"
    if isinstance(condition, tree.IsIn):
        constants = ", ".join(map(_constant, condition.constants))
        return f"{_value(condition.value)} {_not(condition.negated)}IN ({constants})"
    if isinstance(condition, tree.Like):
        word = "ILIKE" if condition.ignore_case else "LIKE"
        return f"{_column(condition.column)} {_not(condition.negated)}{word} {_text(condition.pattern)}"
    if isinstance(condition, tree.IsNull):
        return f"{_value(condition.value)} IS {_not(condition.negated)}NULL"
    return f"starts_with({_column(condition.column)}, {_text(condition.prefix)})"


def _value(value: tree.Value) -> str:
    if isinstance(value, tree.Arithmetic):
        # LanceDB orders NaN by its sign, and -0.0 before 0.0.
        return f"nanvl({_arithmetic(value)} + 0.0, CAST(NULL AS DOUBLE))"
    return _plain(value)


def _arithmetic(value: tree.Value) -> str:
    if not isinstance(value, tree.Arithmetic):
        return _plain(value)
    left, right = _arithmetic(value.left), _arithmetic(value.right)
    is_sum = value.operator in ("+", "-")
    if not is_sum and _is_sum(value.left):
        left = f"({left})"
    if value.operator in ("/", "%"):
        # A sum with 0.0, since nullif distinguishes -0.0 from 0.0.
        right = f"nullif({right} + 0.0, 0.0)"
    elif isinstance(value.right, tree.Arithmetic) and (_is_sum(value.right) or not is_sum):
        right = f"({right})"
    return f"{left} {value.operator} {right}"


def _is_sum(value: tree.Value) -> bool:
    return isinstance(value, tree.Arithmetic) and value.operator in ("+", "-")


def _plain(value: tree.Column | tree.Constant) -> str:
    return _column(value) if isinstance(value, tree.Column) else _constant(value)


def _column(column: tree.Column) -> str:
    return f"`{column.name}`"


def _constant(constant: tree.Constant) -> str:
    value = constant.value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value)
    if isinstance(value, datetime):
        return f"timestamp '{value.isoformat(sep=' ', timespec='microseconds')}'"
    if isinstance(value, date):
        return f"date '{value.isoformat()}'"
    return _text(str(value))


def _text(value: str) -> str:
    return "'" + as_unicode(value).replace("'", "''") + "'"


def _not(negated: bool) -> str:
    return "NOT " if negated else ""
