"""A flat map of the embedding, as marks on the page: principal components, then t-SNE."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unimetric.data.catalog import Item
from unimetric.report.analysis import Analysis
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
    rows = choose_rows([item.dataset for item in vectors.query], count)
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


def choose_rows(datasets: Sequence[str], count: int) -> NDArray[np.int64]:
    """Return at most ``count`` rows, evenly spaced in each dataset; the same share of each, but at least one row."""
    share = min(1.0, count / max(1, len(datasets)))
    names = np.array(datasets, dtype=object)
    chosen = []
    for name in dict.fromkeys(datasets):
        rows = np.flatnonzero(names == name)
        kept = max(1, int(share * len(rows)))
        chosen.append(rows[np.linspace(0, len(rows) - 1, kept).round().astype(int)])
    return np.sort(np.concatenate(chosen)) if chosen else np.empty(0, np.int64)


def map_positions(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return positions in the unit square, [N, 2], of vectors [N, E]; only short distances are meaningful.

    The first 50 principal components, then t-SNE (van der Maaten and Hinton, 2008) by scikit-learn. Few vectors are
    shown by their first two components instead.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count, width = vectors.shape
    rows = vectors.astype(np.float64)
    components = min(50, count, width)
    # Coinciding vectors have no variance to divide by, and no spread to start t-SNE from.
    with np.errstate(invalid="ignore"):
        reduced = PCA(components, svd_solver="full").fit_transform(rows) if count > 1 else rows
    if count >= 30:
        start = reduced[:, :2] if components > 1 else np.pad(reduced, ((0, 0), (0, 1)))
        scale = start[:, 0].std()
        start = start / scale * 1e-4 if scale > 0 else start
        perplexity = min(30.0, (count - 1) / 3)
        reduced = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=0).fit_transform(reduced)
    places = np.zeros((count, 2))
    places[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    low, high = places.min(axis=0, initial=np.inf), places.max(axis=0, initial=-np.inf)
    positions: NDArray[np.float64] = (places - low) / np.where(high > low, high - low, 1)
    return positions
