"""Recall@k, MAP@R and R-Precision of every query, and its nearest right and wrong answers.

MAP@R and R-Precision are defined in Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020. With R
the number of a query's positives (gallery items of its class, itself apart) and P(i) the share of positives
among its i nearest neighbours:

- Recall@k: 1 if a positive is among the k nearest, else 0
- R-Precision: P(R)
- MAP@R: 1/R times the sum of P(i) over those i from 1 to R whose i-th neighbour is a positive
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unimetric.evaluation.distances import Distance, make_distance
from unimetric.evaluation.neighbours import Tiling, search


@dataclass(frozen=True)
class Retrieval:
    """Who searches among whom, and what counts as right."""

    queries: Tensor
    """From ``distance.prepare``, Q rows."""
    gallery: Tensor
    """From ``distance.prepare``, G rows."""
    query_classes: Tensor
    """Shape [Q], int64. A gallery item of the query's class is a positive."""
    gallery_classes: Tensor
    """Shape [G], int64."""
    own_rows: Tensor
    """The gallery row that is the query itself, shape [Q], int64, -1 for none. It is never found."""
    distance: Distance = field(default_factory=make_distance)
    """What is near."""

    def positives(self) -> Tensor:
        """How many positives every query has, itself apart: shape [Q], int64."""
        if not len(self.queries) or not len(self.gallery):
            return torch.zeros(len(self.queries), dtype=torch.int64)
        classes = 1 + int(max(self.query_classes.max(), self.gallery_classes.max()))
        positives = self.gallery_classes.bincount(minlength=classes)[self.query_classes]
        # Row -1 reads the last item's class, but counts for nothing.
        own_class = self.gallery_classes[self.own_rows] == self.query_classes
        return positives - ((self.own_rows >= 0) & own_class).long()

    def restrict(self, query_rows: Tensor, gallery_rows: Tensor) -> Retrieval:
        """The same retrieval among some queries and some gallery items, both in ascending order."""
        # One more place, for -1 to stay -1.
        new_row = torch.full((len(self.gallery) + 1,), -1)
        new_row[gallery_rows] = torch.arange(len(gallery_rows))
        return Retrieval(
            queries=self.queries[query_rows],
            gallery=self.gallery[gallery_rows],
            query_classes=self.query_classes[query_rows],
            gallery_classes=self.gallery_classes[gallery_rows],
            own_rows=new_row[self.own_rows[query_rows]],
            distance=self.distance,
        )


def score_hits(hits: Tensor, positives: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """The metrics of queries whose neighbours have been judged.

    Args:
        hits: Whether the i-th nearest neighbour is a positive, shape [Q, W], bool, on the CPU. W is at
            least every query's R; beyond column W there are no more neighbours, or none that ``ks`` asks for.
        positives: R, shape [Q], int64, at least 1.
        ks: The k of each Recall@k.

    Returns:
        "recall@k" for each k, "map@r" and "r-precision": shape [Q], float64, from 0 to 1.

    >>> hits = torch.tensor([[False, True, True]])
    >>> scores = score_hits(hits, torch.tensor([2]), ks=[1, 2])
    >>> {name: score.item() for name, score in scores.items()}
    {'recall@1': 0.0, 'recall@2': 1.0, 'map@r': 0.25, 'r-precision': 0.5}
    """
    ranks = torch.arange(1, hits.shape[1] + 1)
    relevant = hits & (ranks <= positives[:, None])  # (Q, W)
    found = relevant.cumsum(dim=1)
    precisions = torch.where(relevant, found.double() / ranks, 0.0)
    scores = {f"recall@{k}": hits[:, :k].any(dim=1).double() for k in ks}
    # A running sum adds from left to right, so trailing zeros change nothing: a plain sum groups its terms
    # by W, which depends on the tile.
    scores["map@r"] = precisions.cumsum(dim=1)[:, -1] / positives
    scores["r-precision"] = found[:, -1].double() / positives
    return scores


@dataclass(frozen=True)
class Judgement:
    """What every query found: its scores, and the similarities that tell a right answer from a wrong one."""

    scores: dict[str, Tensor]
    """"recall@k" for each k, "map@r" and "r-precision": shape [Q], float64, from 0 to 1; NaN for a query without a
    positive, which can never be right."""
    nearest: Tensor
    """The gallery row of the nearest neighbour, shape [Q], int64; -1 where there is none but the query itself."""
    best_positive: Tensor
    """The highest similarity to a positive, shape [Q], float64, as ``distance.similarities`` has it; NaN for none."""
    best_negative: Tensor
    """The highest similarity to an item of another class, likewise."""


def judge_queries(retrieval: Retrieval, ks: Sequence[int], tiling: Tiling) -> Judgement:
    """Find every query's neighbours and judge them.

    Each query gets as many neighbours as that needs: the largest k, or R + 1 if that is more. One of R + 1 is of
    another class. Where none is a positive, the nearest positive is looked for among the items of the class.

    Args:
        retrieval: Q queries, G gallery items; either may be none.
        ks: The k of each Recall@k, at least 1 each. One larger than the gallery takes all of it.
        tiling: Tile sizes and device. A tile's lists of neighbours stay within its size, too.
    """
    count = len(retrieval.queries)
    names = [*(f"recall@{k}" for k in ks), "map@r", "r-precision"]
    scores = {name: torch.full((count,), torch.nan, dtype=torch.float64) for name in names}
    best_positive, best_negative = torch.full((2, count), torch.nan, dtype=torch.float64)
    nearest = torch.full((count,), -1)
    positives = retrieval.positives()
    gallery = retrieval.gallery.to(tiling.device)
    for rows, width in _tiles(positives, max(ks), len(gallery), tiling):
        own_rows = retrieval.own_rows[rows]
        best, found = search(retrieval.queries[rows], gallery, width, own_rows, tiling.gallery, retrieval.distance)
        best, found = best.cpu(), found.cpu()
        right = (retrieval.gallery_classes[found] == retrieval.query_classes[rows, None]) & (found >= 0)
        nearest[rows] = found[:, 0]
        best_positive[rows] = _first(best, right)
        best_negative[rows] = _first(best, ~right & (found >= 0))
        # A query without a positive has no value: R of 1 only keeps the division whole.
        judged = score_hits(right, positives[rows].clamp(min=1), ks)
        for name, score in judged.items():
            scores[name][rows] = torch.where(positives[rows] > 0, score, torch.nan)
    missed = ((positives > 0) & best_positive.isnan()).nonzero()[:, 0]
    if len(missed):
        best_positive[missed] = _best_of_class(retrieval, missed, gallery, tiling)
    return Judgement(scores, nearest, best_positive, best_negative)


def _first(similarities: Tensor, wanted: Tensor) -> Tensor:
    """The first wanted entry of every row of [Q, W]; NaN for none."""
    column = wanted.int().argmax(dim=1, keepdim=True)
    first = similarities.gather(1, column).squeeze(1)
    return torch.where(wanted.any(dim=1), first, torch.nan)


def _best_of_class(retrieval: Retrieval, rows: Tensor, gallery: Tensor, tiling: Tiling) -> Tensor:
    """The highest similarity of some queries, each with a positive, to a positive: class by class."""
    classes = 1 + int(retrieval.gallery_classes.max())
    by_class = retrieval.gallery_classes.argsort(stable=True)
    ends = retrieval.gallery_classes.bincount(minlength=classes).cumsum(0).tolist()
    best = torch.empty(len(rows), dtype=torch.float64)
    order = retrieval.query_classes[rows].argsort(stable=True)
    asked = retrieval.query_classes[rows[order]].bincount().tolist()
    start = 0
    for number, stop in enumerate(itertools.accumulate(asked)):
        members = by_class[ends[number - 1] if number else 0 : ends[number]]
        for first in range(start, stop, tiling.queries):
            part = order[first : min(stop, first + tiling.queries)]
            own = retrieval.own_rows[rows[part]]
            place = torch.searchsorted(members, own).clamp(max=len(members) - 1)
            own = torch.where(members[place] == own, place, -1)
            queries = retrieval.queries[rows[part]]
            similarity, _ = search(
                queries, gallery[members.to(gallery.device)], 1, own, tiling.gallery, retrieval.distance
            )
            best[part] = similarity[:, 0].cpu()
        start = stop
    return best


def score_queries(retrieval: Retrieval, ks: Sequence[int], tiling: Tiling) -> dict[str, Tensor]:
    """Find every query's neighbours and score them: the scores of `judge_queries`.

    Args:
        retrieval: Q queries, G gallery items; either may be none.
        ks: The k of each Recall@k, at least 1 each. One larger than the gallery takes all of it.
        tiling: Tile sizes and device. A tile's lists of neighbours stay within its size, too.

    Returns:
        "recall@k" for each k, "map@r" and "r-precision": shape [Q], float64, from 0 to 1; NaN for a query
        without a positive, which can never be right.
    """
    return judge_queries(retrieval, ks, tiling).scores


def _tiles(positives: Tensor, deepest: int, gallery: int, tiling: Tiling) -> Iterator[tuple[Tensor, int]]:
    """Rows of the queries, tile by tile, and how many neighbours that tile needs.

    No query gets twice as many neighbours as it needs, or more, because of another query in its tile.
    """
    if not gallery:
        return
    needs, rows = (positives + 1).clamp(min=deepest).clamp(max=gallery).sort(stable=True)
    start = 0
    while start < len(rows):
        limit = 2 * int(needs[start])
        alike = int(torch.searchsorted(needs, limit))
        stop = min(alike, start + tiling.query_rows(min(limit, gallery)))
        yield rows[start:stop], int(needs[stop - 1])
        start = stop
