"""Covariance of many vectors with shrinkage, tile by tile, and vectors whitened by it."""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

TILE = 8192
"""Vectors processed at once."""

_DIRECTIONS = 256


def shrunk_covariance(residuals: Iterable[NDArray[np.float32]]) -> NDArray[np.float64]:
    """Return the covariance of centred vectors, shrunk towards a multiple of the identity.

    Args:
        residuals: Tiles [n, E]; at least one vector in all.

    Returns:
        The estimate of Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance
        matrices" (2004), [E, E], as `sklearn.covariance.ledoit_wolf` computes it from all vectors at once.
    """
    count, products, fourth = 0, np.zeros((), np.float64), 0.0
    for tile in residuals:
        count += len(tile)
        products = products + tile.T @ tile
        fourth += float(((tile.astype(np.float64) ** 2).sum(axis=1) ** 2).sum())
    covariance = products / count
    width = len(covariance)
    mean = float(np.trace(covariance)) / width
    squares = float((covariance**2).sum())
    spread = (squares - width * mean**2) / width
    noise = (fourth / count - squares) / (width * count)
    shrinkage = min(1.0, max(0.0, noise / spread)) if spread > 0 else 1.0
    shrunk: NDArray[np.float64] = (1 - shrinkage) * covariance
    shrunk.flat[:: width + 1] += shrinkage * mean + 1e-9
    return shrunk


def whitened(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return unit vectors [len(rows), E'] whose directions of much and of little spread count alike.

    The vectors of an untrained network share most of their direction, so that unrelated pictures have cosines above
    0.9. Whitened, a picture's copy is its nearest neighbour far more often. At most 256 directions are kept.
    """
    mean = sum((tile.sum(axis=0, dtype=np.float64) for tile in _tiles(vectors, rows)), np.zeros(vectors.shape[1]))
    mean = (mean / len(rows)).astype(np.float32)
    covariance = shrunk_covariance(tile - mean for tile in _tiles(vectors, rows))
    values, directions = np.linalg.eigh(covariance)
    values = np.maximum(values, 1e-6 * values[-1])
    scaled = (directions[:, -_DIRECTIONS:] / np.sqrt(values[-_DIRECTIONS:])).astype(np.float32)
    white = np.empty((len(rows), scaled.shape[1]), np.float32)
    done = 0
    for tile in _tiles(vectors, rows):
        white[done : done + len(tile)] = (tile - mean) @ scaled
        done += len(tile)
    white /= np.maximum(np.linalg.norm(white, axis=1, keepdims=True), 1e-12)
    return white


def _tiles(vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(rows), TILE):
        yield vectors[rows[start : start + TILE]]
