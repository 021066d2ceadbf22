"""The report as a whole: how its parts hang together."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from image_pools import columns, images
from retrieval_oracle import Image, mean_scores, ranking

from properties import examples
from unimetric.errors import UserError
from unimetric.evaluation import Report, evaluate


def clusters(queries: int, datasets: int = 3, **options: Any) -> Report:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(queries // 5, (queries,), generator=generator)
    vectors = torch.randn(queries // 5, 8, generator=generator)[labels]
    vectors += torch.randn(queries, 8, generator=generator)
    return evaluate(vectors, labels, [f"set {label % datasets}" for label in labels.tolist()], ks=[1, 2], **options)


@settings(max_examples=examples(60), deadline=None)
@given(pool=images())
def test_confusion_and_gap_are_those_of_the_definitions(pool: list[Image]) -> None:
    assume(mean_scores(pool, pool, [1]) is not None)
    vectors, labels, datasets, _ = columns(pool)
    report = evaluate(vectors, labels, datasets, resamples=2)
    assert report.confusion.datasets == tuple(dict.fromkeys(map(str, datasets)))
    for name, row in zip(report.confusion.datasets, report.confusion.matrix, strict=True):
        found = [ranking(query, pool) for query in pool if str(query.dataset) == name]
        nearest = [str(pool[rows[0]].dataset) for rows in found if rows]
        assert row == pytest.approx([nearest.count(other) / len(nearest) for other in report.confusion.datasets])
    for name, gap in report.unified_gap.items():
        own = [image for image in pool if str(image.dataset) == name]
        separate, unified = mean_scores(own, own, [1]), mean_scores(own, pool, [1])
        assert separate is not None
        assert unified is not None
        assert gap == pytest.approx(float(separate["recall@1"] - unified["recall@1"]))
        assert gap >= 0
    assert report.unified_gap.keys() == report.separate.keys()
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False)) == report.to_dict()


def test_intervals_hold_their_values() -> None:
    report = clusters(600)
    intervals = report.intervals
    assert (intervals.level, intervals.resamples, intervals.seed) == (0.95, 1000, 0)
    values = {"separate": report.separate, "harmonic": report.harmonic, "unified": report.unified}
    for part, scores in values.items():
        assert getattr(intervals, part).keys() == scores.keys()
    for name in report.separate:
        for metric, value in report.separate[name].items():
            low, high = intervals.separate[name][metric]
            assert 0 <= low < value < high <= 1
        low, high = intervals.unified_gap[name]
        assert 0 <= low < report.unified_gap[name] < high <= 1
    for metric in report.unified:
        for found, value in [(intervals.harmonic, report.harmonic), (intervals.unified, report.unified)]:
            low, high = found[metric]
            assert 0 < low < value[metric] < high < 1


def test_intervals_shrink_with_the_root_of_the_queries() -> None:
    """Of a share p among n, 1.96 sqrt(p (1 - p) / n) to either side."""
    report = clusters(2000, datasets=1)
    low, high = report.intervals.unified["recall@1"]
    share = report.unified["recall@1"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(share * (1 - share) / 2000), rel=0.1)
    # One dataset is its own union and its own harmonic mean.
    for metric, interval in report.intervals.unified.items():
        assert report.intervals.harmonic[metric] == pytest.approx(interval)
        assert report.intervals.separate["set 0"][metric] == pytest.approx(interval)


def test_perfect_retrieval_has_intervals_of_no_width() -> None:
    report = evaluate(torch.eye(6).repeat(2, 1), [*range(6)] * 2, ["a", "a", "a", "b", "b", "c"] * 2)
    assert set(report.intervals.unified.values()) == {(1.0, 1.0)}
    assert set(report.intervals.harmonic.values()) == {(1.0, 1.0)}
    assert set(report.intervals.unified_gap.values()) == {(0.0, 0.0)}


def test_large_datasets_weigh_more_in_the_union() -> None:
    """Ninety queries that are always right and ten that never are: 0.9, whichever are drawn."""
    vectors = torch.cat([torch.eye(10)[[0] * 90], torch.eye(10)[[1, 2] * 5]])
    labels = ["a"] * 90 + [f"b{row // 2}" for row in range(10)]
    report = evaluate(vectors, labels, ["large"] * 90 + ["small"] * 10)
    assert report.separate["small"]["recall@1"] == 0
    assert report.unified["recall@1"] == 0.9
    assert report.intervals.unified["recall@1"] == pytest.approx((0.9, 0.9))
    assert report.intervals.harmonic["recall@1"] == (0, 0)


def test_the_spread_of_the_union_is_over_all_pairs() -> None:
    """Each dataset is one point, opposite to the other's."""
    vectors = torch.tensor([[1.0, 0.0]] * 3 + [[-1.0, 0.0]] * 3)
    report = evaluate(vectors, ["x"] * 6, ["one"] * 3 + ["two"] * 3)
    assert report.separate_spread["one"].uniformity == pytest.approx(0, abs=1e-5)
    # Twelve ordered pairs at distance 0, eighteen at 2.
    assert report.unified_spread.uniformity == pytest.approx(math.log((12 + 18 * math.exp(-8)) / 30), abs=1e-5)
    assert report.unified_spread.alignment == pytest.approx(0, abs=1e-5)
    assert (report.unified_spread.positive_pairs, report.unified_spread.pairs) == (12, 30)


def test_other_draws_change_intervals_and_no_value() -> None:
    one, other = clusters(300), clusters(300, resamples=50)
    assert one.unified == other.unified
    assert one.intervals.unified != other.intervals.unified
    assert other.intervals.resamples == 50


def test_a_dataset_that_never_errs_and_one_that_does() -> None:
    """Worst classes, thresholds and confusion speak of the dataset that they are of."""
    good = torch.eye(8)[[0, 0, 1, 1]]
    bad = torch.eye(8)[[2, 3, 2, 3]]
    labels = ["a", "a", "b", "b", "x", "x", "y", "y"]
    report = evaluate(torch.cat([good, bad]), labels, ["good"] * 4 + ["bad"] * 4)
    assert report.separate["good"]["recall@1"] == 1
    assert report.separate["bad"]["recall@1"] == 0
    worst = [(one.label, one.mistaken_for, one.recall_at_1) for one in report.worst_classes["bad"]]
    assert worst == [("x", "y", 0), ("y", "x", 0)]
    assert report.worst_classes["good"][0].mistaken_for is None
    assert report.separate_thresholds["good"].equal_error_rate == 0
    assert report.separate_thresholds["bad"].equal_error_rate == 1
    assert report.unified_thresholds.equal_error_rate == 0.5
    assert report.unified_thresholds.impostors == 8
    assert report.separate_spread["good"].alignment == pytest.approx(0)
    assert report.separate_spread["bad"].alignment == pytest.approx(2)
    assert report.to_dict()["worst_classes"]["bad"][0] == {
        "label": "x",
        "queries": 2,
        "recall@1": 0.0,
        "map@r": 0.0,
        "mistaken_for": "y",
    }


def test_queries_that_are_not_in_the_catalogue_are_impostors() -> None:
    """They have no positive and no part in any score, but show what a search wrongly finds."""
    gallery = (torch.eye(3), ["a", "b", "c"], ["one"] * 3)
    report = evaluate(torch.eye(3)[[0, 1, 0, 0]], ["a", "b", "new", "new"], ["one"] * 4, gallery)
    assert report.counts.queries_without_positive == 2
    assert (report.unified_thresholds.genuine, report.unified_thresholds.impostors) == (2, 4)
    assert report.per_query.unified.best_negative.tolist() == [0, 0, 1, 1]
    assert np.isnan(report.per_query.unified.best_positive).tolist() == [False, False, True, True]


def test_the_dict_does_not_grow_with_the_queries() -> None:
    few, many = (json.dumps(clusters(queries).to_dict()) for queries in (500, 4000))
    assert len(many) < 1.2 * len(few)
    assert len(many) < 35_000


def test_the_dict_names_its_parts() -> None:
    plain = clusters(100, datasets=2).to_dict()
    assert list(plain)[5:] == [
        "intervals",
        "unified_gap",
        "domain_confusion",
        "spread",
        "thresholds",
        "worst_classes",
    ]
    names = {"set 0", "set 1"}
    assert plain["unified_gap"].keys() == plain["worst_classes"].keys() == names
    assert plain["thresholds"]["separate"].keys() == plain["spread"]["separate"].keys() == names
    assert set(plain["domain_confusion"]["datasets"]) == names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resamples": 0}, "resamples: 0; give a whole number, at least 1"),
        ({"seed": -1}, "seed: -1; give a whole number, at least 0"),
        ({"seed": 0.5}, "seed: 0.5; give a whole number, at least 0"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        clusters(50, **options)
    assert str(caught.value) == message
