"""Exact nearest neighbours, tile by tile.

No matrix of all queries by all gallery items is ever whole in memory: a tile of queries passes over the
gallery tile by tile and keeps a running list of its k best. The similarities are exact (see `cosine` and
`poincare`), so the result depends on neither the tile sizes nor the number of threads nor the device.

Order: the more similar first; of equally similar ones, the lower gallery row first. `torch.topk` promises
nothing about ties, so it only finds the similarities here; ties are settled by row number.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unimetric.errors import UserError
from unimetric.evaluation.cosine import Vectors, check_same_width
from unimetric.evaluation.distances import Distance, make_distance
from unimetric.evaluation.labels import Hashables, as_hashables, own_gallery_rows

QUERY_TILE = 1024
GALLERY_TILE = 4096


def nearest_neighbours(
    queries: Vectors,
    gallery: Vectors,
    k: int,
    *,
    query_ids: Hashables | None = None,
    gallery_ids: Hashables | None = None,
    query_tile: int = QUERY_TILE,
    gallery_tile: int = GALLERY_TILE,
    device: str | torch.device = "cpu",
    distance: str = "cosine",
    curvature: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """The k gallery rows nearest to each query, by cosine or by hyperbolic distance.

    Args:
        queries: Shape [Q, E], floating point; for cosines, the rows need not have unit length, for "poincare" they
            have to lie in the ball of radius ``1 / sqrt(curvature)``.
        gallery: Shape [G, E], floating point.
        k: How many neighbours, at least 1; may exceed G.
        query_ids: Q integers that name the queries' images; -1 or None for an unnamed one. A query never
            finds the gallery row with its own id. Without ids nothing is excluded.
        gallery_ids: G integers likewise, each at most once (-1 and None apart).
        query_tile: Most queries per tile.
        gallery_tile: Gallery rows per tile; 4k, if that is more. Memory beyond input and output is a few
            times ``query_tile * gallery_tile * 8`` bytes whatever Q and G, if k is below that product.
        device: Where to multiply: "cpu", "cuda" or one CUDA device.
        distance: "cosine", or "poincare" for the hyperbolic distance between points of the Poincaré ball.
        curvature: For "poincare", ``c`` of the space of curvature ``-c``.

    Returns:
        Similarities, shape [Q, k], float64, highest first: cosines, from 1 (same direction) to -1 (opposite)
        within 1e-6; for "poincare", minus the distance (see `poincare` for the error). And gallery rows, shape
        [Q, k], int64; both on the CPU. Of equal similarities the lower row comes first. Where a query has
        fewer than k candidates, the rest is (-inf, -1).

    Raises:
        UserError: vectors that have no cosine or lie outside of the ball, an unknown distance, unequal widths,
            ids for one side only or of the wrong length, a gallery id that occurs twice, or an option out of range.

    >>> vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    >>> similarities, rows = nearest_neighbours(vectors, vectors, k=2)
    >>> rows
    tensor([[0, 1],
            [1, 2],
            [1, 2]])
    >>> nearest_neighbours(vectors, vectors, 1, query_ids=[7, 8, 9], gallery_ids=[7, 8, 9])[1]
    tensor([[1],
            [2],
            [1]])
    """
    check_count(k, "k")
    tiling = Tiling(query_tile, gallery_tile, device)
    comparison = make_distance(distance, curvature)
    query_rows = comparison.prepare(queries, "queries")
    gallery_rows = comparison.prepare(gallery, "gallery")
    check_same_width(queries, gallery, "queries", "gallery")
    own_rows = _own_rows(query_ids, gallery_ids, len(query_rows), len(gallery_rows))
    searched = gallery_rows.to(device)

    width = min(k, len(gallery_rows))
    similarities = torch.full((len(query_rows), k), -torch.inf, dtype=torch.float64)
    rows = torch.full((len(query_rows), k), -1, dtype=torch.int64)
    step = tiling.query_rows(width)
    for start in range(0, len(query_rows), step):
        tile = slice(start, start + step)
        best, found = search(query_rows[tile], searched, width, own_rows[tile], tiling.gallery, comparison)
        similarities[tile, :width] = comparison.reported(best.cpu())
        rows[tile, :width] = found.cpu()
    return similarities, rows


@dataclass(frozen=True)
class Tiling:
    """How much is multiplied at once, and where. Changes speed and memory, never a result.

    Raises:
        UserError: a tile below 1, or a device that cannot be used.
    """

    queries: int = QUERY_TILE
    gallery: int = GALLERY_TILE
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        check_count(self.queries, "query_tile")
        check_count(self.gallery, "gallery_tile")
        try:
            kind = torch.device(self.device).type
        except (RuntimeError, TypeError):
            raise UserError(f"device: {self.device!r} is not a device; use 'cpu' or 'cuda'") from None
        if kind not in ("cpu", "cuda"):
            raise UserError(f"device: {self.device!r} has no float64 matrix product; use 'cpu' or 'cuda'")
        if kind == "cuda" and not torch.cuda.is_available():
            raise UserError(f"device: {self.device!r} is not available on this machine; use 'cpu'")

    def query_rows(self, k: int) -> int:
        """Queries per tile, fewer for long lists of neighbours, so that memory stays bounded."""
        return max(1, self.queries * self.gallery // max(4 * k, self.gallery))


def check_count(value: Any, name: str) -> None:
    """Refuse what is not an integer of at least 1.

    Raises:
        UserError: so it is.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
        raise UserError(f"{name}: {value!r}; give a whole number, at least 1")


def search(
    queries: Tensor, gallery: Tensor, k: int, own_rows: Tensor, gallery_tile: int, distance: Distance
) -> tuple[Tensor, Tensor]:
    """Pass one tile of queries over the gallery.

    Args:
        queries: From ``distance.prepare``, Q rows.
        gallery: From ``distance.prepare``, G rows, on the device to multiply on.
        k: Neighbours per query, 1 to G.
        own_rows: The gallery row each query must not find, shape [Q], -1 for none.
        gallery_tile: Gallery rows per tile; 4k, if that is more, lest merging cost more than multiplying.
        distance: What is similar.

    Returns:
        Similarities [Q, k], as ``distance.similarities`` has them, and gallery rows [Q, k], ordered as by
        `nearest_neighbours`, on the gallery's device.
    """
    queries = queries.to(gallery.device, torch.float64)
    own_rows = own_rows.to(gallery.device)
    step = max(gallery_tile, 4 * k)
    for start in range(0, len(gallery), step):
        tile = distance.similarities(queries, gallery[start : start + step])  # (Q, step)
        inside = ((own_rows >= start) & (own_rows < start + step)).nonzero()[:, 0]
        tile[inside, own_rows[inside] - start] = -torch.inf
        if start == 0:
            best, rows = _first_k(tile, k)
        else:
            _merge(best, rows, tile, start)
    rows[best == -torch.inf] = -1
    return best, rows


def _merge(best: Tensor, rows: Tensor, tile: Tensor, start: int) -> None:
    """Update the running lists [Q, k] in place with the tile of the gallery that begins at row ``start``."""
    k = best.shape[1]
    # Late tiles improve few queries, and the maximum costs a fraction of a selection. An equal similarity
    # improves nothing: tiles come in gallery order, so its row is higher than all rows seen.
    improved = (tile.amax(dim=1) > best[:, -1]).nonzero()[:, 0]
    if not len(improved):
        return
    values, columns = _first_k(tile[improved], min(k, tile.shape[1]))
    # Seen rows stand before new ones, so a stable sort keeps the lower row first.
    merged, order = torch.cat([best[improved], values], dim=1).sort(dim=1, descending=True, stable=True)
    best[improved] = merged[:, :k]
    rows[improved] = torch.cat([rows[improved], columns + start], dim=1).gather(1, order[:, :k])


def _first_k(tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row and their columns, largest first, of equals the lower column first."""
    # One more than k, to see whether equals lie on both sides of the border.
    values, columns = tile.topk(min(k + 1, tile.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero()[:, 0]
    values, columns = values[:, :k], columns[:, :k]
    if len(tied):
        # Among equals topk's choice and order are arbitrary.
        lowest = _lowest_columns(tile[tied], values[tied, -1:], k)
        order = tile[tied].gather(1, lowest).sort(dim=1, descending=True, stable=True).indices
        columns[tied] = lowest.gather(1, order)
    return values, columns


def _lowest_columns(tile: Tensor, border: Tensor, k: int) -> Tensor:
    """Columns [Q, k] of all entries above the border [Q, 1] and of the lowest columns that equal it."""
    above = tile > border
    equal = tile == border
    room = k - above.sum(dim=1, keepdim=True)
    taken = above | (equal & (equal.cumsum(dim=1) <= room))
    return taken.nonzero()[:, 1].reshape(len(tile), k)


def _own_rows(query_ids: Hashables | None, gallery_ids: Hashables | None, queries: int, gallery: int) -> Tensor:
    if query_ids is None and gallery_ids is None:
        return torch.full((queries,), -1)
    if query_ids is None or gallery_ids is None:
        missing = "query_ids" if query_ids is None else "gallery_ids"
        raise UserError(f"{missing}: not given, but the other side has ids; give both, or neither")
    return own_gallery_rows(
        [None if i == -1 else i for i in as_hashables(query_ids, "query_ids", queries, "queries")],
        [None if i == -1 else i for i in as_hashables(gallery_ids, "gallery_ids", gallery, "gallery")],
        "gallery_ids",
    )
