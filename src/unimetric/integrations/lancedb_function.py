"""Embedding function for LanceDB: tables that compute their vectors with a model of this package.

Importing this module registers it under the name ``unimetric``; LanceDB needs that whenever such a table is opened.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
from lancedb.embeddings import EmbeddingFunction, register
from numpy.typing import NDArray
from pydantic import PrivateAttr

from unimetric.data.images import decode_image
from unimetric.errors import UserError
from unimetric.geometry import Sphere
from unimetric.models.devices import choose_device
from unimetric.models.embedder import Embedder


@register("unimetric")
class UnimetricEmbeddings(EmbeddingFunction):  # type: ignore[misc]
    """Vectors of images, which are given as paths, encoded bytes, PIL images or arrays, as queries and in tables.

    The vectors have unit length, so LanceDB's ``l2``, ``cosine`` and ``dot`` rank alike.

    Attributes:
        model: Run folder, model folder, or name of a backbone or of a model on the hub; a commit in the name
            (``owner/name@commit``) keeps a table to one model.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
        precision: As for `Embedder.encode`.
        batch_size: Images per forward pass.
        max_retries: Attempts after an error; an image that cannot be read stays so.
    """

    model: str
    device: str = "auto"
    precision: str = "auto"
    batch_size: int = 32
    max_retries: int = 0
    _embedder: Embedder | None = PrivateAttr(default=None)

    def ndims(self) -> int:
        """Return the length of a vector."""
        return self.embedder.embedding_size

    @property
    def embedder(self) -> Embedder:
        """The model, loaded on first use.

        Raises:
            UserError: it cannot be loaded, or its vectors lie in the Poincaré ball, whose distance LanceDB lacks.
        """
        if self._embedder is None:
            embedder = Embedder.from_pretrained(self.model)
            if not isinstance(embedder.geometry, Sphere):
                raise UserError(f"{self.model} compares by hyperbolic distance, which LanceDB lacks: use SearchIndex")
            self._embedder = embedder.to(choose_device(self.device))
        return self._embedder

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[NDArray[np.float32]]:
        """Return the vector of one image, in a list."""
        return self.compute_source_embeddings([query])

    def compute_source_embeddings(self, images: Any, *args: Any, **kwargs: Any) -> list[NDArray[np.float32]]:
        """Return the vectors of images in their order; a `UserError` names one that cannot be read."""
        listed: Iterable[Any] = [images] if isinstance(images, str | bytes) else images
        if isinstance(images, pa.Array | pa.ChunkedArray):
            listed = images.to_pylist()
        opened = [decode_image(image) if isinstance(image, bytes) else image for image in listed]
        return list(self.embedder.encode(opened, batch_size=self.batch_size, precision=self.precision))
