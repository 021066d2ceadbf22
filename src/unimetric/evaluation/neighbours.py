"""Exact nearest neighbours, tile by tile.

The full matrix of all queries by all gallery items is never in memory: a tile of queries passes over the gallery tile
by tile and keeps a running list of its k best. Float32 products select candidates, and exact float64 arithmetic ranks
them (see `screen`; `distances` and `poincare` explain why the arithmetic is exact). Queries that float32 cannot decide,
because of many copies for instance, are compared with all items in float64. The result therefore does not depend on
the tile sizes, the number of threads or the device.

The more similar item comes first; among equally similar ones, the lower gallery row. `torch.topk` promises nothing
about ties, so it is only used to find the similarities; ties are broken by row number.

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

import torch
from torch import Tensor

from unimetric.errors import UserError
from unimetric.evaluation.distances import Distance, make_distance
from unimetric.evaluation.labels import Hashables, as_hashables, self_indices_of
from unimetric.evaluation.rows import GALLERY_TILE, MEMORY, QUERY_TILE, Rows, Tiling, check_count, hold_or_stream
from unimetric.evaluation.top_k import Gallery, find
from unimetric.evaluation.vectors import Vectors


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
    memory: int = MEMORY,
) -> tuple[Tensor, Tensor]:
    """Find the k gallery rows nearest to each query, by cosine, Euclidean or hyperbolic distance.

    Args:
        queries: Shape [Q, E], floating point. For cosines, the rows need not have unit length; for "poincare", they
            must lie in the ball of radius ``1 / sqrt(curvature)``. A memory-mapped array is never read whole.
        gallery: Shape [G, E], floating point, likewise.
        k: Number of neighbours, at least 1; may exceed G.
        query_ids: Q integer ids of the queries' images; -1 or None for no id. A query's results exclude the
            gallery row with its own id. Without ids nothing is excluded.
        gallery_ids: G integer ids likewise, each at most once (except -1 and None).
        query_tile: Maximum number of queries per tile.
        gallery_tile: Gallery rows per tile; 4k, if that is more. Memory beyond input, output and ``memory`` is a few
            times ``query_tile * gallery_tile * 8`` bytes, whatever Q and G, as long as k is below that product.
        device: Device of the matrix products: "cpu", "cuda" or one CUDA device.
        distance: "cosine", "euclidean", or "poincare" for the hyperbolic distance between points of the Poincaré ball.
        curvature: For "poincare", ``c`` of the space of curvature ``-c``.
        memory: Bytes for prepared float32 vectors and lists of neighbours. Vectors that do not fit are read again,
            part by part, for every part of the queries.

    Returns:
        Similarities, shape [Q, k], float64, highest first: cosines, from 1 (same direction) to -1 (opposite)
        within 1e-6, or minus the distance (see `distances` and `poincare` for the error). Gallery rows, shape
        [Q, k], int64. Both are on the CPU. Among equal similarities the lower row comes first. Where a query has
        fewer than k candidates, the rest is (-inf, -1).

    Raises:
        UserError: vectors that have no cosine or lie outside the ball, an unknown distance, unequal widths,
            ids for one side only or of the wrong length, a gallery id that occurs twice, or an option out of range.
    """
    check_count(k, "k")
    tiling = Tiling(query_tile, gallery_tile, device, memory)
    query_rows, gallery_rows, compare = compared(queries, gallery, ("queries", "gallery"), distance, curvature, memory)
    self_indices = _self_indices(query_ids, gallery_ids, len(query_rows), len(gallery_rows))
    width = min(k, len(gallery_rows))
    similarities = torch.full((len(query_rows), k), -torch.inf, dtype=torch.float64)
    rows = torch.full((len(query_rows), k), -1, dtype=torch.int64)
    laid_out = Gallery.of(gallery_rows, compare)
    everyone = torch.arange(len(query_rows))
    for part in torch.split(everyone, tiling.block_rows(query_rows, width)):
        found = find(query_rows[part], self_indices[part], None, laid_out, width, tiling).unified
        similarities[part, :width] = compare.reported(found.values)
        rows[part, :width] = found.rows
    return similarities, rows


def compared(
    queries: Vectors, gallery: Vectors | None, names: tuple[str, str], distance: str, curvature: float, memory: int
) -> tuple[Rows, Rows, Distance]:
    """Check and prepare queries and gallery, and return them with their distance.

    Without a gallery, the queries are also the gallery.

    Raises:
        UserError: vectors that the distance does not accept, unequal widths, or an unknown distance.
    """
    sides = {names[0]: queries} | ({} if gallery is None else {names[1]: gallery})
    comparison = make_distance(distance, curvature, sides)
    # Half of the memory holds prepared rows; the parts of gallery and queries being compared get a quarter each.
    room = memory // (2 * len(sides))
    query_rows = hold_or_stream(queries, names[0], comparison, room)
    if gallery is None:
        return query_rows, query_rows, comparison
    gallery_rows = hold_or_stream(gallery, names[1], comparison, room)
    if queries.shape[1] != gallery.shape[1]:
        raise UserError(
            f"{names[1]}: {gallery.shape[1]} columns, but {names[0]} has {queries.shape[1]}; "
            "embed both sides with the same model"
        )
    return query_rows, gallery_rows, comparison


def _self_indices(query_ids: Hashables | None, gallery_ids: Hashables | None, queries: int, gallery: int) -> Tensor:
    if query_ids is None and gallery_ids is None:
        return torch.full((queries,), -1)
    if query_ids is None or gallery_ids is None:
        missing = "query_ids" if query_ids is None else "gallery_ids"
        raise UserError(f"{missing}: not given, but the other side has ids; give both, or neither")
    return self_indices_of(
        [None if i == -1 else i for i in as_hashables(query_ids, "query_ids", queries, "queries")],
        [None if i == -1 else i for i in as_hashables(gallery_ids, "gallery_ids", gallery, "gallery")],
        "gallery_ids",
    )
