"""Approximate indexes find nearly what an exact search finds, under conditions too."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from search_toys import FillIndex, recall, store

from unimetric.errors import UserError
from unimetric.search import SearchIndex, database_search, maintenance


def test_approximate_indexes_and_rows_that_are_not_in_them(
    fill: FillIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "EXACT_BELOW", 600)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(1000, 16)).astype(np.float32)
    with fill(tmp_path / "db", vectors[:500]) as index:
        assert not index.maintain()
        assert index.build_index() == "none"
        with pytest.raises(UserError, match="did you mean 'ivf-pq'"):
            index.build_index("ivfpq")
    with fill(tmp_path / "db2", vectors[:900]) as index:
        assert index.maintain()
        assert not index.maintain()
        for kind in ("ivf-pq", "hnsw"):
            assert index.build_index(kind) == kind
            assert recall(index, vectors[:900]) > 0.9
        fill(tmp_path / "db2", vectors).close()
    with SearchIndex.open(tmp_path / "db2") as index:
        assert recall(index, vectors, exact=True) == 1
        # The last hundred are in no index yet.
        for row in range(900, 1000):
            assert index.search_vectors(vectors[row], 1)[0][0].id == f"id{row:06}"
        index.optimise()
        assert recall(index, vectors) > 0.9
        assert index.build_index("none") == "none"
        assert recall(index, vectors) == 1


def test_the_effort_is_measured_and_recorded(fill: FillIndex, tmp_path: Path) -> None:
    # Uniform vectors are the hardest for partitions, duplicates the hardest for counting what was found.
    random = np.random.default_rng(3)
    vectors = random.normal(size=(1500, 16)).astype(np.float32)
    vectors[1000:] = vectors[:500]
    with fill(tmp_path / "db", vectors) as index:
        for kind in ("ivf-pq", "hnsw"):
            index.build_index(kind)
            efforts = store(index).about["index"]["efforts"]
            assert [effort["k"] for effort in efforts] == [10, 100, 1000]
            assert all(0.98 <= effort["recall"] <= 1 for effort in efforts)
            for k in (1, 37, 1000):
                queries = random.normal(size=(200 if k < 100 else 20, 16)).astype(np.float32)
                assert recall_of_scores(index, k, queries) >= 0.98


QUICK = [("ivf-pq", 2, "mixed"), ("hnsw", 20, "near")]


@pytest.mark.parametrize(
    ("kind", "share", "place"),
    [
        case if case in QUICK else pytest.param(*case, marks=pytest.mark.soak)
        for case in itertools.product(("ivf-pq", "hnsw"), (2, 20), ("near", "mixed"))
    ],
)
def test_conditions_keep_their_recall(
    kind: str, share: int, place: str, fill: FillIndex, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where all rows that qualify are far from the query, in parts of the index that hold no near rows."""
    monkeypatch.setattr(database_search, "EXACT_BELOW", 0)
    random = np.random.default_rng(4)
    count = 4000
    centres = random.normal(size=(40, 16))
    which = np.arange(count) % 40
    vectors = (centres[which] + 0.3 * random.normal(size=(count, 16))).astype(np.float32)
    kept = which < 40 // share if place == "near" else random.random(count) < 1 / share
    with fill(tmp_path / "db", vectors, np.where(kept, "kept", "rest").tolist()) as index:
        index.build_index(kind)
        for filters in ({"datasets": ["kept"]}, {"where": "dataset = 'kept' AND id <> 'x'"}):
            assert recall_of_scores(index, 10, vectors[::101], **filters) >= 0.98


def recall_of_scores(index: SearchIndex, k: int, queries: np.ndarray, **filters: object) -> float:
    """The share of the k best scores that is reached; rows of equal scores stand in for each other."""
    found = 0
    exact = index.search_vectors(queries, k, exact=True, **filters)
    for best, matches in zip(exact, index.search_vectors(queries, k, **filters), strict=True):
        assert len(best) == k
        found += sum(match.score >= best[-1].score - 1e-5 for match in matches)
    return found / (k * len(queries))
