"""A flat map of the embedding: principal components, then t-SNE."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimetric.formats.vectors import MeasuredVectors


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


def map_positions(vectors: NDArray[np.float32], seed: int = 0) -> NDArray[np.float64]:
    """Return positions in the unit square, [N, 2], of vectors [N, E]; only short distances are meaningful.

    The first 50 principal components, then t-SNE (van der Maaten and Hinton, 2008) by scikit-learn. Few vectors are
    shown by their first two components instead.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    count, width = vectors.shape
    rows = vectors.astype(np.float64)
    components = min(50, count, width)
    reduced = PCA(components, svd_solver="full").fit_transform(rows) if count > 1 else rows
    if count >= 30:
        # Coinciding vectors have no spread to start from.
        start = reduced[:, :2] if components > 1 else np.pad(reduced, ((0, 0), (0, 1)))
        scale = start[:, 0].std()
        start = start / scale * 1e-4 if scale > 0 else start
        perplexity = min(30.0, (count - 1) / 3)
        reduced = TSNE(2, perplexity=perplexity, init=start.astype(np.float32), random_state=seed).fit_transform(
            reduced
        )
    places = np.zeros((count, 2))
    places[:, : min(2, reduced.shape[1])] = reduced[:, :2]
    low, high = places.min(axis=0, initial=np.inf), places.max(axis=0, initial=-np.inf)
    positions: NDArray[np.float64] = (places - low) / np.where(high > low, high - low, 1)
    return positions


def shown(vectors: MeasuredVectors, count: int) -> NDArray[np.int64]:
    """The queries that the map shows."""
    return choose_rows([item.dataset for item in vectors.query], count)
