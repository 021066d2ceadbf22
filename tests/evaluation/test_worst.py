from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimetric.evaluation.report import worst_classes

QUERY = st.tuples(
    st.integers(0, 4), st.integers(-1, 4), st.sampled_from([0.0, 0.25, 1.0]), st.booleans()
)  # class, nearest class, average precision, has a positive


@given(queries=st.lists(QUERY, max_size=25), count=st.integers(1, 6))
def test_the_worst_come_first(queries: list[tuple[int, int, float, bool]], count: int) -> None:
    hits = np.array([float(own == near) if scored else np.nan for own, near, _, scored in queries])
    precisions = np.array([precision for _, _, precision, _ in queries])
    classes = np.array([own for own, *_ in queries], dtype=np.int64)
    nearest = np.array([near for _, near, *_ in queries], dtype=np.int64)
    found = worst_classes(hits, precisions, classes, nearest, range(5), count)

    expected = []
    for own in range(5):
        of_class = [query for query in queries if query[0] == own and query[3]]
        if of_class:
            recall = sum(near == own for _, near, _, _ in of_class) / len(of_class)
            precision = sum(query[2] for query in of_class) / len(of_class)
            wrong = Counter(near for _, near, _, _ in of_class if near not in (own, -1))
            mistaken = min(wrong, key=lambda near: (-wrong[near], near)) if wrong else None
            expected.append((recall, precision, -len(of_class), own, mistaken))
    expected.sort(key=lambda entry: entry[:4])
    assert [score.label for score in found] == [entry[3] for entry in expected[:count]]
    for score, (recall, precision, size, _, mistaken) in zip(found, expected, strict=False):
        assert score.recall_at_1 == pytest.approx(recall)
        assert score.map_at_r == pytest.approx(precision)
        assert score.queries == -size
        assert score.mistaken_for == mistaken
