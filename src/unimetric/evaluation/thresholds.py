"""Match or no match: the similarity from which a search reports that a query is in the catalogue.

A search answers with the nearest gallery item, if its similarity is at least a threshold t, and else with "not in the
catalogue". That is open-set identification, and its errors are those of ISO/IEC 19795-1 and of Grother, Ngan and
Hanaoka, Face Recognition Vendor Test Part 2: Identification, NISTIR 8271. Every query gives up to two scores:

- genuine: its highest similarity to a gallery item of its own class (a mated search);
- impostor: its highest similarity to an item of another class. The search would return this item if the query's class
  were not in the catalogue (a non-mated search).

The rates at a threshold t:

- false matches: the share of impostor scores that are at least t. NIST's false positive identification rate (FPIR): a
  rate per search, not per pair of images, and one that grows with the gallery;
- false non-matches: the share of genuine scores below t. NIST's false negative identification rate (FNIR) for candidate
  lists of any length;
- identified: the share of queries with a positive whose nearest neighbour is of their class and at least as similar as
  t. 1 minus NIST's FNIR at rank 1.

The answer to a query is its nearest gallery item; it is right if it is of the query's class. A logistic regression of
the outcome on the similarity estimates the share of right answers among equally similar ones (Platt, Probabilistic
Outputs for Support Vector Machines, 1999, with his smoothed targets). Each query takes part twice: with its class in
the gallery, and without, when its answer is wrong in any case. `ABSENT_SHARE` weighs the two.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from unimetric.conformal import SetCalibration
from unimetric.errors import UserError
from unimetric.evaluation.opis import Inconsistency
from unimetric.files import as_json

Floats = npt.NDArray[np.float64]

FALSE_MATCH_RATES = (1e-1, 1e-2, 1e-3, 1e-4)
"""The false-match rates for which a report gives thresholds."""
ROC_POINTS = 33
"""Maximum number of points of the curve in a report."""
ABSENT_SHARE = 0.2
"""Assumed share of queries whose class is not in the gallery."""
FEWEST_QUERIES = 30
"""Queries with a positive that an estimate needs at least."""
_ANSWER_POINTS = 17
_INVERSE_RIDGE = 10.0
"""scikit-learn's C for the slope of standardised similarities: of no effect with hundreds of queries."""


@dataclass(frozen=True)
class AnswerCurve:
    """Points of the curve; values between them are interpolated, and those beyond are the outermost ones."""

    scores: tuple[float, ...]
    """Similarities within the observed range, ascending."""
    right: tuple[float, ...]
    """Estimated share of right answers, between 0 and 1, ascending."""


@dataclass(frozen=True)
class OperatingPoint:
    """The lowest threshold that keeps a wanted false-match rate, and the rates at that threshold."""

    wanted_false_match_rate: float
    """The wanted rate, between 0 and 1."""
    impostors_needed: int
    """Impostor scores needed for such a rate: 3 / rate. By the rule of three (ISO/IEC 19795-1), even no false match
    among fewer would not prove the rate with 95 % confidence. With fewer scores, all following fields are None."""
    threshold: float | None
    """Match if the similarity is at least this. It lies half way between two observed scores, so that the last bits of
    a similarity do not matter."""
    false_match_rate: float | None
    """The rate of false matches among the impostor scores at this threshold, from 0 to the wanted rate."""
    false_non_match_rate: float | None
    """The rate of false non-matches, from 0 to 1. None without genuine scores."""
    identified: float | None
    """The share of queries with a positive that get a right answer, from 0 to 1. None without genuine scores."""


@dataclass(frozen=True)
class RocCurve:
    """Receiver operating characteristic: both error rates for thresholds from the lowest to the highest."""

    thresholds: tuple[float, ...]
    """Observed scores, ascending."""
    false_match_rates: tuple[float, ...]
    """Descending, from 0 to 1."""
    false_non_match_rates: tuple[float, ...]
    """Ascending, from 0 to 1."""


@dataclass(frozen=True)
class Calibration:
    """Thresholds for one gallery."""

    genuine: int
    """Genuine scores: queries with a positive."""
    impostors: int
    """Impostor scores: queries with a gallery item of another class."""
    equal_error_rate: float | None
    """The equal error rate, from 0 to 1: the mean of both error rates at the threshold where they are closest. None
    without scores of both kinds."""
    equal_error_threshold: float | None
    """The threshold of the equal error rate."""
    operating_points: tuple[OperatingPoint, ...]
    """One for each wanted rate."""
    roc: RocCurve | None
    """Some points of the curve, its first and its last among them. None without scores of both kinds."""
    answers: AnswerCurve | None = None
    """The share of right answers by similarity; None with too few queries."""
    sets: SetCalibration | None = None
    """Calibration of sets that hold a right answer with a promised probability; None without one."""
    consistency: Inconsistency | None = None
    """How differently one threshold treats the classes; None if it was not measured."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain dicts, lists, floats and ints, ready for `json.dumps`."""
        plain: dict[str, Any] = as_json(self)
        return plain


def calibrate(
    genuine: Floats,
    impostors: Floats,
    hits: Floats,
    rates: Sequence[float] = FALSE_MATCH_RATES,
    points: int = ROC_POINTS,
) -> Calibration:
    """Calibrate the threshold of one gallery, for similarities of any range: cosines, or minus a distance.

    Args:
        genuine: Each query's highest similarity to a gallery item of its class, shape [Q]; NaN where there is none.
        impostors: Its highest similarity to an item of another class, shape [Q]; NaN where there is none.
        hits: 1 where its nearest neighbour is of its class, else 0, shape [Q]; ignored where ``genuine`` is NaN.
        rates: The wanted false-match rates, each between 0 and 1.
        points: Maximum number of points of the curve, at least 2.

    Raises:
        UserError: a rate out of range.

    >>> genuine = np.linspace(0.4, 0.9, 60)
    >>> calibration = calibrate(genuine, genuine - 0.3, hits=np.ones(60), rates=[0.1, 0.01])
    >>> [(point.threshold and round(point.threshold, 3), point.impostors_needed)
    ...     for point in calibration.operating_points]
    [(0.551, 30), (None, 300)]
    """
    for rate in rates:
        if not 0 < rate < 1:
            raise UserError(f"false-match rate: {rate!r}; give a number between 0 and 1, such as 0.01")
    mated = ~np.isnan(genuine)
    right = np.sort(genuine[mated & (hits == 1)])
    scores = _Scores(np.sort(genuine[mated]), np.sort(impostors[~np.isnan(impostors)]), right)
    both = bool(len(scores.genuine) and len(scores.impostors))
    equal_error = scores.equal_error() if both else None
    return Calibration(
        genuine=len(scores.genuine),
        impostors=len(scores.impostors),
        equal_error_rate=equal_error[0] if equal_error else None,
        equal_error_threshold=equal_error[1] if equal_error else None,
        operating_points=tuple(_operating_point(scores, rate) for rate in rates),
        roc=scores.roc(points) if both else None,
        answers=answer_curve(genuine, impostors, hits),
    )


@dataclass(frozen=True)
class _Scores:
    """Scores without NaN, ascending."""

    genuine: Floats
    impostors: Floats
    right: Floats
    """The genuine scores of queries whose nearest neighbour is right."""

    def all(self) -> Floats:
        return np.unique(np.concatenate([self.genuine, self.impostors]))

    def false_matches(self, thresholds: Floats) -> Floats:
        rates: Floats = (len(self.impostors) - np.searchsorted(self.impostors, thresholds)) / len(self.impostors)
        return rates

    def false_non_matches(self, thresholds: Floats) -> Floats:
        rates: Floats = np.searchsorted(self.genuine, thresholds) / len(self.genuine)
        return rates

    def identified(self, threshold: float) -> float:
        return float(len(self.right) - np.searchsorted(self.right, threshold)) / len(self.genuine)

    def equal_error(self) -> tuple[float, float]:
        """Return the rate and the threshold; of equally good thresholds the one with fewer errors, then the lowest."""
        thresholds = self.all()
        # Both rates times both counts are whole numbers, which compare without rounding.
        matches = (len(self.impostors) - np.searchsorted(self.impostors, thresholds)) * len(self.genuine)
        non_matches = np.searchsorted(self.genuine, thresholds) * len(self.impostors)
        best = np.lexsort((thresholds, matches + non_matches, np.abs(matches - non_matches)))[0]
        rate = float(matches[best] + non_matches[best]) / (2 * len(self.genuine) * len(self.impostors))
        return rate, float(thresholds[best])

    def roc(self, points: int) -> RocCurve:
        """Return points spread evenly over both rates, with false matches on a logarithmic scale."""
        thresholds = self.all()
        matches, non_matches = self.false_matches(thresholds), self.false_non_matches(thresholds)
        kept = np.arange(len(thresholds))
        if len(kept) > points:
            half = points // 2
            wanted = np.geomspace(1, 1 / len(self.impostors), half)
            by_matches = np.searchsorted(-matches, -wanted).clip(max=len(kept) - 1)
            by_non_matches = np.searchsorted(non_matches, np.linspace(0, non_matches[-1], points - half))
            by_non_matches[-1] = len(kept) - 1
            kept = np.unique(np.concatenate([by_matches, by_non_matches]))
        return RocCurve(
            tuple(thresholds[kept].tolist()), tuple(matches[kept].tolist()), tuple(non_matches[kept].tolist())
        )


def _operating_point(scores: _Scores, wanted: float) -> OperatingPoint:
    needed = math.ceil(3 / wanted)
    if len(scores.impostors) < needed:
        return OperatingPoint(wanted, needed, None, None, None, None)
    threshold = _lowest_threshold(scores, wanted)
    at = np.array([threshold])
    return OperatingPoint(
        wanted,
        needed,
        threshold,
        float(scores.false_matches(at)[0]),
        float(scores.false_non_matches(at)[0]) if len(scores.genuine) else None,
        scores.identified(threshold) if len(scores.genuine) else None,
    )


def _lowest_threshold(scores: _Scores, wanted: float) -> float:
    """Return a threshold with the rates of the lowest one that keeps the wanted rate of false matches."""
    count = len(scores.impostors)
    # Start one too low and count up by comparing rates, because 0.29 * 100 rounds below 29.
    allowed = max(0, math.floor(wanted * count) - 1)
    while (allowed + 1) / count <= wanted:
        allowed += 1
    barrier = float(scores.impostors[count - 1 - allowed])
    above = [
        float(side[place])
        for side in (scores.genuine, scores.impostors)
        if (place := int(np.searchsorted(side, barrier, side="right"))) < len(side)
    ]
    if not above:
        return math.nextafter(barrier, math.inf)
    middle = (barrier + min(above)) / 2
    return middle if middle > barrier else min(above)


def answer_curve(genuine: Floats, impostors: Floats, hits: Floats) -> AnswerCurve | None:
    """Estimate the share of right answers; None with fewer than `FEWEST_QUERIES` queries with a positive.

    For the arguments see `calibrate`.

    >>> answer_curve(np.linspace(0.4, 0.9, 20), np.full(20, 0.1), np.ones(20)) is None
    True
    """
    mated, compared = ~np.isnan(genuine), ~np.isnan(impostors)
    present, absent = int(mated.sum()), int(compared.sum())
    if present < FEWEST_QUERIES or not absent:
        return None
    right = hits[mated] == 1
    answers = np.where(right, genuine[mated], impostors[mated])
    scores = np.concatenate([answers, impostors[compared]])
    outcomes = np.concatenate([right, np.zeros(absent, bool)])
    weights = np.concatenate([np.full(present, 1 - ABSENT_SHARE), np.full(absent, ABSENT_SHARE * present / absent)])
    points = np.unique(np.quantile(scores, np.linspace(0, 1, _ANSWER_POINTS)))
    return AnswerCurve(tuple(points.tolist()), tuple(_fit(scores, outcomes, weights, points).tolist()))


def _fit(scores: Floats, outcomes: npt.NDArray[np.bool_], weights: Floats, points: Floats) -> Floats:
    """Return the share of right answers at some points."""
    from sklearn.linear_model import LogisticRegression

    right = float(weights[outcomes].sum())
    wrong = float(weights.sum()) - right
    targets = np.where(outcomes, (right + 1) / (right + 2), 1 / (wrong + 2))
    mean = np.average(scores, weights=weights)
    deviation = max(float(np.sqrt(np.average((scores - mean) ** 2, weights=weights))), np.finfo(float).tiny)
    standard = ((scores - mean) / deviation)[:, None]
    # A target between 0 and 1 counts as both outcomes, weighted by its two parts.
    model = LogisticRegression(C=_INVERSE_RIDGE).fit(
        np.concatenate([standard, standard]),
        np.repeat([1, 0], len(scores)),
        np.concatenate([weights * targets, weights * (1 - targets)]),
    )
    if model.coef_[0, 0] <= 0:
        # More similar answers are no better, so the similarity has no effect.
        return np.full(len(points), np.average(targets, weights=weights))
    estimated: Floats = model.predict_proba(((points - mean) / deviation)[:, None])[:, 1]
    return estimated
