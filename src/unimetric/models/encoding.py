"""Encoding of images in any form to vectors, shared by a single model and an ensemble."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unimetric.data.batches import ImageLike, listed_images, prepared_batches
from unimetric.data.images import ImageError
from unimetric.data.transforms import EvaluationTransform
from unimetric.errors import UserError, check_arguments
from unimetric.geometry import Geometry
from unimetric.models.devices import choose_precision
from unimetric.models.inference import InferenceModel, fuse
from unimetric.models.int8 import Int8Model
from unimetric.models.network import Network, learned_names
from unimetric.models.per_image import PerImageModel
from unimetric.models.sizes import Sizes

_log = logging.getLogger(__name__)


class PixelEmbedder(Protocol):
    """A computation of vectors from pixels: a `PerImageModel`, an `Int8Model` or the mean of several."""

    def describe(self) -> str:
        """Return the precision and the device in a few words."""

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """Return the vectors [n, E] of n images, uint8 [3, S, S] each."""


@dataclass(frozen=True)
class ShortForm:
    """Inference form with vectors shortened to ``size`` numbers."""

    form: PixelEmbedder
    sizes: Sizes
    size: int

    def describe(self) -> str:
        """Return the precision, the device and the size in a few words."""
        return f"{self.form.describe()}, {self.size} numbers"

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        """Return the vectors [n, s] of n images, uint8 [3, S, S] each."""
        return self.sizes.shorten(self.form.embed_pixels(images), self.size)


class InferenceCache:
    """Cache of a network's inference form, which is rebuilt after the network has changed."""

    def __init__(self) -> None:
        self._made: tuple[tuple[object, ...], PixelEmbedder] | None = None

    def get(self, network: Network, precision: str) -> PixelEmbedder:
        """Return the network's `PerImageModel`; for ``int8`` its `Int8Model`, on an accelerator that of `fuse`."""
        chosen, made = choose_precision(precision, network.device), self._made
        if made is not None and made[0] == (chosen, *_state_of(network)):
            return made[1]
        with network.backbone.holding(torch.float32, trained_too=True):
            form: PixelEmbedder = Int8Model(network) if chosen == "int8" else fuse(network, chosen)
            if isinstance(form, InferenceModel) and network.device.type == "cpu":
                form = PerImageModel(form)
            made = (chosen, *_state_of(network)), form
        self._made = made
        return made[1]


def _state_of(network: Network) -> tuple[object, ...]:
    """Return values that change with any weight: addresses, version counters, and sums of the learned weights' bits."""
    parameters = dict(network.named_parameters())
    tensors = [*parameters.values(), *network.buffers()]
    places = tuple((tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in tensors)
    # Version counters miss writes through .data, hence the sums of learned weights.
    learned = learned_names(network, parameters)
    bits = [parameters[name].detach().view(torch.int32).sum() for name in learned]
    return network.backbone.image_size, places, tuple(torch.stack(bits).tolist()) if bits else ()


@check_arguments
class Encoder:
    """Base of classes that embed images: `Embedder`, and `Ensemble` of them.

    Subclasses define ``embedding_size``, ``geometry``, `transform` and `inference_form`.

    Attributes:
        geometry: The space of the vectors: unit sphere or Poincaré ball.
        encoded_in: The form that `encode` last used, in a few words; None before.
    """

    embedding_size: int
    geometry: Geometry
    encoded_in: str | None = None

    @property
    def transform(self) -> EvaluationTransform:
        """The transform from an RGB image to the model's input."""
        raise NotImplementedError

    def inference_form(self, precision: str = "auto") -> PixelEmbedder:
        """Return the fastest equivalent of the model in its present state, see `encode` for precisions."""
        raise NotImplementedError

    def shortened(self, size: int) -> Encoder:
        """Return the same model with vectors of ``size`` numbers.

        Raises:
            UserError: the model has no shorter vectors.
        """
        raise UserError(f"--size is {size}: only a single model has shorter vectors; leave it out")

    def encode(
        self,
        images: Sequence[ImageLike] | ImageLike,
        *,
        batch_size: int = 32,
        precision: str = "auto",
        size: int | None = None,
    ) -> NDArray[np.float32]:
        """Embed images, each given as a path, a PIL image or an array.

        On a CPU, the vector of an image is the same to the bit whatever the other images, the batch size and the
        number of threads. On an accelerator this has not been tested.

        Args:
            images: The images, or a single one. Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], as uint8,
                uint16, bool, or float in [0, 1]. One array of four axes, [N, H, W, C], is N images.
            batch_size: Images that are decoded and embedded at once.
            precision: ``bf16``, ``fp32``, or ``auto``: bf16 where the processor has instructions for it. ``int8``
                is faster on a CPU and slightly less exact; see `Int8Model`.
            size: Numbers of a vector, if fewer than E; see `Embedder.shortened`.

        Returns:
            Unit vectors, or points of the ball, float32 [N, E], in the order of ``images``.

        Raises:
            UserError: a file that cannot be read, an array that is not an image, or a model without shorter vectors.
        """
        if size is not None and size != self.embedding_size:
            return self.shortened(size).encode(images, batch_size=batch_size, precision=precision)
        batches = self.encode_batches(images, batch_size=batch_size, precision=precision)
        vectors = [batch for batch, _ in batches]
        return np.concatenate(vectors) if vectors else np.empty((0, self.embedding_size), np.float32)

    def encode_batches(
        self,
        images: Iterable[ImageLike] | ImageLike,
        *,
        batch_size: int = 32,
        precision: str = "auto",
        skip_unreadable: bool = False,
    ) -> Iterator[tuple[NDArray[np.float32], list[ImageError | None]]]:
        """Embed images, read as they are needed, batch by batch while the next batch is being decoded; see `encode`.

        All batches use the model's state at the time of the first request. A batch gives the vectors [n, E] of its
        readable images, and for every image None or its error; without ``skip_unreadable``, the first error is raised.
        """
        listed = listed_images(images)
        form = self.inference_form(precision)
        self._log_form(form)
        for pixels, errors in decoded_batches(listed, self.transform, batch_size, skip_unreadable):
            yield form.embed_pixels(pixels), errors

    def _log_form(self, form: PixelEmbedder) -> None:
        if self.encoded_in != form.describe():
            self.encoded_in = form.describe()
            _log.info("encoding in the form: %s", self.encoded_in)


def decoded_batches(
    images: Iterable[ImageLike], transform: EvaluationTransform, batch_size: int, skip_unreadable: bool = False
) -> Iterator[tuple[list[Tensor], list[ImageError | None]]]:
    """Decode images to pixels, uint8 [3, S, S] each, batch by batch; see `prepared_batches`."""
    # Only crop here: normalising in torch would start further threads in each decoding thread.
    threads = max(1, torch.get_num_threads())
    return prepared_batches(images, transform.crop, batch_size, threads, skip_unreadable)
