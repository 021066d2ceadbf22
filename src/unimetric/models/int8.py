"""The inference form with int8 products, computed by onnxruntime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimetric.errors import UserError
from unimetric.models.exported import OnnxNetwork, open_session

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder


class Int8Embedder:
    """Maps images to vectors nearly as the embedder does that it was made of, faster on a CPU without a GPU.

    Weights and what they are multiplied with are rounded to 8 bits, see `unimetric.models.quantised`; attention, norms
    and the first layer stay float32. Making one takes seconds. An image's vector does not depend on what is computed
    beside it. What is lost: ``docs/performance.md``.

    Args:
        embedder: On the CPU. What it learns later does not reach this.

    Raises:
        UserError: a package is missing, or the model is too large.
    """

    def __init__(self, embedder: Embedder) -> None:
        # It knows embedders, and they know this module.
        from unimetric.models.export import missing_package, onnx_model

        if missing := missing_package():
            raise UserError(f"precision int8 needs the package {missing}: pip install 'unimetric[export]'")
        self._transform, self._embedding_size = embedder.transform, embedder.embedding_size
        content = onnx_model(embedder, "int8").SerializeToString()
        self._network = OnnxNetwork(open_session(content, 1), images_at_once=max(1, torch.get_num_threads()))

    def describe(self) -> str:
        """What it is, in a line."""
        return "fused, int8 products, cpu"

    def __call__(self, images: Tensor) -> Tensor:
        """Vectors [B, E] in float32, unit or points of the ball, for normalised images [B, 3, S, S]."""
        return torch.from_numpy(self._network(images.numpy()))

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """The vectors [n, E] of n images, uint8 [3, S, S] each, as ``EvaluationTransform.crop`` gives them."""
        if not images:
            return np.empty((0, self._embedding_size), np.float32)
        return self._network(self._transform.normalise(torch.stack(images)).numpy())
