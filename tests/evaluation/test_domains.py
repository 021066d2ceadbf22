from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimetric.evaluation.report import domain_confusion, unified_gap

DOMAINS = 4
PAIRS = st.lists(st.tuples(st.integers(0, DOMAINS - 1), st.integers(-1, DOMAINS - 1)), max_size=30)


@given(pairs=PAIRS)
def test_shares_are_counted(pairs: list[tuple[int, int]]) -> None:
    queries, neighbours = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    matrix = domain_confusion(queries, neighbours, DOMAINS)
    counts = Counter((query, neighbour) for query, neighbour in pairs if neighbour >= 0)
    for query in range(DOMAINS):
        total = sum(counts[query, neighbour] for neighbour in range(DOMAINS))
        expected = [counts[query, neighbour] / total if total else np.nan for neighbour in range(DOMAINS)]
        assert matrix[query].tolist() == pytest.approx(expected, nan_ok=True)


def test_the_gap_is_over_scored_queries() -> None:
    separate = {"birds": np.array([1.0, 1.0, 0.0, np.nan]), "cars": np.array([np.nan])}
    unified = {"birds": np.array([1.0, 0.0, 0.0, np.nan]), "cars": np.array([np.nan])}
    assert unified_gap(separate, unified) == {"birds": pytest.approx(1 / 3)}
