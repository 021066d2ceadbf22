from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_pools import columns, images
from matrix_products import Products
from retrieval_oracle import Image, harmonic_mean, mean_scores, scores_of

from properties import examples
from unimetric.errors import UserError
from unimetric.evaluation import Report, evaluate

PERFECT = {"recall@1": 1.0, "map@r": 1.0, "r-precision": 1.0}
NOTHING = dict.fromkeys(PERFECT, 0.0)


def check(report: Report, queries: Sequence[Image], gallery: Sequence[Image], ks: Sequence[int]) -> None:
    """Compare a report with the definitions."""

    def of(side: Sequence[Image], dataset: Hashable) -> list[Image]:
        return [image for image in side if image.dataset == dataset]

    def unscorable(side: Sequence[Image]) -> int:
        return sum(scores_of(query, gallery, ks) is None for query in side)

    datasets = list(dict.fromkeys(image.dataset for image in [*queries, *gallery]))
    separate = {str(d): mean_scores(of(queries, d), of(gallery, d), ks) for d in datasets}
    valued = {name: scores for name, scores in separate.items() if scores is not None}
    assert report.separate.keys() == valued.keys()
    for name, scores in valued.items():
        assert_scores(report.separate[name], scores)
    unified = mean_scores(queries, gallery, ks)
    assert unified is not None
    assert_scores(report.unified, unified)
    assert_scores(report.harmonic, {metric: harmonic_mean([s[metric] for s in valued.values()]) for metric in unified})
    assert report.to_dict()["counts"] == {
        "queries": len(queries),
        "gallery": len(gallery),
        "queries_without_positive": unscorable(queries),
        "datasets": {
            str(d): {
                "queries": len(of(queries, d)),
                "gallery": len(of(gallery, d)),
                "queries_without_positive": unscorable(of(queries, d)),
            }
            for d in datasets
        },
        "datasets_left_out": [name for name in separate if name not in valued],
    }


def assert_scores(scores: Any, expected: dict[str, Fraction]) -> None:
    assert list(scores) == list(expected)
    assert scores == pytest.approx({metric: float(value) for metric, value in expected.items()}, abs=1e-12)


KS = st.lists(st.integers(1, 20), min_size=1, max_size=3, unique=True)
TILE = st.integers(1, 20)


@settings(max_examples=examples(150), deadline=None)
@given(pool=images(), ks=KS, query_tile=TILE, gallery_tile=TILE)
def test_among_themselves_scores_are_those_of_the_definitions(
    pool: list[Image], ks: list[int], query_tile: int, gallery_tile: int
) -> None:
    vectors, labels, datasets, _ = columns(pool)
    if mean_scores(pool, pool, ks) is None:
        with pytest.raises(UserError, match="nothing can be scored"):
            evaluate(vectors, labels, datasets, ks=ks)
        return
    report = evaluate(vectors, labels, datasets, ks=ks)
    check(report, pool, pool, ks)
    assert report == evaluate(vectors, labels, datasets, ks=ks, query_tile=query_tile, gallery_tile=gallery_tile)


@settings(max_examples=examples(150), deadline=None)
@given(pool=images(), ks=KS, query_tile=TILE, gallery_tile=TILE, data=st.data())
def test_against_a_gallery_scores_are_those_of_the_definitions(
    pool: list[Image], ks: list[int], query_tile: int, gallery_tile: int, data: st.DataObject
) -> None:
    """The gallery may share none, some or all of its images with the queries."""
    some = st.lists(st.sampled_from(pool), min_size=1, unique_by=lambda image: image.identity)
    queries, gallery = data.draw(some), data.draw(some)
    *query_columns, ids = columns(queries)
    options: dict[str, Any] = {"ks": ks, "ids": ids, "query_tile": query_tile, "gallery_tile": gallery_tile}
    if mean_scores(queries, gallery, ks) is None:
        with pytest.raises(UserError, match="nothing can be scored"):
            evaluate(*query_columns, columns(gallery), **options)
        return
    check(evaluate(*query_columns, columns(gallery), **options), queries, gallery, ks)


def test_two_datasets_that_share_a_label_share_no_class() -> None:
    """The nearest neighbour of every query has its label, but is of the other dataset."""
    vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.1], [0.1, 1.0]])
    report = evaluate(vectors, ["x", "x", "x", "x"], ["birds", "birds", "cars", "cars"])
    assert report.separate == {"birds": PERFECT, "cars": PERFECT}
    assert report.harmonic == PERFECT
    assert report.unified == NOTHING


def test_perfect_retrieval_from_a_gallery_numbered_by_position_scores_one() -> None:
    """In-Shop: query i and gallery item i are different images, and only one of them is right."""
    vectors, gallery = torch.eye(4), torch.eye(4)
    labels = ["a", "b", "c", "d"]
    report = evaluate(vectors, labels, ["inshop"] * 4, (gallery, labels, ["inshop"] * 4))
    assert report.separate == {"inshop": PERFECT}
    assert report.unified == PERFECT
    assert report.counts.queries_without_positive == 0


def test_a_shared_gallery_excludes_only_the_queries_that_are_in_it() -> None:
    """One dataset that searches itself beside one with a gallery of its own."""
    birds = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [1.0, 0.1, 0.0]])
    shop = torch.tensor([[0.0, 0.0, 1.0]])
    queries = (torch.cat([birds, shop]), ["tit", "tit", "owl", "coat"], ["birds"] * 3 + ["shop"])
    gallery = (torch.cat([shop, birds]), ["coat", "tit", "tit", "owl"], ["shop"] + ["birds"] * 3)
    found_themselves = evaluate(*queries, gallery)
    assert found_themselves.unified["recall@1"] == 1
    report = evaluate(*queries, gallery, ids=["b0", "b1", "b2", "coat on her"], gallery_ids=[None, "b0", "b1", "b2"])
    # Each tit's nearest other bird is the owl, which has no other owl.
    assert report.separate == {"birds": NOTHING, "shop": PERFECT}
    assert report.counts.datasets["birds"].queries_without_positive == 1


def test_without_a_positive_nothing_is_scored_and_everything_is_counted() -> None:
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [0.5, 0.5]])
    report = evaluate(
        vectors,
        ["a", "a", "b", "only", "a"],
        ["one", "one", "one", "two", "three"],
        gallery=(vectors, ["a", "a", "zzz", "x", "a"], ["one", "one", "one", "four", "one"]),
        ids=range(5),
        gallery_ids=[0, 1, None, None, None],
    )
    assert report.separate.keys() == {"one"}
    assert report.separate["one"]["recall@1"] == 1
    assert report.harmonic == report.separate["one"]
    assert report.to_dict()["counts"] == {
        "queries": 5,
        "gallery": 5,
        "queries_without_positive": 3,
        "datasets": {
            "one": {"queries": 3, "gallery": 4, "queries_without_positive": 1},
            "two": {"queries": 1, "gallery": 0, "queries_without_positive": 1},
            "three": {"queries": 1, "gallery": 0, "queries_without_positive": 1},
            "four": {"queries": 0, "gallery": 1, "queries_without_positive": 0},
        },
        "datasets_left_out": ["two", "three", "four"],
    }


def test_strict_refuses_a_query_without_a_positive() -> None:
    vectors = torch.eye(4)
    arguments: Any = (vectors, ["a", "a", "b", "c"], ["one", "one", "one", "two"])
    assert evaluate(*arguments).counts.queries_without_positive == 2
    with pytest.raises(UserError) as caught:
        evaluate(*arguments, strict=True)
    assert str(caught.value) == (
        "labels: 2 of 4 queries have no other image of their (dataset, label) in the gallery, the first in row 2, "
        "('one', 'b'); complete the gallery, drop those queries, or leave out strict"
    )
    whole = (vectors, ["a", "a", "b", "b"], ["one"] * 4)
    assert evaluate(*whole, strict=True) == evaluate(*whole)


def test_both_protocols_take_one_pass() -> None:
    """And no pair of a query and a gallery item is multiplied twice."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3000, 8, generator=generator)
    labels = (torch.arange(3000) // 4).tolist()
    datasets = torch.randint(3, (750,), generator=generator)[labels].tolist()
    with Products() as products:
        evaluate(vectors, labels, datasets, query_tile=100, gallery_tile=500)
    # Where a tile of queries is of two datasets, it meets both again.
    assert 3000**2 <= sum(product.size for product in products.of(torch.float32)) < 1.1 * 3000**2


def test_harmonic_is_zero_as_soon_as_one_dataset_is() -> None:
    vectors = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.1, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.9, 0.0, 0.1]])
    report = evaluate(vectors, ["a", "a", "a", "a", "b"], ["good", "good", "bad", "bad", "bad"])
    assert report.separate["good"]["recall@1"] == 1
    assert report.separate["bad"]["recall@1"] == 0.5
    assert report.harmonic["recall@1"] == pytest.approx(2 / 3)
    assert report.separate["bad"]["map@r"] == 0.5
    worse = evaluate(vectors[[0, 1, 2, 3, 2]], ["a", "a", "a", "b", "b"], ["good", "good", "bad", "bad", "bad"])
    assert worse.separate["bad"] == NOTHING
    assert worse.harmonic == NOTHING


def test_ties_go_to_the_lower_gallery_row() -> None:
    gallery = torch.ones(5000, 3)
    datasets = ["one"] * 5000
    for right, recall in [(0, 1.0), (4999, 0.0)]:
        labels = ["wrong"] * 5000
        labels[right] = "right"
        report = evaluate(torch.ones(1, 3), ["right"], ["one"], (gallery, labels, datasets), ks=[1, 4999, 5000])
        assert report.unified["recall@1"] == report.unified["recall@4999"] == recall
        assert report.unified["recall@5000"] == 1


def test_k_beyond_the_gallery_takes_all_of_it() -> None:
    report = evaluate(torch.eye(3), ["a", "a", "b"], ["one"] * 3, ks=np.array([1_000_000]))
    assert report.unified["recall@1000000"] == 1


def test_ks_keep_their_order_and_repeat_once() -> None:
    report = evaluate(torch.eye(2), [0, 0], [0, 0], ks=(4, np.int64(1), 4))
    assert list(report.unified) == ["recall@4", "recall@1", "map@r", "r-precision"]


@pytest.mark.filterwarnings("ignore::unimetric.evaluation.LabelWarning")
def test_labels_of_different_types_are_different() -> None:
    vectors = torch.eye(4)
    report = evaluate(vectors, [1, "1", 1.0, b"1"], ["one"] * 4)
    assert report.counts.queries_without_positive == 2


def test_the_report_is_plain_json() -> None:
    report = evaluate(np.eye(4, dtype=np.float32), np.array([0, 0, 1, 1]), np.array([3, 3, 5, 5]), ks=np.array([1, 2]))
    plain = report.to_dict()
    assert json.loads(json.dumps(plain)) == plain
    assert list(plain)[:5] == ["separate", "harmonic", "unified", "counts", "distance"]
    assert plain["separate"].keys() == {"3", "5"}
    assert {type(v) for scores in plain["separate"].values() for v in scores.values()} == {float}
    assert type(plain["counts"]["queries"]) is int


def test_importing_the_package_does_not_import_evaluation() -> None:
    code = "import sys, unimetric; sys.exit('torch' in sys.modules or 'unimetric.evaluation' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


BASE: dict[str, Any] = {"vectors": torch.eye(2), "labels": ["a", "a"], "datasets": ["one", "one"]}
GALLERY = (torch.eye(2), ["a", "a"], ["one", "one"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ks": 1}, "ks: 1; give a list of whole numbers, such as [1, 10]"),
        ({"ks": "1"}, "ks: '1'; give a list of whole numbers, such as [1, 10]"),
        ({"ks": None}, "ks: None; give a list of whole numbers, such as [1, 10]"),
        ({"ks": []}, "ks: empty; give at least one whole number, such as [1]"),
        ({"ks": [1, 0]}, "ks: 0; give a whole number, at least 1"),
        ({"ks": [1.0]}, "ks: 1.0; give a whole number, at least 1"),
        ({"ks": [True]}, "ks: True; give a whole number, at least 1"),
        ({"query_tile": -1}, "query_tile: -1; give a whole number, at least 1"),
        ({"gallery_tile": 1.5}, "gallery_tile: 1.5; give a whole number, at least 1"),
        ({"device": "mps"}, "device: 'mps' has no float64 matrix product; use 'cpu' or 'cuda'"),
        (
            {"vectors": torch.ones(2)},
            "vectors: shape [2]; give a matrix [N, E], one embedding per row",
        ),
        ({"labels": ["a"]}, "labels: 1 values for 2 rows of vectors; give one per row"),
        ({"datasets": "one"}, "datasets: got str; give a list with one value per row"),
        ({"datasets": ["one"] * 3}, "datasets: 3 values for 2 rows of vectors; give one per row"),
        ({"ids": ["x"]}, "ids: 1 values for 2 rows of vectors; give one per row"),
        (
            {"ids": ["x", "x"]},
            "ids: 'x' names rows 0 and 1; drop the copy, or give different images different ids, such as their paths",
        ),
        ({"gallery_ids": ["x", "y"]}, "gallery_ids: given without a gallery; give ids only, or a gallery too"),
        (
            {"gallery": torch.eye(2)},
            "gallery: got Tensor; give (vectors, labels, datasets) or (vectors, labels, datasets, ids)",
        ),
        (
            {"gallery": GALLERY[:2]},
            "gallery: got 2 members; give (vectors, labels, datasets) or (vectors, labels, datasets, ids)",
        ),
        (
            {"gallery": (torch.ones(2, 3), *GALLERY[1:])},
            "gallery vectors: 3 columns, but vectors has 2; embed both sides with the same model",
        ),
        (
            {"gallery": (torch.zeros(2, 2), *GALLERY[1:])},
            "gallery vectors: row 0 is all zeros, which has no cosine; drop it or fix the model",
        ),
        (
            {"gallery": (torch.eye(2), ["a"], ["one", "one"])},
            "gallery labels: 1 values for 2 rows of gallery vectors; give one per row",
        ),
        (
            {"gallery": (torch.eye(2), ["a", "a"], ["one", []])},
            "gallery datasets: row 1 is the unhashable []; give strings, numbers or tuples of them",
        ),
        (
            {"gallery": GALLERY, "ids": [1, 2]},
            "gallery_ids: not given, but the other side has ids; give both, or neither",
        ),
        (
            {"gallery": GALLERY, "gallery_ids": [1, 2]},
            "ids: not given, but the other side has ids; give both, or neither",
        ),
        (
            {"gallery": (*GALLERY, [1, 2]), "gallery_ids": [1, 2], "ids": [1, 2]},
            "gallery_ids: given twice, here and as fourth member of gallery; give them once",
        ),
        (
            {"gallery": (*GALLERY, ["x", "x"]), "ids": ["x", "y"]},
            "gallery_ids: 'x' names rows 0 and 1; drop the copy, or give different images different ids, "
            "such as their paths",
        ),
        (
            {"gallery": (torch.eye(2), ["b", "a"], ["one", "one"]), "ids": [0, 1], "gallery_ids": [0, 1]},
            "ids: 0 names query row 0, (dataset, label) ('one', 'a'), and gallery row 0, ('one', 'b'); give "
            "different images different ids, such as their paths",
        ),
        (
            {"labels": ["a", "b"]},
            "labels: none of the 2 queries has another image of its (dataset, label) in the gallery; nothing "
            "can be scored: give a gallery with the queries' classes",
        ),
        (
            {"datasets": [1, "1"]},
            "datasets: 1 and '1' are different datasets, but both would be reported as '1'; rename one",
        ),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        evaluate(**(BASE | options))
    assert str(caught.value) == message


def test_a_gallery_may_carry_its_ids_or_none() -> None:
    ids = ["x", "y"]
    named = evaluate(**BASE, gallery=GALLERY, ids=ids, gallery_ids=ids)
    assert named == evaluate(**BASE, gallery=(*GALLERY, ids), ids=ids)
    assert named == evaluate(**BASE, gallery=(*GALLERY, None), ids=ids, gallery_ids=ids)
    assert named == evaluate(**BASE, ids=ids)
    assert evaluate(**BASE, gallery=(*GALLERY, None)) == evaluate(**BASE, gallery=GALLERY)
