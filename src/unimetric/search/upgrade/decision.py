"""Measure which answers better: the old model, or the new one over vectors of which most are moved by a map.

The queries are rows that both models embedded. A row is never moved by a map that was fitted on the query's fold, so
that the map has not seen the query.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from unimetric.search.upgrade.maps import FOLDS, Fit, Vectors, unit

FEWEST_QUERIES = 30
"""With fewer queries that have another row of their class, nothing is decided by them."""


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
    """The best answers of the queries that have another row of their class.

    Attributes:
        genuine: The highest cosine with a row of the query's class, [Q].
        impostors: The highest with a row of another class, [Q].
    """

    genuine: NDArray[np.float32]
    impostors: NDArray[np.float32]

    @property
    def recall(self) -> float:
        """Recall@1, from 0 to 1."""
        return float(np.mean(self.genuine > self.impostors)) if len(self.genuine) else 0.0


@dataclass(frozen=True)
class Comparison:
    """Answers to the same queries by the old model, and by the new one over old vectors that were moved.

    Attributes:
        old: By the old model.
        mixed: By the new model, as the database would answer now.
        sample_new: By the new model among the rows it has embedded.
        sample_moved: The same, with those rows moved by the map instead.
    """

    old: Answers
    mixed: Answers
    sample_new: Answers
    sample_moved: Answers

    @property
    def is_measured(self) -> bool:
        """True if there are enough labelled rows."""
        return len(self.old.genuine) >= FEWEST_QUERIES

    @property
    def new_is_better(self) -> bool:
        """True if the new model answers at least as well; also where nothing could be measured."""
        return not self.is_measured or self.mixed.recall >= self.old.recall


def compare(gallery: Gallery, fit: Fit) -> Comparison:
    """Search a sample of the database for its own rows, in the old way and in the new one.

    Args:
        gallery: The sample.
        fit: Fits the map on old and new vectors.
    """
    numbers = gallery.numbers()
    pairs = len(gallery.new)
    old, new = unit(gallery.old), unit(gallery.new)
    counts = np.bincount(numbers[numbers >= 0], minlength=1)
    queries = np.flatnonzero((numbers[:pairs] >= 0) & (counts[np.maximum(numbers[:pairs], 0)] > 1))
    parts: dict[str, list[Answers]] = {"old": [], "mixed": [], "sample_new": [], "sample_moved": []}
    for fold in range(FOLDS):
        asked = queries[queries % FOLDS == fold]
        used = np.flatnonzero(np.arange(pairs) % FOLDS != fold)
        if not len(asked) or not len(used):
            continue
        moved = fit(old[used], new[used])(old)
        mixed = np.concatenate([new, moved[pairs:]])
        # Rows of the map's own fold are the only ones that it has not seen.
        unseen = np.flatnonzero(np.arange(pairs) % FOLDS == fold)
        parts["old"].append(_answers(old[asked], old, asked, numbers, numbers[asked]))
        parts["mixed"].append(_answers(new[asked], mixed, asked, numbers, numbers[asked]))
        places = np.searchsorted(unseen, asked)
        for name, rows in (("sample_new", new[unseen]), ("sample_moved", moved[unseen])):
            parts[name].append(_answers(new[asked], rows, places, numbers[unseen], numbers[asked]))
    return Comparison(**{name: _joined(answers) for name, answers in parts.items()})


def _answers(
    queries: Vectors,
    rows: Vectors,
    own: NDArray[np.int64],
    classes: NDArray[np.int64],
    wanted: NDArray[np.int64],
) -> Answers:
    """Return the best answers among the rows but each query's own."""
    cosines = queries @ rows.T
    cosines[np.arange(len(queries)), own] = -np.inf
    same = classes[None, :] == wanted[:, None]
    return Answers(np.where(same, cosines, -np.inf).max(axis=1), np.where(same, -np.inf, cosines).max(axis=1))


def _joined(parts: list[Answers]) -> Answers:
    empty = np.empty(0, np.float32)
    return Answers(
        np.concatenate([empty, *(part.genuine for part in parts)]),
        np.concatenate([empty, *(part.impostors for part in parts)]),
    )
