"""Decide between match and no match, with a confidence, by the measurements of `unimetric.evaluation`.

The scores of a measurement and those of a search are the same quantity, if the measurement's gallery is like the
database: wrong answers become more similar as the gallery grows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from unimetric.errors import UserError
from unimetric.files import explain_os_error, parse_json

_Curve: TypeAlias = "tuple[NDArray[np.float64], NDArray[np.float64]]"
"""Scores, and the share of right answers at each."""

Strength = Literal["identical", "strong", "possible", "weak"]

IDENTICAL = 5e-4
"""Largest distance of a score from that of a picture to itself which is called identical."""
STRONG = 0.9
"""Confidence from which an answer is called strong."""
POSSIBLE = 0.5
"""Confidence from which an answer is called possible, and a match; any other is weak."""


def strength_of(score: float, perfect: float, confidence: float | None) -> Strength | None:
    """Return the word for an answer; None without a confidence, unless it is identical.

    ``perfect`` is the score of a picture compared with itself.
    """
    if score >= perfect - IDENTICAL:
        return "identical"
    if confidence is None:
        return None
    return "strong" if confidence >= STRONG else "possible" if confidence >= POSSIBLE else "weak"


@dataclass(frozen=True)
class Calibration:
    """Thresholds and curves, as ``metrics.json`` keeps them under ``thresholds``.

    Attributes:
        unified: of all datasets in one gallery.
        separate: of each dataset alone.
        classes: the offsets of classes, as `class_thresholds` records them; None with one threshold for all.
    """

    unified: Mapping[str, Any]
    separate: Mapping[str, Mapping[str, Any]]
    classes: Mapping[str, Mapping[str, Any]] | None = None

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Build from the output of `to_dict`, or raise a `UserError` if it is not one."""
        try:
            calibration = cls(dict(values["unified"]), dict(values["separate"]), values.get("classes"))
            for own in (calibration.classes or {}).values():
                float(own["other"]), dict(own["labels"])
            for gallery in (calibration.unified, *calibration.separate.values()):
                _points(gallery)
                _check_answers(gallery.get("answers"))
                _check_sets(gallery.get("sets"))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"the thresholds are damaged ({type(error).__name__}: {error}); measure the model again with: "
                "unimetric evaluate"
            ) from error
        return calibration

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for the database's record."""
        plain = {"unified": dict(self.unified), "separate": {name: dict(part) for name, part in self.separate.items()}}
        return plain if self.classes is None else {**plain, "classes": dict(self.classes)}

    def evidence(self, score: float, dataset: str, label: str) -> float:
        """Return the number that is compared with thresholds: the score, less the offset of the row's class."""
        own = None if self.classes is None else self.classes.get(dataset)
        return score if own is None else score - float(own["labels"].get(label, own["other"]))

    def threshold(self, rate: float, datasets: Sequence[str] | None = None) -> float | None:
        """Return the score from which an answer is a match, at a rate of false matches; None without enough queries.

        A dataset with too few queries for its own threshold uses that of all datasets together, because wrong answers
        in a part of a gallery are no more similar than in the whole gallery. A rate that was not measured is refused.
        """
        for gallery in (self._gallery(datasets), self.unified):
            threshold = _threshold(gallery, rate)
            if threshold is not None:
                return threshold
        return None

    def confidences(self, evidence: Sequence[float], datasets: Sequence[str]) -> list[float | None]:
        """Return for answers of some datasets the estimated shares of right ones, from 0 to 1, among those as similar.

        One search in five is assumed to be for something that is not there: see `unimetric.evaluation.thresholds`. A
        dataset with too few queries for an estimate of its own uses that of all datasets. None without an estimate.
        """
        found: list[float | None] = [None] * len(evidence)
        for dataset in set(datasets):
            curve = self._curves.get(dataset, self._unified_curve)
            if curve is not None:
                places = [place for place, name in enumerate(datasets) if name == dataset]
                values = np.interp([evidence[place] for place in places], *curve).tolist()
                for place, value in zip(places, values, strict=True):
                    found[place] = value
        return found

    @cached_property
    def _unified_curve(self) -> _Curve | None:
        return _curve(self.unified)

    @cached_property
    def _curves(self) -> dict[str, _Curve | None]:
        return {name: _curve(gallery) or self._unified_curve for name, gallery in self.separate.items()}

    def _gallery(self, datasets: Sequence[str] | None) -> Mapping[str, Any]:
        names = sorted(set(datasets or ()))
        return self.separate.get(names[0], self.unified) if len(names) == 1 else self.unified


def read_calibration(path: Path, size: int | None = None) -> Calibration | None:
    """Return the calibration in a ``metrics.json`` for vectors of a size; None if it has none.

    Shorter vectors have other scores. A measurement has the thresholds of its own size, and those of the sizes in its
    table of budgets. A file that cannot be read, or is damaged, is a `UserError`.
    """
    try:
        with explain_os_error(path, "read"):
            metrics = parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}); measure the model again with: unimetric evaluate") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{path} holds no measurement; name a metrics.json or the folder that it is in")
    thresholds = _of_size(metrics, size)
    if thresholds is None:
        return None
    try:
        return Calibration.from_dict(thresholds)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _of_size(metrics: Mapping[str, Any], size: int | None) -> Any:
    model, budgets = metrics.get("model"), metrics.get("budgets")
    measured = model.get("embedding_size") if isinstance(model, dict) else None
    if size is None or measured is None or measured == size:
        return metrics.get("thresholds")
    return budgets["thresholds"].get(str(size)) if isinstance(budgets, dict) and "thresholds" in budgets else None


def _points(gallery: Mapping[str, Any]) -> dict[float, float | None]:
    """The threshold of every wanted rate."""
    return {
        float(point["wanted_false_match_rate"]): None if point["threshold"] is None else float(point["threshold"])
        for point in gallery["operating_points"]
    }


def _curve(gallery: Mapping[str, Any]) -> _Curve | None:
    answers = gallery.get("answers")
    if not answers:
        return None
    return np.asarray(answers["scores"], np.float64), np.asarray(answers["right"], np.float64)


def _check_answers(answers: Mapping[str, Any] | None) -> None:
    if answers is not None:
        scores, right = (np.asarray(answers[name], dtype=np.float64) for name in ("scores", "right"))
        if len(scores) != len(right) or not len(scores) or not np.isfinite([*scores, *right]).all():
            raise ValueError("answers: as many shares as scores, finite, at least one")


def _check_sets(sets: Mapping[str, Any] | None) -> None:
    if sets is not None:
        numbers = [
            int(sets["queries"]),
            int(sets["gallery"]),
            *map(int, sets["ranks"]),
            *map(float, sets["shortfalls"]),
        ]
        if len(sets["ranks"]) != len(sets["shortfalls"]) or not np.isfinite(numbers).all():
            raise ValueError("sets: as many finite shortfalls as ranks")


def _threshold(gallery: Mapping[str, Any], rate: float) -> float | None:
    points = _points(gallery)
    for wanted, threshold in points.items():
        if math.isclose(wanted, rate, rel_tol=1e-9):
            return threshold
    listed = ", ".join(f"{wanted:g}" for wanted in points)
    raise UserError(f"false_match_rate is {rate:g}: this model was calibrated at {listed or 'none'}")
