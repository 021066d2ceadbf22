"""Transformer for scikit-learn: images to vectors, as the first step of a pipeline."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin

from unimetric.models.embedder import Embedder


class ImageVectors(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Turn images into vectors, float32 [N, E]; there is nothing to fit.

    Args:
        model: Run folder, model folder, or name of a backbone or of a model on the hub.
        precision: As for `Embedder.encode`.
    """

    def __init__(self, model: str, precision: str = "auto") -> None:
        self.model = model
        self.precision = precision

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def fit(self, images: Sequence[Any], labels: Any = None) -> "ImageVectors":
        """Load the model; images and labels are not looked at."""
        self.embedder_, self.loaded_ = Embedder.from_pretrained(self.model), self.model
        return self

    def transform(self, images: Sequence[Any]) -> NDArray[np.float32]:
        """Return the vectors of paths, PIL images or arrays; a `UserError` if the model or one cannot be read."""
        if getattr(self, "loaded_", None) != self.model:  # not yet, or set_params named another one
            self.fit(images)
        return self.embedder_.encode(list(images), precision=self.precision)
