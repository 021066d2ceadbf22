"""Mean average precision over the whole ranking.

With R the number of a query's positives and P(i) the share of positives among its i nearest neighbours, the average
precision is 1/R times the sum of P(i) over all ranks i at which a positive stands (Manning, Raghavan and Schütze,
Introduction to Information Retrieval, 2008, section 8.4), from above 0 to 1. Unlike MAP@R it also rewards positives
that come late, and needs the rank of each: the gallery is sorted for every query. That takes some ten times as long as
the matrix products (about 20 ms for a query against 100,000 items on one core), so it is computed on request only.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unimetric.evaluation.metrics import Retrieval
from unimetric.evaluation.rows import Rows
from unimetric.evaluation.tiling import Tiling

TILE_NUMBERS = 2**22
"""Most similarities that are sorted at once."""


def average_precisions(retrieval: Retrieval, tiling: Tiling) -> Tensor:
    """The average precision of every query, over the ranking of all gallery items but itself.

    Of equally similar items the lower gallery row comes first.

    Args:
        retrieval: Q queries, G gallery items; either may be none.
        tiling: Tile sizes and device. Memory is a few times that of a tile of ``queries * gallery``, or of one query
            against the gallery, if that is more.

    Returns:
        Shape [Q], float64; NaN for a query without a positive.
    """
    scores = torch.full((len(retrieval.queries),), torch.nan, dtype=torch.float64)
    positives = retrieval.positives()
    scored = (positives > 0).nonzero()[:, 0]
    gallery = retrieval.gallery
    step = max(1, min(TILE_NUMBERS, tiling.queries * tiling.gallery) // max(1, len(gallery)))
    for start in range(0, len(scored), step):
        rows = scored[start : start + step]
        order = _rankings(retrieval, rows, gallery, tiling).cpu()
        right = retrieval.gallery_classes[order] == retrieval.query_classes[rows, None]
        right &= order != retrieval.own_rows[rows, None]
        precisions = right.cumsum(dim=1) / torch.arange(1, len(gallery) + 1, dtype=torch.float64)
        # A running sum adds from left to right, whatever the number of rows.
        scores[rows] = torch.where(right, precisions, 0.0).cumsum(dim=1)[:, -1] / positives[rows]
    return scores


def _rankings(retrieval: Retrieval, rows: Tensor, gallery: Rows, tiling: Tiling) -> Tensor:
    """Gallery rows from the most to the least similar, the query itself last: shape [rows, G]."""
    queries = retrieval.queries[rows].to(tiling.device, torch.float64)
    tiles = range(0, len(gallery), tiling.gallery)
    similarities = torch.cat(
        [
            retrieval.distance.similarities(queries, gallery[start : start + tiling.gallery].to(tiling.device))
            for start in tiles
        ],
        dim=1,
    )
    own_rows = retrieval.own_rows[rows].to(tiling.device)
    known = (own_rows >= 0).nonzero()[:, 0]
    similarities[known, own_rows[known]] = -torch.inf
    return similarities.argsort(dim=1, descending=True, stable=True)
