"""Sets that hold a right answer with a promised probability: split conformal prediction for retrieval.

A query's answer is a set of classes, each represented by its most similar item. With s(c) the highest similarity of the
query to an item of class c, s* the highest of all, and b the highest that there can be (1 for cosines, 0 for minus a
distance), the shortfall of a class is

    max(s* - s(c), FLOOR_WEIGHT (b - s(c)))

and the set holds the classes whose shortfall is at most a limit t. So an item must be nearly as similar as the best
one, and similar enough in itself; if nothing fits, nothing reaches the second bound, and the set is empty.

The limit comes from n calibration queries, whose classes are in the gallery: it is the ceil((n + 1) level)-th smallest
of the shortfalls of their own classes. If a new query and these n are exchangeable, its set holds an item of its class
with a probability of at least ``level``, and below ``level + 1 / (n + 1)`` without ties (Vovk, Gammerman and Shafer,
Algorithmic Learning in a Random World, 2005; Papadopoulos et al., Inductive Confidence Machines for Regression, ECML
2002; Angelopoulos and Bates, arXiv 2107.07511). The probability is over both the calibration queries and the new one.

With ``delta``, the limit is such that, with a probability of at least 1 - delta over the calibration queries, the
coverage of all further queries is at least ``level`` (Vovk, Conditional Validity of Inductive Conformal Predictors,
ACML 2012, proposition 2a; the tolerance regions of Wilks, 1941).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

FLOOR_WEIGHT = 0.4
"""Weight of the distance to a perfect similarity. It is fixed, because one chosen on the calibration queries would
break their exchangeability with new queries; at 0.4, the sets of the photographs in ``benchmarks/guarantee.py`` are
about as small as without the second bound."""
LEVELS = (0.5, 1.0)
"""The lowest level, and the limit that a level is below."""
_DENSE, _GROWTH = 64, 1.05
"""All ranks up to the first are kept, and beyond it one in every step of this factor."""


@dataclass(frozen=True)
class SetCalibration:
    """The largest shortfalls of the calibration queries of one gallery."""

    queries: int
    """n, the calibration queries: those with a positive."""
    gallery: int
    """Gallery items that they were compared with, and themselves if they are among them."""
    ranks: tuple[int, ...]
    """Ranks from 1, the largest shortfall, up to (n + 1) / 2; dense at first, then at most 5 % apart."""
    shortfalls: tuple[float, ...]
    """The shortfalls of these ranks, descending."""


def shortfall(similarities: Floats, best: Floats | float, perfect: float) -> Floats:
    """Return the shortfall of similarities, at least 0 and of their shape.

    Args:
        similarities: Of items to a query.
        best: The highest of all items to the same query.
        perfect: The highest that there can be.
    """
    values: Floats = np.maximum(best - similarities, FLOOR_WEIGHT * (perfect - similarities))
    return np.maximum(values, 0.0)


def calibrate_sets(genuine: Floats, impostors: Floats, gallery: int, perfect: float) -> SetCalibration:
    """Calibrate the sets of one gallery.

    Args:
        genuine: Each query's highest similarity to an item of its class, shape [Q]; NaN where there is none, and the
            query is skipped.
        impostors: Its highest similarity to an item of another class, shape [Q]; NaN where there is none.
        gallery: Number of items in the gallery.
        perfect: The highest similarity that there can be.

    >>> genuine = np.array([0.9, 0.8, 0.6, np.nan])
    >>> calibrate_sets(genuine, np.array([0.5, 0.9, 0.5, 0.5]), gallery=100, perfect=1.0).queries
    3
    """
    mated = ~np.isnan(genuine)
    own = genuine[mated]
    values = np.sort(shortfall(own, np.fmax(own, impostors[mated]), perfect))[::-1]
    ranks = _kept_ranks((len(values) + 1) // 2)
    return SetCalibration(len(own), gallery, ranks, tuple(values[np.array(ranks, dtype=np.int64) - 1].tolist()))


def set_limit(
    queries: int, ranks: Sequence[int], shortfalls: Sequence[float], level: float, delta: float | None = None
) -> float | None:
    """Return the largest shortfall of a class in a set; None if there are too few queries for this level.

    Args:
        queries: n, the number of calibration queries.
        ranks: As in `SetCalibration`. The next lower rank that is kept is used, which only enlarges the set.
        shortfalls: As in `SetCalibration`.
        level: The promised probability, at least 0.5 and below 1.
        delta: The accepted probability, between 0 and 1, that the calibration queries give sets of a lower coverage;
            None to promise the probability over calibration queries and new query together.

    >>> set_limit(19, [1, 2], [0.7, 0.2], level=0.95), set_limit(18, [1, 2], [0.7, 0.2], level=0.95)
    (0.7, None)
    """
    rank = _rank(queries, level) if delta is None else _rank_with_delta(queries, level, delta)
    place = int(np.searchsorted(np.asarray(ranks), rank, side="right")) - 1
    return None if rank < 1 or place < 0 else float(shortfalls[place])


def queries_needed(level: float, delta: float | None = None) -> int:
    """Return the number of calibration queries that a level takes.

    >>> queries_needed(0.95), queries_needed(0.99), queries_needed(0.95, delta=0.05)
    (19, 99, 59)
    """
    if delta is None:
        return math.ceil(1 / (1 - _exact(level))) - 1
    return math.floor(math.log(delta) / math.log(level)) + 1


def _kept_ranks(most: int) -> tuple[int, ...]:
    ranks = list(range(1, min(most, _DENSE) + 1))
    while ranks and ranks[-1] < most:
        ranks.append(min(most, math.ceil(ranks[-1] * _GROWTH)))
    return tuple(ranks)


def _rank(queries: int, level: float) -> int:
    """Return the rank, from the largest shortfall down, of a marginal promise; 0 for too few queries."""
    return math.floor((1 - _exact(level)) * (queries + 1))


def _rank_with_delta(queries: int, level: float, delta: float) -> int:
    """Return the largest rank r with P(Binomial(queries, 1 - level) < r) <= delta; 0 for too few queries.

    Of r - 1 calibration queries beyond the limit, the missed share of new queries is beta-distributed as an order
    statistic of n uniform numbers, and exceeds 1 - level with the probability of that binomial tail.
    """
    from scipy.stats import binom

    return int(binom.ppf(delta, queries, 1 - level))


def _exact(level: float) -> Fraction:
    """Return a level as it is written: 0.9, not the float that lies a little below."""
    return Fraction(repr(float(level)))
