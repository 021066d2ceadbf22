"""In-Shop's query and gallery images are sets of their own from the list to the scores, in the unified gallery too."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from benchmark_fixtures import Expected, inshop_lines, make_sop, touch, write

from unimetric.config import DataConfig, RunConfig
from unimetric.data.catalog import Item
from unimetric.data.sources import read_sources
from unimetric.data.splits import Split, split_datasets
from unimetric.evaluation import evaluate
from unimetric.evaluation.protocol import Report
from unimetric.training.setup import load_split

CLASSES = ("id_00000004", "id_00000005", "id_00000006")
AXES = {label: axis for axis, label in enumerate((*CLASSES, "11319", "22634"))}


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    """In-Shop with two queries and one gallery image for each of three classes, and SOP with 2 + 1 test images."""
    listed: Expected = [(f"img/{i}.jpg", f"id_{i // 2:08d}", "train") for i in range(4)]
    # Queries and gallery take turns, so that a row number is not the same image on both sides.
    for label in CLASSES:
        listed += [(f"img/{label}_{i}.jpg", label, role) for i, role in enumerate(("query", "gallery", "query"))]
    folder = tmp_path / "inshop"
    write(folder / "list_eval_partition.txt", inshop_lines(listed))
    touch(folder / path for path, _, _ in listed)
    return [f"inshop:{folder}", f"sop:{make_sop(tmp_path).folder}"]


def score(split: Split, query_vectors: Sequence[np.ndarray], gallery_vectors: Sequence[np.ndarray]) -> Report:
    def columns(items: Sequence[Item]) -> tuple[list[str], list[str]]:
        return [item.label for item in items], [item.dataset for item in items]

    return evaluate(
        np.stack(query_vectors).astype(np.float32),
        *columns(split.query),
        gallery=(np.stack(gallery_vectors).astype(np.float32), *columns(split.gallery)),
        ks=(1,),
        ids=[str(item.path) for item in split.query],
        gallery_ids=[str(item.path) for item in split.gallery],
    )


def unit(label: str) -> np.ndarray:
    return np.eye(len(AXES))[AXES[label]]


def test_roles_are_kept_by_the_split(sources: list[str]) -> None:
    split = split_datasets(read_sources(sources))
    query = [item for item in split.query if item.dataset == "inshop"]
    gallery = [item for item in split.gallery if item.dataset == "inshop"]
    assert [item.role for item in query] == ["query"] * 6
    assert [item.role for item in gallery] == ["gallery"] * 3
    assert not {item.path for item in query} & {item.path for item in gallery}
    assert {item.label for item in query} == {item.label for item in gallery} == set(CLASSES)
    assert [item.role for item in split.train if item.dataset == "inshop"] == ["train"] * 4


def test_perfect_retrieval_scores_one(sources: list[str]) -> None:
    """If items are numbered by position on each side, unrelated gallery items are hidden from a query."""
    split = split_datasets(read_sources(sources))
    report = score(split, [unit(item.label) for item in split.query], [unit(item.label) for item in split.gallery])
    assert report.separate["inshop"]["recall@1"] == 1
    assert report.unified["recall@1"] == 1
    assert (report.counts.datasets["inshop"].queries, report.counts.datasets["inshop"].gallery) == (6, 3)
    assert (report.counts.queries, report.counts.gallery) == (9, 6)
    # The lonely class of SOP: its image is query and gallery at once, and never finds itself.
    assert report.counts.queries_without_positive == 1


def test_queries_are_not_found_by_queries(sources: list[str]) -> None:
    """Two queries of a class coincide, but the gallery's vectors are those of other classes."""
    split = split_datasets(read_sources(sources))
    query = [unit(item.label) for item in split.query]
    wrong = dict(zip(CLASSES, (*CLASSES[1:], CLASSES[0]), strict=True))
    gallery = [unit(wrong.get(item.label, item.label)) for item in split.gallery]
    report = score(split, query, gallery)
    assert report.separate["inshop"]["recall@1"] == 0
    assert report.separate["sop"]["recall@1"] == 1
    # All of In-Shop's six queries fail and both of SOP's that have a partner succeed.
    assert report.unified["recall@1"] == pytest.approx(2 / 8)


def test_differences_from_the_published_counts_are_said_with_the_split(sources: list[str]) -> None:
    notes = load_split(RunConfig(data=DataConfig(sources=sources))).notes
    wanted = "dataset 'inshop' differs from In-Shop Clothes Retrieval as published: 4 train images, not 25882"
    assert any(note.startswith(wanted) for note in notes)
    assert any(note.startswith("dataset 'sop' differs") for note in notes)
