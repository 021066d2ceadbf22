from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from unimetric.search.scoring import unit
from unimetric.search.upgrade.decision import Gallery, compare
from unimetric.search.upgrade.maps import KINDS, fit_map, held_out, likeness
from unimetric.search.upgrade.run import by_class
from unimetric.search.upgrade.thresholds import shifted


def classes(seed: int, count: int, per_class: int, size: int, spread: float = 0.3) -> tuple[np.ndarray, list]:
    rng = np.random.default_rng(seed)
    centres = np.repeat(rng.normal(size=(count, size)), per_class, axis=0)
    vectors = unit(centres + spread * rng.normal(size=centres.shape)).astype(np.float32)
    shuffled = rng.permutation(len(vectors))
    return vectors[shuffled], [("d", str(number // per_class)) for number in shuffled]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("old_size", "new_size"), [(12, 12), (8, 12), (12, 8)])
def test_a_map_of_any_two_sizes_gives_unit_vectors(kind: str, old_size: int, new_size: int) -> None:
    rng = np.random.default_rng(0)
    old = rng.normal(size=(60, old_size)).astype(np.float32)
    new = rng.normal(size=(60, new_size)).astype(np.float32)
    moved = KINDS[kind](old, new)(old[:7])
    assert moved.shape == (7, new_size) and moved.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, atol=1e-5)
    assert KINDS[kind](old, new)(old[:0]).shape == (0, new_size)


def test_a_rotation_is_found_exactly() -> None:
    rng = np.random.default_rng(0)
    old = unit(rng.normal(size=(40, 10)))
    turn, _ = np.linalg.qr(rng.normal(size=(10, 10)))
    new = (old @ turn).astype(np.float32)
    others = unit(rng.normal(size=(30, 10)))
    np.testing.assert_allclose(KINDS["orthogonal"](old, new)(others), others @ turn, atol=1e-5)
    # Lengths do not matter.
    np.testing.assert_allclose(KINDS["orthogonal"](old, new)(3 * others), others @ turn, atol=1e-5)


def test_the_map_that_moves_held_out_images_nearest_is_chosen() -> None:
    old, _ = classes(0, 40, 8, 16)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))
    fitted = fit_map(old, (old @ turn).astype(np.float32))
    assert fitted.kind == "orthogonal" and set(fitted.likeness) == set(KINDS)
    assert fitted.likeness["orthogonal"] == pytest.approx(1, abs=1e-5)
    bent = unit(np.concatenate([old**3, np.abs(old)], axis=1))
    assert fit_map(old, bent).kind == "kernel"


def test_held_out_rows_are_moved_by_maps_that_have_not_seen_them() -> None:
    """A map that remembers its pairs finds none of the held-out ones."""
    rng = np.random.default_rng(0)
    old, new = unit(rng.normal(size=(50, 8))), unit(rng.normal(size=(50, 8)))

    def remember(pairs_old: np.ndarray, pairs_new: np.ndarray):
        known = {row.tobytes(): other for row, other in zip(pairs_old, pairs_new, strict=True)}
        return lambda rows: np.array([known.get(row.tobytes(), np.zeros(8)) for row in rows], np.float32)

    assert not held_out(old, new, remember).any()
    assert likeness(new, new) == pytest.approx(1)


def test_the_old_model_answers_while_it_is_better() -> None:
    old, names = classes(0, 50, 8, 16, spread=0.3)
    rng = np.random.default_rng(2)
    unrelated = unit(rng.normal(size=(400, 16)))
    poor = compare(Gallery(old, names, unrelated[:100]), KINDS["ridge"])
    assert poor.is_measured and not poor.new_is_better and poor.old.recall > 0.9 > poor.mixed.recall
    turn, _ = np.linalg.qr(rng.normal(size=(16, 16)))
    same = compare(Gallery(old, names, (old[:100] @ turn).astype(np.float32)), KINDS["orthogonal"])
    assert same.new_is_better and same.mixed.recall == pytest.approx(same.old.recall, abs=0.011)


def test_recall_of_the_old_model_agrees_with_a_plain_search() -> None:
    old, names = classes(3, 30, 4, 12, spread=0.9)
    measured = compare(Gallery(old, names, old[:60]), KINDS["orthogonal"]).old.recall
    hits = []
    for place in range(60):
        cosines = old @ old[place]
        cosines[place] = -2
        hits.append(names[int(cosines.argmax())] == names[place])
    assert measured == pytest.approx(np.mean(hits))


def test_rows_without_a_label_are_nobodys_class_and_decide_nothing() -> None:
    old, _ = classes(0, 20, 5, 8)
    compared = compare(Gallery(old, [None] * 100, old[:50]), KINDS["orthogonal"])
    assert not compared.is_measured and compared.new_is_better


def test_thresholds_move_with_the_scores_of_wrong_answers() -> None:
    rng = np.random.default_rng(0)
    embedded = np.sort(rng.uniform(0.2, 0.6, 1000))
    points = [{"wanted_false_match_rate": rate, "threshold": 0.5} for rate in (0.1, 0.01)]
    roc = {"thresholds": [0.1, 0.5, 0.9], "false_match_rates": [1.0, 0.1, 0.0], "false_non_match_rates": [0, 0, 1]}
    part = {"impostors": 1000, "operating_points": [*points, {"wanted_false_match_rate": 1e-4, "threshold": None}]}
    answers = {"scores": [0.1, 0.5, 0.9], "right": [0.1, 0.6, 0.9]}
    calibration = {
        "unified": {**part, "roc": roc, "answers": answers},
        "separate": {"d": {**part, "roc": None, "sets": {}}},
    }
    moved = shifted(calibration, embedded, embedded + 0.1, share=0.5)
    for gallery in (moved["unified"], moved["separate"]["d"]):
        assert [point["threshold"] for point in gallery["operating_points"]] == [
            pytest.approx(0.55),
            pytest.approx(0.55),
            None,
        ]
    assert moved["unified"]["roc"]["thresholds"] == pytest.approx([0.15, 0.55, 0.95])
    assert moved["unified"]["answers"]["scores"] == pytest.approx([0.15, 0.55, 0.95])
    assert moved["unified"]["answers"]["right"] == answers["right"]
    assert shifted(calibration, embedded, embedded + 0.1, share=0.0)["unified"] == calibration["unified"]
    few = shifted(calibration, embedded[:50], embedded[:50] + 0.1, share=0.5)
    assert few["unified"] == calibration["unified"]
    # Sets are guaranteed for the gallery that they were measured in only.
    assert "sets" not in few["separate"]["d"] and "sets" not in moved["separate"]["d"]


def test_the_order_is_one_of_each_class_then_a_second_one() -> None:
    rows = pa.table({"id": ["d", "a", "c", "b", "e"], "dataset": ["x"] * 5, "label": ["1", "1", "2", "1", ""]})
    assert by_class(rows, ["a", "b", "c", "d", "e"]) == ["a", "c", "e", "b", "d"]
    # What is done already counts.
    assert by_class(rows, ["b", "c", "d"]) == ["c", "b", "d"]
