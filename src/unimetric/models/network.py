"""The network: a frozen backbone, a method's additions, and a linear head."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from unimetric.data.transforms import EvaluationTransform
from unimetric.errors import UserError, shown
from unimetric.geometry import Geometry, PoincareBall, make_geometry
from unimetric.models.backbone import Backbone, FrozenBlock
from unimetric.models.petl import METHODS, method_options
from unimetric.models.petl.noise import drawing_as_here


class Network(nn.Module):
    """Map normalised images to embeddings: unit vectors, or points of the Poincaré ball.

    Image → patch embedding → [class token; prompts; patches] → frozen blocks with the method's additions →
    final norm and pooling → linear head → L2 normalisation, or exponential map into the ball. Only the method and the
    head have gradients.

    For the arguments see `unimetric.models.embedder.Embedder`. The network takes the backbone over.

    Attributes:
        size_map: For a model with shortened vectors, the linear map [E, s] before they are normalised again; else None.
        recompute_blocks: Number of first blocks that, during training, keep only their input and are computed again in
            the backward pass: the same gradients with less memory, in more time.

    Raises:
        UserError: unknown method, option or geometry.
    """

    size_map: Tensor | None = None

    def __init__(
        self, backbone: Backbone, method: str, options: dict[str, Any], embedding_size: int, geometry: str | Geometry
    ) -> None:
        super().__init__()
        self.geometry: Geometry = make_geometry(geometry) if isinstance(geometry, str) else geometry
        self.method_name = method
        self.options = method_options(method, options)
        self.backbone = backbone
        self.method = METHODS[method].make(backbone, self.options)
        self.head: nn.Linear | None = None
        if METHODS[method].has_head:
            self.head = nn.Linear(backbone.output_size, embedding_size)
        self.recompute_blocks = 0
        self.embedding_size = embedding_size if self.head is not None else backbone.output_size
        if self.head is None and isinstance(self.geometry, PoincareBall):
            raise UserError(
                f"geometry is 'poincare': method {method} has no head that could be trained for it; use sphere"
            )

    @property
    def transform(self) -> EvaluationTransform:
        """The transform from an RGB image to the backbone's input."""
        return self.backbone.transform

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.backbone.parameters()).device

    def trainable_parameter_count(self) -> int:
        """Return the number of learned values in the method and the head, without the loss's proxies."""
        return sum(parameter.numel() for parameter in self.parameters() if parameter.requires_grad)

    def forward(self, images: Tensor) -> Tensor:
        """Return vectors [B, E] in float32, unit or points of the ball, for normalised images [B, 3, S, S]."""
        features = self.features(images)
        with torch.autocast(features.device.type, enabled=False):
            features = features.float()
            vectors = self.geometry.embed(features if self.head is None else self.head(features))
            return vectors if self.size_map is None else F.normalize(vectors @ self.size_map.to(vectors.device), dim=-1)

    def features(self, images: Tensor) -> Tensor:
        """Return the head's input: the pooled output of the last block, [B, D] or [B, 2 D]."""
        backbone, method = self.backbone, self.method
        patches = backbone.patch_tokens(images)  # (B, N, D)
        tokens, ropes = backbone.embed_tokens(patches, method.prompts(patches, backbone))  # (B, T, D)
        for index, (block, rope) in enumerate(zip(backbone.blocks, ropes, strict=True)):
            run = partial(self._run_block, index, block, rope)
            recompute = self.training and index < self.recompute_blocks
            # The backward pass computes it a second time, with the same random numbers.
            again = partial(checkpoint, run, use_reentrant=False, context_fn=lambda: (nullcontext(), drawing_as_here()))
            tokens = again(tokens) if recompute else run(tokens)
        return backbone.pool(tokens, method.prompt_count)

    def _run_block(self, index: int, block: FrozenBlock, rope: Tensor | None, tokens: Tensor) -> Tensor:
        return self.method.run_block(index, block, self.method.enter_block(index, tokens), rope)

    @torch.no_grad()
    def prompt_weights(self, images: Tensor) -> Tensor | None:
        """Return the weight of each prompt, [B, M] in [-1, 1], for normalised images [B, 3, S, S]; None if no pool."""
        return self.method.prompt_weights(self.backbone.patch_tokens(images))

    def pixel_features(self, images: list[Tensor], dtype: torch.dtype) -> Tensor:
        """Return the head's input, float32 [n, D] or [n, 2 D], for n images from ``transform.crop``."""
        with self._evaluating(dtype):
            normalised = self.transform.normalise(torch.stack(images).to(self.device))
            return self.features(normalised).float()

    @contextmanager
    def _evaluating(self, dtype: torch.dtype) -> Iterator[None]:
        was_training = self.training
        with (
            self.backbone.holding(dtype, trained_too=True),
            torch.inference_mode(),
            torch.autocast(self.device.type, torch.bfloat16, enabled=dtype == torch.bfloat16),
        ):
            self.eval()
            try:
                yield
            finally:
                self.train(was_training)


def learned_weights(network: Network) -> dict[str, Tensor]:
    """Return all learned state by name, that is, everything except the frozen part of the backbone."""
    state = network.state_dict()
    return {name: state[name] for name in learned_names(network, state)}


def learned_names(network: Network, names: Iterable[str]) -> list[str]:
    """Return those of a network's parameter or state names that are learned."""
    trained = {f"backbone.{name}" for name in network.method.trained_in_backbone}
    return [name for name in names if not name.startswith("backbone.") or name in trained]


def assign_weights(network: Network, weights: dict[str, Tensor], origin: Path) -> None:
    """Load the weights of `learned_weights` into a network after `check_weights`."""
    check_weights(learned_weights(network), weights, origin)
    network.load_state_dict(weights, strict=False)


def check_weights(wanted: dict[str, Tensor], weights: dict[str, Tensor], origin: Path) -> None:
    """Check that weights are finite and match the ``wanted`` ones in names, shapes and types."""
    if missing := sorted(wanted.keys() - weights.keys()):
        raise UserError(
            f"{origin} lacks {missing[0]} ({len(missing)} missing): it is not a model of this configuration"
        )
    if unknown := sorted(weights.keys() - wanted.keys()):
        raise UserError(f"{origin} holds an unknown {shown(unknown[0])[1:-1]}: it is not a model of this configuration")
    for name, value in weights.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise UserError(
                f"{origin}: {name} is {value.dtype} {list(value.shape)}, but the configuration needs "
                f"{wanted[name].dtype} {list(wanted[name].shape)}: the files are of different models"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{origin}: {name} holds values that are not finite: train the model again")
