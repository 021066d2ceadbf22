"""Two models that embed the same image, one vector after the other."""

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unimetric.data.transforms import EvaluationTransform
from unimetric.models.embedder import Embedder
from unimetric.models.encoding import Encoder, PixelEmbedder


class PairEncoder(Encoder):
    """Embed images by two models; a vector is that of the first followed by that of the second, [E + D].

    Args:
        first: The model of the first E numbers.
        second: The model of the other D; it has the same transform.
    """

    def __init__(self, first: Embedder, second: Embedder) -> None:
        self.first, self.second = first, second
        self.geometry = first.geometry
        self.embedding_size = first.embedding_size + second.embedding_size

    @property
    def transform(self) -> EvaluationTransform:
        """The transform from an RGB image to the input of both."""
        return self.first.transform

    def inference_form(self, precision: str = "auto") -> PixelEmbedder:
        """Return the inference forms of both; see `Encoder.inference_form`."""
        return _PairForm(self.first.inference_form(precision), self.second.inference_form(precision))


QueryModel: TypeAlias = Embedder | PairEncoder
"""The model of queries to a database."""


@dataclass(frozen=True)
class _PairForm:
    first: PixelEmbedder
    second: PixelEmbedder

    def describe(self) -> str:
        return f"{self.first.describe()}, two models"

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        return np.concatenate([form.embed_pixels(images) for form in (self.first, self.second)], axis=1)
