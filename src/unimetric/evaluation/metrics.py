"""Recall@k, MAP@R and R-Precision of every query, and its nearest right and wrong answers.

MAP@R and R-Precision are defined in Musgrave, Belongie and Lim, A Metric Learning Reality Check, ECCV 2020. With R
the number of a query's positives (gallery items of its class, itself apart) and P(i) the share of positives
among its i nearest neighbours:

- Recall@k: 1 if a positive is among the k nearest, else 0
- R-Precision: P(R)
- MAP@R: 1/R times the sum of P(i) over those i from 1 to R whose i-th neighbour is a positive

Average precision is 1/R times the sum of P(i) over all ranks i that hold a positive (Manning, Raghavan and Schütze,
Introduction to Information Retrieval, 2008, section 8.4), from above 0 to 1. Unlike MAP@R it also rewards positives
beyond rank R, so the whole gallery is sorted for every query. That takes about ten times as long as the matrix
products (about 20 ms for a query against 100,000 items on one core), so it is computed on request only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor

from unimetric.evaluation.distances import Distance, make_distance
from unimetric.evaluation.labels import LabelSets
from unimetric.evaluation.per_query import QueryResults
from unimetric.evaluation.rows import Rows, SelectedRows, Tiling
from unimetric.evaluation.top_k import Gallery, TopK, find


@dataclass(frozen=True)
class Retrieval:
    """Queries, gallery, and the classes and distance that define a right answer."""

    queries: Rows
    """From ``distance.prepare``, Q rows."""
    gallery: Rows
    """From ``distance.prepare``, G rows."""
    query_classes: Tensor
    """Shape [Q], int64. A gallery item of the query's class is a positive."""
    gallery_classes: Tensor
    """Shape [G], int64."""
    self_indices: Tensor
    """The gallery row that is the query itself, shape [Q], int64, -1 for none. It is excluded from the results."""
    distance: Distance = field(default_factory=make_distance)
    """The distance that ranks the gallery."""
    label_sets: LabelSets | None = None
    """The labels of the classes, if images have several; then, a gallery item that shares one is a positive."""

    def are_positives(self, query_rows: Tensor, gallery_rows: Tensor) -> Tensor:
        """Return true, bool [q, n], where a gallery item is a positive of a query or the query itself.

        Query rows [q] and gallery rows [q, n] are int64.
        """
        of_queries, of_items = self.query_classes[query_rows], self.gallery_classes[gallery_rows]
        if self.label_sets is None:
            return of_items == of_queries[:, None]
        return self.label_sets.match(of_queries, of_items)

    def positives(self) -> Tensor:
        """Return the number of positives of every query, itself excluded: shape [Q], int64."""
        if not len(self.queries) or not len(self.gallery):
            return torch.zeros(len(self.queries), dtype=torch.int64)
        classes = 1 + int(max(self.query_classes.max(), self.gallery_classes.max()))
        sizes = self.gallery_classes.bincount(minlength=classes)
        if self.label_sets is not None:
            sizes = _sizes_of_sharing(self.label_sets, sizes, self.query_classes)
        positives = sizes[self.query_classes]
        # Row -1 reads the last item's class; the mask below ignores it.
        everyone = torch.arange(len(self.queries))
        own_class = self.are_positives(everyone, self.self_indices[:, None])[:, 0]
        return positives - ((self.self_indices >= 0) & own_class).long()

    def restrict(self, query_rows: Tensor, gallery_rows: Tensor) -> "Retrieval":
        """Return the retrieval of some queries in some gallery items, both in ascending order, without a copy."""
        # One more entry, so that -1 maps to -1.
        new_row = torch.full((len(self.gallery) + 1,), -1)
        new_row[gallery_rows] = torch.arange(len(gallery_rows))
        return Retrieval(
            queries=SelectedRows(self.queries, query_rows),
            gallery=SelectedRows(self.gallery, gallery_rows),
            query_classes=self.query_classes[query_rows],
            gallery_classes=self.gallery_classes[gallery_rows],
            self_indices=new_row[self.self_indices[query_rows]],
            distance=self.distance,
            label_sets=self.label_sets,
        )

    def similarities(self, pairs: Tensor) -> Tensor:
        """Return the reported similarity of pairs [P, 2] of a query row and a gallery row, shape [P], float64."""
        similarities = torch.empty(len(pairs), dtype=torch.float64)
        for start in range(0, len(pairs), _PAIR_BLOCK):
            queries, gallery = pairs[start : start + _PAIR_BLOCK].T
            part = self.queries[queries].double(), self.gallery[gallery].double()
            similarities[start : start + _PAIR_BLOCK] = self.distance.paired(*part)
        return self.distance.reported(similarities)


def _sizes_of_sharing(sets: LabelSets, sizes: Tensor, query_classes: Tensor) -> Tensor:
    """Return the number of gallery items that share a label with each class of a query, shape of ``sizes``."""
    sharing = torch.zeros_like(sizes)
    for place in torch.unique(query_classes).tolist():
        sharing[place] = sizes[np.unique(sets.sharing(place))].sum()
    return sharing


_PAIR_BLOCK = 2048
"""Pairs of rows that are in memory at once."""


def score_hits(hits: Tensor, positives: Tensor, ks: Sequence[int]) -> dict[str, Tensor]:
    """Return the metrics of queries, given which of their neighbours are positives.

    Args:
        hits: True where the i-th nearest neighbour is a positive, shape [Q, W], bool, on the CPU. W is at
            least every query's R; beyond column W there are no more neighbours, or none that ``ks`` needs.
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
    # A running sum adds from left to right, so trailing zeros change nothing. `sum` groups its terms by W, which
    # depends on the tile.
    scores["map@r"] = precisions.cumsum(dim=1)[:, -1] / positives
    scores["r-precision"] = found[:, -1].double() / positives
    return scores


def judge_both(
    retrieval: Retrieval, datasets: tuple[Tensor, Tensor] | None, ks: Sequence[int], tiling: Tiling
) -> tuple[QueryResults, QueryResults]:
    """Find every query's neighbours in its dataset's part of the gallery and in all of it, and judge them, in one pass.

    Each query gets as many neighbours as its scores need: the largest k, or R + 1 if that is more. One of R + 1 is of
    another class. Where none is a positive, the query is compared with all of its positives directly.

    Args:
        retrieval: Q queries, G gallery items; either may be none. A positive is of the query's dataset.
        datasets: The numbers, int64 from 0, of each query's dataset [Q] and of each gallery item's [G]; without them,
            every query searches the whole gallery and both results are the same.
        ks: The k of each Recall@k, at least 1 each. One larger than the gallery takes all of it.
        tiling: Tile sizes, device and memory.

    Returns:
        The results by the separate and the unified protocol.
    """
    positives = retrieval.positives()
    unified = _no_results(len(retrieval.queries), ks)
    separate = unified if datasets is None else _no_results(len(retrieval.queries), ks)
    gallery = Gallery.of(retrieval.gallery, retrieval.distance, None if datasets is None else datasets[1])
    codes = torch.zeros_like(positives) if datasets is None else datasets[0]
    for rows, width in _blocks(retrieval, positives, codes, max(ks), tiling):
        asked = None if datasets is None else codes[rows]
        found = find(retrieval.queries[rows], retrieval.self_indices[rows], asked, gallery, width, tiling)
        _judge(retrieval, rows, positives[rows], found.unified, ks, unified)
        if datasets is not None:
            _judge(retrieval, rows, positives[rows], found.separate, ks, separate)
    # All positives are of the query's dataset, so the best positive is the same under both protocols.
    best_positive = torch.from_numpy(separate.best_positive)
    missed = ((positives > 0) & best_positive.isnan()).nonzero()[:, 0]
    best_positive[missed] = _best_positives(retrieval, missed, tiling)
    reported = retrieval.distance.reported
    best = reported(best_positive).numpy()
    inside, anywhere = (reported(torch.from_numpy(results.best_negative)).numpy() for results in (separate, unified))
    return (
        replace(separate, best_positive=best, best_negative=inside),
        replace(unified, best_positive=best.copy(), best_negative=anywhere),
    )


def _no_results(queries: int, ks: Sequence[int]) -> QueryResults:
    """Return the results of queries that were not scored."""
    names = [*(f"recall@{k}" for k in ks), "map@r", "r-precision"]
    *scores, positive, negative = np.full((len(names) + 2, queries), np.nan)
    return QueryResults(dict(zip(names, scores, strict=True)), np.full(queries, -1), positive, negative)


def _judge(
    retrieval: Retrieval, rows: Tensor, positives: Tensor, found: TopK, ks: Sequence[int], results: QueryResults
) -> None:
    """Record the results of some queries, with similarities that are still to be reported."""
    there = found.rows >= 0
    right = retrieval.are_positives(rows, found.rows) & there
    # NumPy would take a tensor with one entry for a number.
    places = rows.numpy()
    results.nearest[places] = found.rows[:, 0]
    results.best_positive[places] = _first(found.values, right)
    results.best_negative[places] = _first(found.values, ~right & there)
    # A query without a positive has no value; R = 1 only avoids a division by zero.
    for name, score in score_hits(right, positives.clamp(min=1), ks).items():
        results.scores[name][places] = torch.where(positives > 0, score, torch.nan)


def _first(similarities: Tensor, wanted: Tensor) -> Tensor:
    """Return the first wanted entry of every row of [Q, W]; NaN for none."""
    column = wanted.int().argmax(dim=1, keepdim=True)
    first = similarities.gather(1, column).squeeze(1)
    return torch.where(wanted.any(dim=1), first, torch.nan)


def _best_positives(retrieval: Retrieval, rows: Tensor, tiling: Tiling) -> Tensor:
    """Return the highest similarity to a positive of some queries that have one: shape of ``rows``."""
    best = torch.full((len(rows),), -torch.inf, dtype=torch.float64)
    if not len(rows):
        return best
    sets, classes = retrieval.label_sets, retrieval.query_classes[rows]
    sizes = retrieval.gallery_classes.bincount(minlength=1 + int(retrieval.query_classes.max()))
    members = torch.split(retrieval.gallery_classes.argsort(stable=True), sizes.tolist())
    # Class by class, since the queries of a class have the same positives.
    for of_class in torch.split(classes.argsort(stable=True), classes.bincount().tolist()):
        if not len(of_class):
            continue
        number = int(classes[of_class[0]])
        items = members[number] if sets is None else torch.cat([members[n] for n in np.unique(sets.sharing(number))])
        for asked in torch.split(of_class, tiling.queries):
            queries = retrieval.queries[rows[asked]].to(tiling.device, torch.float64)
            own = retrieval.self_indices[rows[asked], None]
            for part in torch.split(items, tiling.gallery):
                found = retrieval.distance.similarities(queries, retrieval.gallery[part].to(tiling.device)).cpu()
                found[part == own] = -torch.inf
                best[asked] = torch.maximum(best[asked], found.amax(dim=1))
    return best


def _blocks(
    retrieval: Retrieval, positives: Tensor, datasets: Tensor, deepest: int, tiling: Tiling
) -> Iterator[tuple[Tensor, int]]:
    """Yield blocks of query rows that fit in memory, and the number of neighbours that each block needs.

    A query gets less than twice as many neighbours as it needs. Within a block, datasets ascend.
    """
    if not len(retrieval.gallery) or not len(retrieval.queries):
        return
    needs = (positives + 1).clamp(min=deepest).clamp(max=len(retrieval.gallery))
    # Powers of 2 times the least.
    scale = torch.frexp(needs.double() / int(needs.min())).exponent.long()
    order = (scale * (1 + datasets.max()) + datasets).argsort(stable=True)
    for rows in torch.split(order, scale.bincount().tolist()):
        width = int(needs[rows].max()) if len(rows) else 1
        for block in torch.split(rows, tiling.block_rows(retrieval.queries, width)):
            if len(block):
                yield block, int(needs[block].max())


TILE_NUMBERS = 2**22
"""Maximum number of similarities that are sorted at once."""


def average_precisions(retrieval: Retrieval, tiling: Tiling) -> Tensor:
    """Return the average precision of every query, [Q] float64, over the ranking of all gallery items but itself.

    Among equally similar items the lower gallery row comes first. A query without a positive has NaN. Memory is a few
    times that of a tile of ``queries * gallery``, or of one query against the gallery, whichever is more.
    """
    scores = torch.full((len(retrieval.queries),), torch.nan, dtype=torch.float64)
    positives = retrieval.positives()
    scored = (positives > 0).nonzero()[:, 0]
    gallery = retrieval.gallery
    step = max(1, min(TILE_NUMBERS, tiling.queries * tiling.gallery) // max(1, len(gallery)))
    for start in range(0, len(scored), step):
        rows = scored[start : start + step]
        order = _rankings(retrieval, rows, gallery, tiling).cpu()
        right = retrieval.are_positives(rows, order)
        right &= order != retrieval.self_indices[rows, None]
        precisions = right.cumsum(dim=1) / torch.arange(1, len(gallery) + 1, dtype=torch.float64)
        # A running sum adds from left to right, whatever the number of rows.
        scores[rows] = torch.where(right, precisions, 0.0).cumsum(dim=1)[:, -1] / positives[rows]
    return scores


def _rankings(retrieval: Retrieval, rows: Tensor, gallery: Rows, tiling: Tiling) -> Tensor:
    """Return gallery rows from the most to the least similar, the query itself last: shape [rows, G]."""
    queries = retrieval.queries[rows].to(tiling.device, torch.float64)
    tiles = range(0, len(gallery), tiling.gallery)
    similarities = torch.cat(
        [
            retrieval.distance.similarities(queries, gallery[start : start + tiling.gallery].to(tiling.device))
            for start in tiles
        ],
        dim=1,
    )
    self_indices = retrieval.self_indices[rows].to(tiling.device)
    known = (self_indices >= 0).nonzero()[:, 0]
    similarities[known, self_indices[known]] = -torch.inf
    return similarities.argsort(dim=1, descending=True, stable=True)
