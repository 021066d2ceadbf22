"""The whole network: a frozen backbone, what a method adds to it, and the head. Made, used, saved, loaded."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unimetric.data.decoding import ImageLike, listed_images, prepared_batches
from unimetric.data.images import ImageError
from unimetric.data.transforms import EvaluationTransform
from unimetric.errors import UserError
from unimetric.files import user_path
from unimetric.geometry import Geometry, PoincareBall, make_geometry
from unimetric.models.backbone import Backbone, FrozenBlock
from unimetric.models.fused import CurrentForm, InferenceForm
from unimetric.models.petl import METHODS, make_method, method_options
from unimetric.models.petl.noise import drawing_as_here
from unimetric.models.saving import load_model, save_model

_log = logging.getLogger(__name__)


class Embedder(nn.Module):
    """Maps images to vectors in which near means alike: unit vectors, or points of the Poincaré ball.

    Image → patch embedding → [class token; prompts; patches] → frozen blocks with what the method adds →
    final norm and pooling → linear head → L2 normalisation, or exponential map into the ball. Only the method and the
    head have gradients.

    Args:
        backbone: The frozen backbone. It belongs to this embedder from now on.
        method: Name of the parameter-efficient method, see `METHODS`.
        options: Its options; what is not named keeps its default.
        embedding_size: E. A method without a head returns the backbone's own width instead.
        geometry: Where the vectors lie: ``sphere``, ``poincare`` (with the paper's constants), or a `PoincareBall` with
            others. A method without a head has the sphere only.

    Attributes:
        encoded_in: The form that `encode` computed in last, in a few words; None before.
        compatible_with: Fingerprints of other models in whose vectors this one's queries may search.
        recompute_blocks: In training, so many of the first blocks keep their input alone for the backward pass, which
            computes the rest again: the same gradients from less memory, in more time.

    Raises:
        UserError: unknown method, option or geometry.
    """

    def __init__(
        self,
        backbone: Backbone,
        method: str = "puma",
        options: dict[str, Any] | None = None,
        embedding_size: int = 128,
        geometry: str | Geometry = "sphere",
    ) -> None:
        super().__init__()
        self.geometry: Geometry = make_geometry(geometry) if isinstance(geometry, str) else geometry
        self.method_name = method
        self.options = method_options(method, options or {})
        self.backbone = backbone
        self.method = make_method(method, backbone, options or {})
        self.head: nn.Linear | None = None
        if METHODS[method].has_head:
            self.head = nn.Linear(backbone.output_size, embedding_size)
        self._form = CurrentForm()
        self.encoded_in: str | None = None
        self.compatible_with: tuple[str, ...] = ()
        self.recompute_blocks = 0
        self.embedding_size = embedding_size if self.head is not None else backbone.output_size
        if self.head is None and isinstance(self.geometry, PoincareBall):
            raise UserError(
                f"geometry is 'poincare': method {method} has no head that could be trained for it; use sphere"
            )

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, image_size: int | None = None, weights: str | Path | None = None
    ) -> Embedder:
        """Load a model folder that `save_pretrained` wrote. Nothing in it is executed.

        Args:
            path: The folder, with ``config.json`` and ``adapter.safetensors``; or the run folder that it is in.
            image_size: Another input size than the model was trained at, in pixels.
            weights: Where to take the backbone's weights from instead, as for `make_backbone`: the file that it was
                trained with, or one fetched on another machine. They have to be the same weights.

        Raises:
            UserError: the folder or a file is missing, damaged or does not fit, or the backbone is another one.
        """
        return load_model(cls, user_path(path), image_size, weights)

    def save_pretrained(self, path: str | Path, *, metrics: dict[str, Any] | None = None) -> None:
        """Write ``adapter.safetensors``, ``config.json`` and a model card, a few MB; the backbone is only named.

        Args:
            path: The folder; made if it is missing.
            metrics: What was measured, in the shape of ``metrics.json``, for the model card.

        Raises:
            UserError: no permission, or a full disk. No half-written file is left.
        """
        save_model(self, user_path(path), metrics)

    @property
    def transform(self) -> EvaluationTransform:
        """From an RGB image to the backbone's input."""
        return self.backbone.transform

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.backbone.parameters()).device

    def trainable_parameter_count(self) -> int:
        """How many numbers are learned: those of the method and the head, not the loss's proxies."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def train(self, mode: bool = True) -> Embedder:
        """As for every module; training lets go of the inference form, and of the memory that it takes."""
        if mode:
            self._form = CurrentForm()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # A copy makes a form of its own when it needs one.
        return {**self.__dict__, "_form": CurrentForm()}

    def forward(self, images: Tensor) -> Tensor:
        """Vectors [B, E] in float32, unit or points of the ball, for normalised images [B, 3, S, S]."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            return self.geometry.embed(features if self.head is None else self.head(features))

    def features(self, images: Tensor) -> Tensor:
        """What the head reads: the pooled output of the last block, [B, D] or [B, 2 D]."""
        backbone, method = self.backbone, self.method
        patches = backbone.patch_tokens(images)  # (B, N, D)
        tokens, ropes = backbone.embed_tokens(patches, method.prompts(patches, backbone))  # (B, T, D)
        for index, (block, rope) in enumerate(zip(backbone.blocks, ropes, strict=True)):
            run = partial(self._run_block, index, block, rope)
            again = self.training and index < self.recompute_blocks
            tokens = _keeping_the_input_only(run, tokens) if again else run(tokens)
        return backbone.pool(tokens, method.prompt_count)

    def _run_block(self, index: int, block: FrozenBlock, rope: Tensor | None, tokens: Tensor) -> Tensor:
        return self.method.run_block(index, block, self.method.enter_block(index, tokens), rope)

    @torch.no_grad()
    def prompt_weights(self, images: Tensor) -> Tensor | None:
        """How much each prompt takes part, [B, M] in [-1, 1], for normalised images [B, 3, S, S]; None if no pool."""
        return self.method.prompt_weights(self.backbone.patch_tokens(images))

    def encode(
        self, images: Sequence[ImageLike] | ImageLike, *, batch_size: int = 32, precision: str = "auto"
    ) -> NDArray[np.float32]:
        """Embed images, each given as a path, a PIL image or an array.

        Args:
            images: The images, or a single one. Arrays are [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], as uint8,
                uint16, bool, or float in [0, 1]. One array of four axes, [N, H, W, C], is N images.
            batch_size: Images per forward pass.
            precision: ``bf16``, ``fp32``, or ``auto``: bf16 where the processor has instructions for it. ``int8``
                is faster on a CPU, and a little less exact; see `Int8Embedder`.

        Returns:
            Unit vectors, or points of the ball, float32 [N, E], in the order of ``images``.

        Raises:
            UserError: a file that cannot be read, or an array that is no image.
        """
        batches = self.encode_batches(listed_images(images), batch_size=batch_size, precision=precision)
        vectors = [batch for batch, _ in batches]
        return np.concatenate(vectors) if vectors else np.empty((0, self.embedding_size), np.float32)

    def encode_batches(
        self,
        images: Iterable[ImageLike],
        *,
        batch_size: int = 32,
        precision: str = "auto",
        skip_unreadable: bool = False,
    ) -> Iterator[tuple[NDArray[np.float32], list[ImageError | None]]]:
        """`encode`, batch by batch, while the next batch is being decoded.

        All batches are of the model as it is when the first is asked for.

        Args:
            images: The images, taken as they are needed.
            batch_size: Images per forward pass.
            precision: As in `encode`.
            skip_unreadable: Leave out images that cannot be read instead of raising.

        Yields:
            The vectors [n, E] of a batch's readable images, and for every image of the batch None or what is wrong
            with it.
        """
        form = self.inference_form(precision)
        for pixels, errors in decoded_batches(images, self.transform, batch_size, skip_unreadable):
            yield form.embed_pixels(pixels), errors

    def inference_form(self, precision: str = "auto") -> InferenceForm:
        """The fastest equivalent of this model as it is now, which `encode` computes with.

        See `fuse`, and `Int8Embedder` for ``int8``. It is kept until the model is changed or trained, or asked
        for in another precision.
        """
        form = self._form.of(self, precision)
        if self.encoded_in != form.describe():
            self.encoded_in = form.describe()
            _log.info("encoding in the form: %s", self.encoded_in)
        return form

    def pixel_features(self, images: list[Tensor], dtype: torch.dtype) -> Tensor:
        """What the head reads, float32 [n, D] or [n, 2 D], of n images as ``transform.crop`` gives them."""
        with self._computing(dtype):
            normalised = self.transform.normalise(torch.stack(images).to(self.device))
            return self.features(normalised).float()

    @contextmanager
    def _computing(self, dtype: torch.dtype) -> Iterator[None]:
        # Per batch, so that whoever consumes the batches finds the model as it was, whatever else uses it meanwhile.
        with (
            self.backbone.holding(dtype, trained_too=True),
            self._evaluating(),
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            yield

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)


def _keeping_the_input_only(run: Callable[[Tensor], Tensor], tokens: Tensor) -> Tensor:
    """``run(tokens)``, which is computed a second time for the backward pass, with the same random numbers."""

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), drawing_as_here()

    out: Tensor = checkpoint(run, tokens, use_reentrant=False, context_fn=contexts)
    return out


def decoded_batches(
    images: Iterable[ImageLike], transform: EvaluationTransform, batch_size: int, skip_unreadable: bool = False
) -> Iterator[tuple[list[Tensor], list[ImageError | None]]]:
    """`prepared_batches` of pixels, uint8 [3, S, S] each."""
    # Pixels only: torch's arithmetic would start threads of its own in each of these, which fight the model's.
    threads = max(1, torch.get_num_threads())
    return prepared_batches(images, transform.crop, batch_size, threads, skip_unreadable)
