"""Measure which answers better: the old model, or the new one over vectors of which most are moved by a map.

The queries are rows that both models embedded. A row is never moved by a map that was fitted on the query's fold, so
that the map has not seen the query.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimetric.search.scoring import Vectors, unit
from unimetric.search.upgrade.maps import FOLDS, Fit

FEWEST_QUERIES = 30
"""With fewer queries that have another row of their class, nothing is decided by them."""
GALLERIES = ("mixed", "sample_new", "sample_moved")
WEIGHTS = tuple(number / 10 for number in range(11))
"""Weights of the new model's cosines, where both models answer."""
UNMEASURED = 0.5
"""The weight where nothing can be measured."""


@dataclass(frozen=True)
class Gallery:
    """A sample of a database's rows.

    Attributes:
        old: Their vectors by the old model, float32 [G, D].
        classes: Dataset and label; None for rows without a label, which are no query's class.
        new: Vectors by the new model of the first P rows, float32 [P, E].
    """

    old: Vectors
    classes: Sequence[tuple[str, str] | None]
    new: Vectors

    def numbers(self) -> NDArray[np.int64]:
        """Return a number for every class, [G]; -1 without a label."""
        known = {name: number for number, name in enumerate(dict.fromkeys(self.classes)) if name is not None}
        return np.array([-1 if name is None else known[name] for name in self.classes], np.int64)


@dataclass(frozen=True)
class Answers:
    """The best answers of the Q queries that have another row of their class.

    The highest cosines with a row of the query's class, [Q], and with a row of another one, [Q].
    """

    genuine: NDArray[np.float32]
    impostors: NDArray[np.float32]

    @property
    def recall(self) -> float:
        """Recall@1, from 0 to 1."""
        return float(np.mean(self.genuine > self.impostors)) if len(self.genuine) else 0.0


@dataclass(frozen=True)
class MixedAnswers:
    """Answers of both models, scored by a weighted average of both cosines.

    Attributes:
        weight: The weight of the new model's cosines, from 0 to 1.
        mixed: Answers as the database would give them now.
        sample_new: Answers among the rows that the new model has embedded.
        sample_moved: The same, with those rows moved by the map instead.
    """

    weight: float
    mixed: Answers
    sample_new: Answers
    sample_moved: Answers


@dataclass(frozen=True)
class Comparison(MixedAnswers):
    """Answers to the same queries by the new model alone, over old vectors that were moved, and in two other ways.

    Attributes:
        old: By the old model alone.
        both: By both together; None if that was not asked for.
    """

    old: Answers
    both: MixedAnswers | None

    @property
    def is_measured(self) -> bool:
        """True if there are enough labelled rows."""
        return len(self.old.genuine) >= FEWEST_QUERIES

    @property
    def new_is_better(self) -> bool:
        """True if the new model answers at least as well; also where nothing could be measured."""
        return not self.is_measured or self.mixed.recall >= self.old.recall


def compare(gallery: Gallery, fit: Fit, *, both: bool = False) -> Comparison:
    """Search a sample of the database for its own rows, in the old way and in the new one.

    ``fit`` fits the map on old and new vectors; with ``both``, both models search too, and their weights are chosen.
    """
    numbers = gallery.numbers()
    pairs = len(gallery.new)
    old, new = unit(gallery.old), unit(gallery.new)
    counts = np.bincount(numbers[numbers >= 0], minlength=1)
    queries = np.flatnonzero((numbers[:pairs] >= 0) & (counts[np.maximum(numbers[:pairs], 0)] > 1))
    # By the kind of the searched vectors, and the weight of the new model.
    parts: dict[tuple[str, float], list[Answers]] = {}
    weights = WEIGHTS if both else (0.0, 1.0)
    for fold in range(FOLDS):
        asked = queries[queries % FOLDS == fold]
        used = np.flatnonzero(np.arange(pairs) % FOLDS != fold)
        if not len(asked) or not len(used):
            continue
        moved = fit(old[used], new[used])(old)
        # Rows of the map's own fold are the only ones that it has not seen.
        unseen = np.flatnonzero(np.arange(pairs) % FOLDS == fold)
        everything, places = np.arange(len(old)), np.searchsorted(unseen, asked)
        for name, rows, vectors, own in (
            ("mixed", everything, np.concatenate([new, moved[pairs:]]), asked),
            ("sample_new", unseen, new[unseen], places),
            ("sample_moved", unseen, moved[unseen], places),
        ):
            cosines = old[asked] @ old[rows].T, new[asked] @ vectors.T
            for weight in weights:
                scores = (1 - weight) * cosines[0] + weight * cosines[1]
                parts.setdefault((name, weight), []).append(_answers(scores, own, numbers[rows], numbers[asked]))
    joined = {(name, weight): _joined(parts.get((name, weight), [])) for name in GALLERIES for weight in weights}
    new_alone = {name: joined[name, 1.0] for name in GALLERIES}
    return Comparison(1.0, **new_alone, old=joined["mixed", 0.0], both=_best(joined) if both else None)


def _best(joined: Mapping[tuple[str, float], Answers]) -> MixedAnswers:
    """Return the answers with the weight of the highest Recall@1, which is smoothed over the weights beside it."""
    weight = UNMEASURED
    if len(joined["mixed", 0.0].genuine) >= FEWEST_QUERIES:
        recalls = np.pad([joined["mixed", weight].recall for weight in WEIGHTS], 1, mode="edge")
        weight = WEIGHTS[int(np.argmax(recalls[:-2] + 2 * recalls[1:-1] + recalls[2:]))]
    return MixedAnswers(weight, **{name: joined[name, weight] for name in GALLERIES})


def _answers(
    scores: NDArray[np.float32], own: NDArray[np.int64], classes: NDArray[np.int64], wanted: NDArray[np.int64]
) -> Answers:
    """Return the best answers among the rows but each query's own, whose score is overwritten."""
    scores[np.arange(len(scores)), own] = -np.inf
    same = classes[None, :] == wanted[:, None]
    return Answers(np.where(same, scores, -np.inf).max(axis=1), np.where(same, -np.inf, scores).max(axis=1))


def _joined(parts: list[Answers]) -> Answers:
    empty = np.empty(0, np.float32)
    return Answers(
        np.concatenate([empty, *(part.genuine for part in parts)]),
        np.concatenate([empty, *(part.impostors for part in parts)]),
    )
