"""Conditions: those of the grammar select what a plain evaluation selects, all others are refused before the engine."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from condition_oracle import KINDS, Written, conditions
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from search_toys import store

from properties import examples
from unimetric.errors import ArgumentError
from unimetric.search import SearchIndex
from unimetric.search.conditions import MAX_DEPTH, MAX_LENGTH, MAX_OPERATORS, parse_condition
from unimetric.search.errors import FilterError
from unimetric.search.stores.base import KINDS as TYPES

VALUES: dict[str, list[Any]] = {
    "price": [0.0, 1.0, -1.0, 2.5, None, 1e308, -1e308, 5e-324, 0.1, 3.0, 10.0, 9007199254740992.0],
    "in stock": [1.0, 0.0, None, 2.0, 0.5, 7.0, -3.0],
    "label": ["", "a", "b", "ab", "it's", 'a"b', "a%b", "a_b", "a\\b", "größe", "A", "ÖB", "öb", "a\nb", "--", "日本"],
    "größe": ["a", None, "b%", "`", "a\\"],
    "sold": [True, False, None],
    "and": [None, True, False, True, None],
    "made": [date(2020, 1, 1), None, date(2020, 2, 29), date(1969, 12, 31), date(1, 1, 1), date(9999, 12, 31)],
    "when": [datetime(2020, 1, 1, 12), datetime(2020, 1, 1, 10), None, datetime(1969, 12, 31, 23, 59, 59, 999999)],
}
ROWS = [{name: values[number % len(values)] for name, values in VALUES.items()} for number in range(120)]


@pytest.fixture(scope="module")
def index(model: Path, tmp_path_factory: pytest.TempPathFactory):
    with SearchIndex.create(tmp_path_factory.mktemp("conditions") / "db", model) as index:
        count = len(ROWS)
        texts = {name: [f"{name}{row:06}" for row in range(count)] for name in ("id", "path", "content_hash")}
        columns = {**texts, "dataset": [f"d{row % 2}" for row in range(count)], "fingerprint": ["f"] * count}
        columns["label"] = [row["label"] for row in ROWS]
        vectors = np.random.default_rng(0).normal(size=count * 16).astype(np.float32)
        columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors), 16)
        columns["thumbnail"] = pa.nulls(count, pa.binary())
        for name, kind in KINDS.items():
            columns[name] = pa.array([row[name] for row in ROWS], TYPES[kind])
        store(index).merge(pa.table(columns))
        yield index


def selected(index: SearchIndex, where: str) -> list[int]:
    (found,) = index.search_vectors(np.ones(16, np.float32), 200, where=where)
    return sorted(int(match.id[2:]) for match in found)


def expected(written: Written) -> list[int]:
    return [number for number, row in enumerate(ROWS) if written.value(row) is True]


@settings(
    max_examples=examples(400),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(conditions())
def test_the_engine_agrees_with_a_plain_evaluation(index: SearchIndex, written: Written) -> None:
    assert selected(index, written.text) == expected(written), written.text


@pytest.mark.parametrize(
    ("where", "rows"),
    [
        ("price = 0", lambda row: row["price"] == 0),
        ("price * -1 = 0", lambda row: row["price"] == 0),
        ("1 / price > 0", lambda row: (row["price"] or 0) > 0),
        ("1 / price IS NULL", lambda row: not row["price"]),
        ("price % 0 = 0 OR 1 / 0 = 1 OR 0 / 0 < 1", lambda row: False),
        ("1 / 2 = 0.5", lambda row: True),
        ("price * 10 > 1e308", lambda row: row["price"] == 1e308),
        ("price * 10 - price * 10 IS NULL", lambda row: row["price"] is None or abs(row["price"]) == 1e308),
        ("sold = NULL OR NULL OR NOT NULL", lambda row: False),
        ("NULL IS NULL", lambda row: True),
        ("sold IN (true, NULL)", lambda row: row["sold"]),
        ("sold NOT IN (true, NULL)", lambda row: False),
        ('PRICE = 1 AND "IN Stock" IS NOT NULL', lambda row: row["price"] == 1 and row["in stock"] is not None),
        ("`and`", lambda row: row["and"]),
        ("NOT `and`", lambda row: row["and"] is False),
        ("größe = 'a\\'", lambda row: row["größe"] == "a\\"),
        ("label = 'it''s'", lambda row: row["label"] == "it's"),
        ("label ILIKE 'ö_'", lambda row: row["label"] in ("öb", "ÖB")),
        (r"label LIKE 'a\%%'", lambda row: row["label"] == "a%b"),
        ("made = '2020-02-29'", lambda row: row["made"] == date(2020, 2, 29)),
        ("`when` >= date '2020-01-01'", lambda row: row["when"] is not None and row["when"].year == 2020),
        ("date '2020-02-29' = made", lambda row: row["made"] == date(2020, 2, 29)),
        ("- -1 = 1", lambda row: True),
        ("true", lambda row: True),
        ("price == 1", lambda row: row["price"] == 1),
    ],
)
def test_meanings(where: str, rows, index: SearchIndex) -> None:
    assert selected(index, where) == [number for number, row in enumerate(ROWS) if rows(row)]


DEEP = MAX_DEPTH
WORST = {
    "sum": "price + 1 * (" * DEEP + "price" + ")" * DEEP + " > 0",
    "quotient": "1 - 2 / (" * DEEP + "price" + ")" * DEEP + " > 0",
    "choice": "sold OR sold AND NOT (" * DEEP + "1 - 2 * price / -price > 0" + ")" * DEEP,
    "not": "NOT (" * DEEP + "sold" + ")" * DEEP,
    "nots": "NOT " * (MAX_OPERATORS - 1) + "sold",
    "signs": "- " * (MAX_OPERATORS - 1) + "price > 0",
    "terms": " + ".join(["price"] * MAX_OPERATORS) + " > 0",
    "quotients": " / ".join(["price"] * MAX_OPERATORS) + " > 0",
    "ands": " AND ".join(["sold"] * MAX_OPERATORS),
    "parentheses": "(" * DEEP + "sold" + ")" * DEEP,
    "between": "price + 1 * (" * DEEP + "price" + ")" * DEEP + " BETWEEN 0 AND 1",
    "list": f"price IN ({', '.join(map(str, range(1600)))})",
    "pattern": f"label ILIKE '{'_' * (MAX_LENGTH - 20)}'",
    "wild": f"label LIKE '{'%_' * (MAX_LENGTH // 2 - 20)}'",
}


@pytest.mark.parametrize("where", WORST.values(), ids=WORST.keys())
def test_the_largest_conditions_reach_the_engine(where: str, index: SearchIndex) -> None:
    assert selected(index, where) is not None


@pytest.mark.parametrize(
    ("where", "position", "words"),
    [
        ("", None, "is empty"),
        ("  \n", None, "is empty"),
        ("true OR " * 5000 + "true", None, "40004 characters"),
        ("prize < 3", 1, "did you mean 'price'"),
        ("price <", 8, "the condition ends here"),
        ("price < 3; drop table items", 10, "without ;"),
        ("1=1) OR (1=1", 4, "')' is not expected here"),
        ("(price < 3", 11, "expected ) for the ( at character 1"),
        ("price < 3 --", 11, "comments"),
        ("price < 3 /* so */", 11, "comments"),
        ("label = 'c0", 9, "no closing quote"),
        ("label = 'c0' c1", 14, "'c1' is not expected"),
        ("label = E'c'", 9, "no column is called 'E'"),
        ("label = $$c0$$", 9, "the character '$'"),
        ("label = hat", 9, "a text is written in single quotes, 'hat'"),
        ('label = "hat"', 9, "a text is written in single quotes, 'hat'"),
        ("price", 1, "is not a condition"),
        ("price < 'cheap'", 9, "write the number without quotes"),
        ("label = 7", 9, "in single quotes to compare it as text"),
        ("label > price", 9, "cannot be compared"),
        ("made = 3", 8, "cannot be compared"),
        ("made = '2020-02-30'", 8, "is no date"),
        ("made = '1.2.2020'", 8, "a date is written '2020-01-31'"),
        ("made = timestamp '2020-01-01 10:00'", 8, "cannot be compared"),
        ("made = `when`", 8, "cannot be compared"),
        ("`when` < '9999-12-31 23:59:59-02:00'", 10, "out of range"),
        ("sold > false", 1, "have no order"),
        ("sold = (price > 3)", 8, "not a condition"),
        ("price LIKE '1%'", 1, "takes a column of text"),
        ("label LIKE price", 12, "expected a text"),
        (r"label LIKE 'a\b'", 12, "in a pattern"),
        ("label + 1 = 2", 1, "arithmetic takes numbers"),
        ("1 < price < 3", 11, "cannot be chained"),
        ("price IN ()", 11, "expected a column, a value"),
        ("price IN (1, label)", 14, "a list holds"),
        ("price IN (1, 'a')", 14, "cannot be compared"),
        ("price IN 3", 10, "expected a list"),
        ("3 IN (1, 3)", 1, "IN takes a column"),
        ("price IS 3", 10, "expected NULL"),
        ("price NOT 3", 11, "expected LIKE"),
        ("price BETWEEN 1 OR 3", 17, "expected AND"),
        ("price = 1e999", 9, "beyond the range"),
        ("price = 9007199254740993", 9, "no 64-bit float is exactly"),
        ("price = " + "9" * 40, 9, "no 64-bit float is exactly"),
        ("price = " + "9" * 5000, 9, "beyond the range"),
        ("price = 0x10", 9, "is not a number"),
        ("price = 1_000", 9, "is not a number"),
        ("price = 3px", 9, "is not a number"),
        ("nonsense(price) < 3", 1, "functions cannot be used"),
        ("cast(label AS int) = 3", 1, "functions cannot be used"),
        ("label::int = 3", 6, "no casts"),
        ("label[0] = 'c'", 6, "a text has no parts"),
        ("label = \u2018c0\u2019", 9, "straight single quotes"),
        ("price \u2264 3", 7, "write <="),
        ("!sold", 1, "write NOT"),
        ("label RLIKE 'c'", 7, "'RLIKE' is not expected here: expected a comparison"),
        ("sold AND label SIMILAR TO 'c'", 16, "'SIMILAR' is not expected here: expected a comparison"),
        ("sold = 1", 8, "TRUE or FALSE"),
        ("label > date '2020-01-01'", 9, "leave out the word before the quotes"),
        ("exists (select 1)", 1, "functions cannot be used"),
        ("label || 'x' = 'cx'", 7, "cannot be joined"),
        ("price < 3 && sold", 11, "write AND"),
        ("label IN (SELECT label FROM items)", 11, "no column is called 'SELECT'"),
        ("CASE WHEN sold THEN 1 END = 1", 1, "no column is called 'CASE'"),
        ("price < 3\0", 10, "the character '\\x00'"),
        ("label = '\ud800'", 9, "not valid Unicode"),
        ("label = \ud800", 9, "the character"),
        ("vector IS NULL", 1, "no column is called 'vector'"),
        ("(" * (MAX_DEPTH + 1) + "sold" + ")" * (MAX_DEPTH + 1), MAX_DEPTH + 1, "nested more than"),
        ("+".join(["1"] * 1000) + " > 0", 202, "more than 100 operators"),
        ("||".join(["label"] * 1200) + " = ''", 6, "cannot be joined"),
        ("NOT " * 101 + "sold", 401, "more than 100 operators"),
        ("sha512(repeat(label, 1000000)) = 'x'", 1, "functions cannot be used"),
        ("lpad(label, 5000000, 'x') = 'a'", 1, "functions cannot be used"),
    ],
)
def test_refused(where: str, position: int | None, words: str, index: SearchIndex) -> None:
    with pytest.raises(FilterError) as caught:
        index.check(where=where)
    error = caught.value
    assert isinstance(error, ArgumentError)
    assert (error.code, error.position, error.where) == ("invalid_where", position, where)
    assert words in error.reason
    message = str(error)
    assert message.isprintable()
    assert len(message) < 600


def test_limits_are_reached(index: SearchIndex) -> None:
    for accepted in (
        " AND ".join(["sold"] * (MAX_OPERATORS + 1)),
        "label = '" + "x" * (MAX_LENGTH - 10) + "'",
        "(" * MAX_DEPTH + "sold" + ")" * MAX_DEPTH,
    ):
        index.check(where=accepted)


MUTATIONS = ["(", ")", "'", '"', "NOT ", "-", "--", "/*", "||", ";", "\\", "%", "1e999", "NULL", "in", "\0", "ü"]
HARMLESS = [" OR sold", " AND true", " ", "(sold) OR ", "sold AND ", "1", "\n", " OR price < 3"]
CHILD = """
import json, sys
import numpy as np
from unimetric.errors import UserError
from unimetric.search import SearchIndex
from unimetric.search.errors import FilterError
answers = []
with SearchIndex.open(sys.argv[1]) as index:
    for where in json.load(sys.stdin):
        try:
            (found,) = index.search_vectors(np.ones(16, np.float32), 200, datasets=["d1"], where=where)
            answers.append(sorted({match.dataset for match in found}))
        except FilterError as error:
            answers.append(error.code)
print(json.dumps(answers))
"""


@st.composite
def mutated(draw: st.DrawFn) -> str:
    text = draw(conditions()).text
    for _ in range(draw(st.integers(1, 2))):
        place = draw(st.sampled_from([0, len(text), draw(st.integers(0, len(text)))]))
        end = place + draw(st.sampled_from([0, 0, 1, 5]))
        pieces = MUTATIONS if draw(st.booleans()) else HARMLESS
        piece = draw(st.sampled_from(pieces)) * draw(st.sampled_from([1, 1, 1, 2, 300]))
        text = text[:place] + piece + text[end:]
    return text


def test_no_mutation_ends_a_process_or_leaves_the_dataset(index: SearchIndex) -> None:
    texts: list[str] = []

    @settings(max_examples=500, database=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(mutated())
    def collect(text: str) -> None:
        texts.append(text)

    collect()
    command = [sys.executable, "-c", CHILD, store(index).place]
    child = subprocess.run(command, input=json.dumps(texts), capture_output=True, text=True, timeout=300, check=True)
    answers = json.loads(child.stdout)
    assert len(answers) == len(texts)
    assert all(answer in ("invalid_where", [], ["d1"]) for answer in answers)
    assert answers.count("invalid_where") > len(texts) / 4
    assert answers.count(["d1"]) > len(texts) / 50


@given(st.text(max_size=60))
@settings(max_examples=examples(300), derandomize=True)
@example("'" * 999)
def test_any_text_is_parsed_or_refused(where: str) -> None:
    try:
        parse_condition(where, KINDS)
    except FilterError as error:
        assert error.position is None or 1 <= error.position <= len(where) + 1
