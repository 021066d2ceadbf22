"""Alignment and uniformity: how near the images of a class lie, and how evenly all images fill the space.

Wang and Isola, Understanding Contrastive Representation Learning through Alignment and Uniformity on the Hypersphere,
ICML 2020, with their constants, alpha = 2 and t = 2. With d the distance of two embeddings:

- alignment: the mean of d^2 over all pairs of a query and a gallery item of its class;
- uniformity: the logarithm of the mean of exp(-2 d^2) over all pairs of a query and a gallery item.

A query and itself are no pair. On the unit sphere, d is the length of the difference: alignment is from 0 to 4,
uniformity from -8 to 0, and lower is better of both (-4 is what points that are evenly spread over a sphere of many
dimensions have). For vectors of any length and in the Poincaré ball the paper defines neither; here d is the Euclidean
or the hyperbolic distance, alignment is at least 0 and uniformity at most 0, and only models of the same scale or
curvature compare.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from unimetric.evaluation.distances import Distance
from unimetric.evaluation.metrics import Retrieval

PAIRS = 100_000
"""Most pairs that are looked at: of more, a random sample of this size. On the sphere, the standard error of alignment
is then at most 0.007, that of a uniformity u at most sqrt(exp(-u) / 100,000): 0.03 at -4."""
_BLOCK = 2048


@dataclass(frozen=True)
class Spread:
    """Alignment and uniformity, and what they were computed from."""

    alignment: float | None
    """None without a pair of one class."""
    uniformity: float | None
    """None without any pair."""
    positive_pairs: int
    """Pairs behind the alignment."""
    pairs: int
    """Pairs behind the uniformity."""
    sampled: bool
    """Whether those are a sample, for either."""


def measure_spread(retrieval: Retrieval, limit: int = PAIRS, seed: int = 0) -> Spread:
    """Alignment and uniformity of queries and gallery.

    Args:
        retrieval: Queries, gallery, classes and distance; positives are those of `Retrieval`.
        limit: Most pairs of each kind; of more, as many are drawn with replacement (pairs of a query and itself among
            them are dropped).
        seed: The same seed draws the same pairs.
    """
    everyone = torch.zeros(len(retrieval.queries), dtype=torch.int64)
    everything = torch.zeros(len(retrieval.gallery), dtype=torch.int64)
    positive, positive_sampled = _pairs(
        retrieval.query_classes, retrieval.gallery_classes, retrieval.own_rows, limit, seed
    )
    any_class, sampled = _pairs(everyone, everything, retrieval.own_rows, limit, seed)
    near, all_squares = _squared_distances(retrieval, positive), _squared_distances(retrieval, any_class)
    return Spread(
        alignment=float(near.mean()) if len(near) else None,
        uniformity=math.log(float(np.exp(-2 * all_squares).mean())) if len(all_squares) else None,
        positive_pairs=len(near),
        pairs=len(all_squares),
        sampled=positive_sampled or sampled,
    )


def _pairs(
    query_classes: Tensor, gallery_classes: Tensor, own_rows: Tensor, limit: int, seed: int
) -> tuple[Tensor, bool]:
    """Query and gallery rows [P, 2] of one class, without queries with themselves; and whether they are a sample."""
    classes = 1 + int(max(query_classes.max(), gallery_classes.max()))
    order = gallery_classes.argsort(stable=True)
    sizes = gallery_classes.bincount(minlength=classes)
    starts = sizes.cumsum(0) - sizes
    # All pairs are numbered, query by query.
    ends = sizes[query_classes].cumsum(0)
    total = int(ends[-1])
    numbers = torch.arange(min(total, limit))
    if total > limit:
        numbers = torch.from_numpy(np.random.default_rng(seed).integers(total, size=limit))
    queries = torch.searchsorted(ends, numbers, right=True)
    query_class = query_classes[queries]
    place = numbers - (ends[queries] - sizes[query_class])
    gallery = order[starts[query_class] + place]
    others = own_rows[queries] != gallery
    return torch.stack([queries[others], gallery[others]], dim=1), total > limit


def _squared_distances(retrieval: Retrieval, pairs: Tensor) -> npt.NDArray[np.float64]:
    """Of each pair, shape [P]."""
    similarities = torch.empty(len(pairs), dtype=torch.float64)
    for start in range(0, len(pairs), _BLOCK):
        queries, gallery = pairs[start : start + _BLOCK].T
        part = retrieval.queries[queries].double(), retrieval.gallery[gallery].double()
        similarities[start : start + _BLOCK] = retrieval.distance.paired(*part)
    squared: npt.NDArray[np.float64] = _square(similarities, retrieval.distance).numpy()
    return squared


def _square(similarities: Tensor, distance: Distance) -> Tensor:
    if distance.name == "cosine":
        # The rounding of the rows can leave a cosine above 1.
        return (2 - 2 * similarities).clamp(0, 4)
    return distance.reported(similarities).square()
