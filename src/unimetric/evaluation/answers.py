"""The share of answers that are right, by their similarity.

The answer to a query is its nearest gallery item; it is right if it is of the query's class. A logistic regression of
the outcome on the similarity estimates the share of right answers among equally similar ones (Platt, Probabilistic
Outputs for Support Vector Machines, 1999, with his smoothed targets). Each query takes part twice: with its class in
the gallery, and without, when its answer is wrong in any case. `ABSENT_SHARE` weighs the two.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ABSENT_SHARE = 0.2
"""Assumed share of queries whose class is not in the gallery."""
FEWEST_QUERIES = 30
"""Queries with a positive that an estimate needs at least."""
_POINTS = 17
_INVERSE_RIDGE = 10.0
"""scikit-learn's C for the slope of standardised similarities: of no effect with hundreds of queries."""


@dataclass(frozen=True)
class AnswerCurve:
    """Points of the curve; values between them are interpolated, and those beyond are the outermost ones."""

    scores: tuple[float, ...]
    """Similarities within the observed range, ascending."""
    right: tuple[float, ...]
    """Estimated share of right answers, between 0 and 1, ascending."""


def answer_curve(genuine: Floats, impostors: Floats, hits: Floats) -> AnswerCurve | None:
    """Estimate the share of right answers; None with fewer than `FEWEST_QUERIES` queries with a positive.

    Args:
        genuine: Each query's highest similarity to a gallery item of its class, shape [Q]; NaN where there is none.
        impostors: Its highest similarity to an item of another class, shape [Q]; NaN where there is none.
        hits: 1 where its nearest neighbour is of its class, else 0, shape [Q]; ignored where ``genuine`` is NaN.

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
    points = np.unique(np.quantile(scores, np.linspace(0, 1, _POINTS)))
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
    # A target between 0 and 1 is two outcomes with its parts as weights.
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
