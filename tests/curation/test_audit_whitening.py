"""Shrunk covariances against scikit-learn's, and copies that only whitened vectors find."""

import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf

from unimetric.curation.whitening import shrunk_covariance, whitened


@pytest.mark.parametrize(("count", "width"), [(7, 48), (400, 30), (50, 1), (2, 3)])
def test_the_covariance_is_that_of_ledoit_and_wolf(count: int, width: int) -> None:
    random = np.random.default_rng(0)
    residuals = (random.normal(size=(count, width)) @ random.normal(size=(width, width))).astype(np.float32)
    tiles = [residuals[: count // 2], residuals[count // 2 :]]
    expected = ledoit_wolf(residuals, assume_centered=True)[0]
    np.testing.assert_allclose(shrunk_covariance(tiles), expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def nearest(vectors: np.ndarray) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return (unit @ unit.T - 9 * np.eye(len(unit))).argmax(axis=1)


def test_a_copy_is_nearest_where_few_directions_dominate() -> None:
    """A crop changes the directions that all pictures vary along; the faint ones belong to the picture."""
    random = np.random.default_rng(0)
    faint = random.normal(size=(300, 60))
    one, other = (
        np.hstack([5 + 8 * random.normal(size=(300, 4)), faint + 0.3 * random.normal(size=(300, 60))]) for _ in range(2)
    )
    vectors = np.concatenate([one, other]).astype(np.float32)
    copies = np.concatenate([np.arange(300, 600), np.arange(300)])
    assert (nearest(vectors) == copies).mean() < 0.5
    white = whitened(vectors, np.arange(600))
    assert (nearest(white) == copies).mean() > 0.95
    np.testing.assert_allclose(np.linalg.norm(white, axis=1), 1, rtol=1e-5)


def test_only_the_rows_named_are_whitened() -> None:
    vectors = np.random.default_rng(1).normal(size=(50, 8)).astype(np.float32)
    rows = np.arange(5, 50, 3)
    np.testing.assert_array_equal(whitened(vectors, rows), whitened(vectors[rows], np.arange(len(rows))))


@pytest.mark.parametrize("count", [1, 2])
def test_one_or_two_vectors_are_no_error(count: int) -> None:
    assert np.isfinite(whitened(np.eye(count, 5, dtype=np.float32), np.arange(count))).all()
