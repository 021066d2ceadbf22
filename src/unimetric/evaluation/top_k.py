"""Exact top-k search: queries pass over their own dataset's part of the gallery first, then over the rest.

The best k after the first part are the separate result, those after both parts the unified one, so that one pass gives
both.

The gallery is laid out dataset by dataset and read in parts that fit in memory. In each part, tiles of queries are
multiplied with tiles of gallery items: products in float32 select candidates (see `screen`), float64 ranks them.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unimetric.evaluation.distances import Distance
from unimetric.evaluation.rows import Rows, SelectedRows, Tiling
from unimetric.evaluation.screen import GROUP, Candidates, full_precision, product_error

PAIR_NUMBERS = 2**18
"""Maximum number of values that are gathered at once when pairs are compared."""
SPARE = 8
"""Minimum number of candidates beyond k in a list; a query with more undecided ones is compared with all items."""


@dataclass(frozen=True, eq=False)
class Gallery:
    """A gallery laid out dataset by dataset."""

    rows: Rows
    """The prepared rows, dataset by dataset."""
    distance: Distance
    order: Tensor
    """The gallery row at each place, shape [G], ascending within a dataset."""
    places: Tensor
    """The place of each gallery row, shape [G + 1]; the last entry, -1, is that of row -1."""
    bounds: tuple[int, ...]
    """The first place of each dataset, followed by G."""

    @classmethod
    def of(cls, gallery: Rows, distance: Distance, datasets: Tensor | None = None) -> Gallery:
        """Lay out a gallery.

        Args:
            gallery: G prepared rows.
            distance: The distance that prepared them.
            datasets: The number of each item's dataset, shape [G], int64, from 0; without it, there is one dataset.
        """
        if datasets is None:
            datasets = torch.zeros(len(gallery), dtype=torch.int64)
        order = datasets.argsort(stable=True)
        places = torch.full((len(order) + 1,), -1)
        places[order] = torch.arange(len(order))
        bounds = (0, *datasets.bincount().cumsum(0).tolist())
        return cls(SelectedRows(gallery, order), distance, order, places, bounds)

    def bound(self, dataset: int) -> tuple[int, int]:
        """Return the first place of a dataset and the place after its last; both are G for one without items."""
        if dataset + 1 < len(self.bounds):
            return self.bounds[dataset], self.bounds[dataset + 1]
        return len(self.order), len(self.order)

    def parts(self, start: int, stop: int) -> Iterator[tuple[int, int]]:
        """Return the parts of the datasets between two places, by their first places and those after the last."""
        inside = self.bounds[bisect.bisect_right(self.bounds, start) : bisect.bisect_left(self.bounds, stop)]
        return itertools.pairwise(sorted({start, *inside, stop}))


@dataclass(eq=False)
class TopK:
    """The k nearest gallery rows of each query so far."""

    values: Tensor
    """Similarities, shape [Q, k], float64, highest first; -inf where there is none."""
    rows: Tensor
    """Gallery rows, shape [Q, k], int64; of equal similarities the lower first; -1 where there is none."""

    @classmethod
    def none(cls, queries: int, k: int) -> TopK:
        """Return empty lists."""
        values = torch.full((queries, k), -torch.inf, dtype=torch.float64)
        return cls(values, torch.full((queries, k), -1))

    def copy(self) -> TopK:
        """Return an independent copy."""
        return TopK(self.values.clone(), self.rows.clone())

    def merge(self, queries: Tensor, values: Tensor, rows: Tensor) -> None:
        """Add new items [n, any], in any order, to the lists of some queries [n]."""
        k = self.values.shape[1]
        values = torch.cat([self.values[queries], values.cpu()], dim=1)
        rows = torch.cat([self.rows[queries], rows.cpu()], dim=1)
        rows, by_row = rows.sort(dim=1)
        values, by_value = values.gather(1, by_row).sort(dim=1, descending=True, stable=True)
        values, rows = values[:, :k], rows.gather(1, by_value)[:, :k]
        self.values[queries] = values
        self.rows[queries] = rows.masked_fill(values == -torch.inf, -1)


@dataclass(frozen=True)
class SearchResults:
    """Nearest neighbours of queries in their own datasets' parts of the gallery, and in all of it."""

    separate: TopK
    unified: TopK


def find(
    queries: Tensor, self_indices: Tensor, datasets: Tensor | None, gallery: Gallery, k: int, tiling: Tiling
) -> SearchResults:
    """Find the k nearest neighbours of queries, prepared float32 rows [Q, W]; no result depends on the tiling.

    ``self_indices`` has the gallery row to exclude for each query, int64 [Q], -1 for none; ``datasets`` the number of
    each query's dataset, int64 [Q], ascending. Without it, both results are those of the whole gallery.
    """
    found, own, size = TopK.none(len(queries), k), gallery.places[self_indices], len(gallery.order)
    if datasets is None or len(gallery.bounds) == 2:
        _search([_Queries(queries, own, found, ((0, size),))], gallery, tiling)
        return SearchResults(found, found)
    inside, outside = [], []
    ends = datasets.bincount().cumsum(0).tolist()
    for number, (first, last) in enumerate(itertools.pairwise([0, *ends])):
        start, stop = gallery.bound(number)
        part = _Queries(queries, own, found, ((start, stop),)).part(first, last)
        inside.append(part)
        outside.append(replace(part, spans=((0, start), (stop, size))))
    _search(inside, gallery, tiling)
    separate = found.copy()
    _search(outside, gallery, tiling)
    return SearchResults(separate, found)


@dataclass(frozen=True, eq=False)
class _Queries:
    """Some queries, the places to search for them, and their results so far."""

    vectors: Tensor
    own: Tensor
    """The place to exclude for each query, -1 for none."""
    found: TopK
    spans: tuple[tuple[int, int], ...]
    """First places, and places after the last, of parts of the gallery that hold whole datasets."""

    def part(self, first: int, last: int) -> _Queries:
        """Return a range of the queries, which shares their results."""
        found = TopK(self.found.values[first:last], self.found.rows[first:last])
        return _Queries(self.vectors[first:last], self.own[first:last], found, self.spans)

    def within(self, start: int, stop: int) -> list[tuple[int, int]]:
        """Return the parts of the spans between two places."""
        clipped = [(max(first, start), min(last, stop)) for first, last in self.spans]
        return [(first, last) for first, last in clipped if first < last]


@dataclass(frozen=True, eq=False)
class _Chunk:
    """A part of the gallery in memory."""

    rows: Tensor
    """Prepared rows, on the device of the matrix products."""
    start: int
    """The place of the first row."""
    gallery: Gallery
    longest: float
    """The greatest length of a row of ``gallery.distance.screen.gallery``."""

    @classmethod
    def of(cls, gallery: Gallery, start: int, stop: int, device: str | torch.device) -> _Chunk:
        rows = gallery.rows[start:stop].to(device)
        lengths = torch.linalg.vector_norm(gallery.distance.screen.gallery(rows), dim=1)
        return cls(rows, start, gallery, float(lengths.amax()))


def _search(parts: Sequence[_Queries], gallery: Gallery, tiling: Tiling) -> None:
    """Search the gallery for some parts of the queries, each in its own spans, and add the results."""
    k = parts[0].found.values.shape[1]
    length = k + max(SPARE, k // 8)
    step = tiling.chunk_rows(gallery.rows) if len(gallery.rows) else 1
    # With tiles no longer than the lists, merging would take more time than multiplying.
    tile_rows, tile_columns = tiling.query_rows(length), max(tiling.gallery, 4 * length)
    # Allocated once, because allocating a tile takes a third of the time of its products.
    buffer = torch.empty(0, device=tiling.device)
    for start in range(0, len(gallery.order), step):
        chunk = None
        for part in parts:
            spans = part.within(start, start + step)
            if not spans or not len(part.own):
                continue
            chunk = chunk or _Chunk.of(gallery, start, start + step, tiling.device)
            for first, last in _tiles([(0, len(part.own))], tile_rows):
                tile = part.part(first, last)
                undecided = torch.arange(len(tile.own))
                if sum(b - a for a, b in spans) > max(4 * length, 2 * GROUP):
                    if not len(buffer):
                        buffer = torch.empty(tile_rows * (tile_columns + GROUP), device=tiling.device)
                    undecided = _screen(tile, chunk, _tiles(spans, tile_columns), length, buffer)
                for some in torch.split(undecided, max(1, tile_rows // 4)):
                    _compare(tile, some, chunk, tiling.gallery)


def _screen(queries: _Queries, chunk: _Chunk, tiles: Iterable[tuple[int, int]], length: int, buffer: Tensor) -> Tensor:
    """Search a part of the gallery by screening; return the numbers of the queries that it leaves undecided."""
    screen = chunk.gallery.distance.screen
    rows, own = queries.vectors.to(chunk.rows.device), queries.own.to(chunk.rows.device)
    left, right = screen.queries(rows), screen.gallery(chunk.rows)
    relative = product_error(left.shape[1], screen.left_out(left.shape[1]))
    errors = torch.linalg.vector_norm(left, dim=1).double() * chunk.longest * relative
    found = queries.found.values
    floor = found[:, -1].to(errors.device) - errors
    candidates = Candidates.none(floor, errors, found.shape[1], length)
    with full_precision(rows.device):
        for start, stop in tiles:
            tile = _product(left, right[start - chunk.start : stop - chunk.start], buffer)
            _hide(tile, own, start, stop)
            candidates.add(tile, start - chunk.start)
    return _decide(queries, rows, candidates, chunk)


def _tiles(spans: Iterable[tuple[int, int]], step: int) -> Iterator[tuple[int, int]]:
    for first, last in spans:
        for start in range(first, last, step):
            yield start, min(start + step, last)


def _product(left: Tensor, right: Tensor, buffer: Tensor) -> Tensor:
    """Return all products of rows, padded with columns of -inf to whole groups: shape [Q, at least G]."""
    missing = -len(right) % GROUP
    tile = buffer[: len(left) * (len(right) + missing)].view(len(left), -1)
    torch.mm(left, right.T, out=tile[:, : len(right)])
    tile[:, len(right) :] = -torch.inf
    return tile


def _hide(tile: Tensor, own: Tensor, start: int, stop: int) -> None:
    """Exclude each query itself from the similarities of a tile.

    The tile is [Q, stop - start or more], its columns the places from ``start`` to ``stop``; ``own`` is the place to
    exclude for each query, [Q].
    """
    inside = ((own >= start) & (own < stop)).nonzero()[:, 0]
    tile[inside, own[inside] - start] = -torch.inf


def _decide(queries: _Queries, rows: Tensor, candidates: Candidates, chunk: _Chunk) -> Tensor:
    """Add the candidates' exact similarities to the results; return the queries that they do not decide."""
    needed = candidates.values.double() >= candidates.needed()[:, None]
    needed &= candidates.values > -torch.inf
    undecided = candidates.undecided()
    needed[undecided] = False
    asked, ranks = needed.nonzero(as_tuple=True)
    columns = candidates.columns[asked, ranks]
    values = torch.full(needed.shape, -torch.inf, dtype=torch.float64, device=rows.device)
    values[asked, ranks] = paired_similarities(chunk.gallery.distance, rows, asked, chunk.rows, columns)
    # Candidates are sorted, so the needed ones come first.
    counts = needed.sum(dim=1)
    changed, width = counts.nonzero()[:, 0], int(counts.max())
    if len(changed):
        places = (candidates.columns[changed, :width] + chunk.start).cpu()
        queries.found.merge(changed.cpu(), values[changed, :width], chunk.gallery.order[places])
    return undecided.cpu()


def paired_similarities(distance: Distance, queries: Tensor, asked: Tensor, gallery: Tensor, items: Tensor) -> Tensor:
    """Return the similarity of query ``asked[i]`` and gallery item ``items[i]``, shape [P], float64."""
    values = torch.empty(len(asked), dtype=torch.float64, device=gallery.device)
    step = max(1, PAIR_NUMBERS // gallery.shape[1])
    for start in range(0, len(asked), step):
        part = slice(start, start + step)
        values[part] = distance.paired(queries[asked[part]].double(), gallery[items[part]].double())
    return values


def _compare(queries: _Queries, some: Tensor, chunk: _Chunk, gallery_tile: int) -> None:
    """Search a part of the gallery for some queries [n] by exact similarities to all items in their spans."""
    if not len(some):
        return
    k = queries.found.values.shape[1]
    distance, device, stop = chunk.gallery.distance, chunk.rows.device, chunk.start + len(chunk.rows)
    vectors, own = queries.vectors[some].to(device, torch.float64), queries.own[some].to(device)
    # Dataset by dataset, because places and rows have the same order only within a dataset.
    for span in queries.within(chunk.start, stop):
        for first, last in _tiles(chunk.gallery.parts(*span), max(gallery_tile, 4 * k)):
            tile = distance.similarities(vectors, chunk.rows[first - chunk.start : last - chunk.start])
            _hide(tile, own, first, last)
            values, columns = _first_k(tile, min(k, tile.shape[1]))
            queries.found.merge(some, values, chunk.gallery.order[first + columns.cpu()])


def _first_k(tile: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of every row and their columns, largest first; among equals, the lower column first."""
    # One more than k, to detect ties across the border.
    values, columns = tile.topk(min(k + 1, tile.shape[1]), dim=1)
    tied = (values[:, 1:] == values[:, :-1]).any(dim=1).nonzero()[:, 0]
    values, columns = values[:, :k], columns[:, :k]
    if len(tied):
        # topk's choice and order among equals is arbitrary.
        lowest = _lowest_columns(tile[tied], values[tied, -1:], k)
        order = tile[tied].gather(1, lowest).sort(dim=1, descending=True, stable=True).indices
        columns[tied] = lowest.gather(1, order)
    return values, columns


def _lowest_columns(tile: Tensor, border: Tensor, k: int) -> Tensor:
    """Return the columns [Q, k] of all entries above the border [Q, 1] and of the first entries that equal it."""
    above = tile > border
    equal = tile == border
    room = k - above.sum(dim=1, keepdim=True)
    taken = above | (equal & (equal.cumsum(dim=1) <= room))
    return taken.nonzero()[:, 1].reshape(len(tile), k)
