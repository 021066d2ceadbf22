"""The map of the embedding, as marks on the page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.data.catalog import Item
from unimetric.report.analysis import Analysis
from unimetric.report.embedding_map import map_positions, shown
from unimetric.report.svg import SERIES

_MAP_SIDE, _MAP_MARGIN = 340, 12
_SHAPES = (
    "M-2.2 0a2.2 2.2 0 1 0 4.4 0a2.2 2.2 0 1 0 -4.4 0z",  # disc
    "M-2 -2h4v4h-4z",  # square
    "M0 -2.7L2.6 2L-2.6 2z",  # triangle
    "M0 -2.9L2.9 0L0 2.9L-2.9 0z",  # diamond
)


def map_values(analysis: Analysis, count: int) -> dict[str, Any]:
    """Return the page's values of a map of at most ``count`` queries."""
    vectors = analysis.vectors
    rows = shown(vectors, count)
    positions = _MAP_MARGIN + (_MAP_SIDE - 2 * _MAP_MARGIN) * map_positions(vectors.query_vectors[rows])
    datasets = tuple(dict.fromkeys(item.dataset for item in vectors.query))
    number = {name: index for index, name in enumerate(datasets)}
    hits = analysis.hits[rows]
    items = [vectors.query[row] for row in rows]
    points = [
        {
            "x": f"{x:.1f}",
            "y": f"{y:.1f}",
            "colour": number[item.dataset] % SERIES,
            "shape": number[item.dataset] // SERIES % len(_SHAPES),
            "right": hit != 0,
            "text": _point_words(item, hit),
        }
        for hit, item, (x, y) in zip(hits.tolist(), items, positions, strict=True)
    ]
    own = {name: np.array([item.dataset == name for item in items]) for name in datasets}
    middles = {name: np.median(positions[rows_of], axis=0) for name, rows_of in own.items()}
    words = (
        f"{len(rows):,} of {len(vectors.query):,} queries, drawn so that near means alike (principal components, then "
        "t-SNE); distances between far groups mean nothing. Outlined: queries whose nearest neighbour is wrong."
    )
    return {
        "points": points,
        "shapes": _SHAPES,
        "labels": _labels(middles) if len(datasets) <= 24 else [],
        "legend": [
            {
                "name": name,
                "colour": number[name] % SERIES,
                "shape": number[name] // SERIES % len(_SHAPES),
                "count": int(own[name].sum()),
            }
            for name in datasets
        ],
        "words": words,
    }


def _labels(middles: Mapping[str, NDArray[np.float64]]) -> list[dict[str, str]]:
    """Place names at the middle of their datasets, apart from each other and from the edge."""
    placed: list[tuple[str, float, float]] = []
    for name, (x, y) in sorted(middles.items(), key=lambda entry: float(entry[1][1])):
        x = min(max(float(x), 45.0), _MAP_SIDE - 45.0)
        for _, other_x, other_y in placed:
            if abs(x - other_x) < 60 and y - other_y < 10:
                y = max(float(y), other_y + 10)
        placed.append((name, x, float(y)))
    return [{"name": name, "x": f"{x:.1f}", "y": f"{min(y, _MAP_SIDE - 4.0):.1f}"} for name, x, y in placed]


def _point_words(item: Item, hit: float) -> str:
    result = {1.0: "neighbour right", 0.0: "neighbour wrong"}.get(hit, "no other image of its class")
    return f"{item.dataset} · {item.label} · {item.path.name} · {result}"
