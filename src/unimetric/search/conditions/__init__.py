"""Conditions on the rows of a search database: a small grammar, parsed here and rendered for the engine.

- `tree`: the conditions as data, and how they are negated and combined
- `tokens`: from characters to words, numbers, texts and operators
- `literals`: numbers, dates and times as they are written
- `parsing`: from tokens to a tree, with the kinds of its columns checked

The grammar is on the page ``docs/search.md``.
"""

from unimetric.search.conditions.parsing import MAX_DEPTH, MAX_LENGTH, MAX_OPERATORS, parse_condition
from unimetric.search.conditions.tree import Condition, all_of, at_or_below, equals, is_one_of

__all__ = [
    "MAX_DEPTH",
    "MAX_LENGTH",
    "MAX_OPERATORS",
    "Condition",
    "all_of",
    "at_or_below",
    "equals",
    "is_one_of",
    "parse_condition",
]
