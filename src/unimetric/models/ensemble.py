"""Several models as one: the mean of their vectors, or two vectors, one after the other."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unimetric.data.transforms import EvaluationTransform
from unimetric.errors import UserError
from unimetric.geometry import Geometry
from unimetric.models.embedder import Embedder
from unimetric.models.encoding import Encoder, PixelEmbedder

_ASPECTS: dict[str, Callable[[Embedder], object]] = {
    "embedding size": lambda model: model.embedding_size,
    "geometry": lambda model: model.geometry,
    "preprocessing": lambda model: model.transform,
}


class Ensemble(nn.Module, Encoder):
    """Embed with every member and average: the mean direction of unit vectors, or the Poincaré mean of points.

    The ensemble of dataset-specific models is a baseline of Kim, Kim and Kwak, WACV 2025. Each image is decoded once,
    so all members must read the same pixels. They must embed into the same space: dimension i of one is averaged with
    dimension i of the others.

    Args:
        members: The embedders, at least one. The ensemble takes them over.
        names: Their names in error messages and `description`; as many as members.

    Raises:
        UserError: no member, or two that differ in embedding size, geometry or preprocessing.
    """

    method_name = "ensemble"

    def __init__(self, members: Sequence[Embedder], names: Sequence[str] | None = None) -> None:
        super().__init__()
        if not members:
            raise UserError("an ensemble of no models: give at least one")
        self.names = tuple(names or (f"model {number}" for number in range(1, len(members) + 1)))
        check_agreement(members, self.names, _ASPECTS, "the members of an ensemble have to agree in it; leave one out")
        self.models = nn.ModuleList(members)
        self.embedding_size, self.geometry = members[0].embedding_size, members[0].geometry

    @classmethod
    def from_pretrained(
        cls, paths: Sequence[str | Path], *, weights: Sequence[str | Path | None] | None = None
    ) -> "Ensemble":
        """Load model folders; see `Embedder.from_pretrained`.

        Args:
            paths: Run folders or model folders.
            weights: For each, another source of its backbone's weights; None for the recorded one.

        Raises:
            UserError: as `Embedder.from_pretrained`, or the models do not fit together.
        """
        files = weights or [None] * len(paths)
        members = [Embedder.from_pretrained(path, weights=file) for path, file in zip(paths, files, strict=True)]
        return cls(members, [str(path) for path in paths])

    @property
    def members(self) -> list[Embedder]:
        """The embedders, in the order given."""
        return [cast(Embedder, member) for member in self.models]

    @property
    def transform(self) -> EvaluationTransform:
        """The transform from an RGB image to the members' input."""
        return self.members[0].transform

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.members[0].device

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the members' backbone; for several backbones, the SHA-256 of their fingerprints in order."""
        fingerprints = [member.backbone.fingerprint for member in self.members]
        if len(set(fingerprints)) == 1:
            return fingerprints[0]
        return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()

    def trainable_parameter_count(self) -> int:
        """Return the total number of learned values of all members."""
        return sum(member.trainable_parameter_count() for member in self.members)

    def description(self) -> dict[str, Any]:
        """Return the entries of ``metrics.json`` that describe a model, with a list of the members."""
        return {
            "backbone": ", ".join(dict.fromkeys(member.backbone.name for member in self.members)),
            "fingerprint": self.fingerprint,
            "image_size": self.transform.image_size,
            "method": self.method_name,
            "embedding_size": self.embedding_size,
            "geometry": self.geometry.to_dict(),
            "trainable_parameters": self.trainable_parameter_count(),
            "members": [
                {
                    "name": name,
                    "backbone": member.backbone.name,
                    "fingerprint": member.backbone.fingerprint,
                    "method": member.method_name,
                    "trainable_parameters": member.trainable_parameter_count(),
                }
                for name, member in zip(self.names, self.members, strict=True)
            ],
        }

    def forward(self, images: Tensor) -> Tensor:
        """Return vectors [B, E] in float32, unit or points of the ball, for normalised images [B, 3, S, S]."""
        return self.geometry.mean(torch.stack([member(images) for member in self.members]))

    def inference_form(self, precision: str = "auto") -> PixelEmbedder:
        """Return the mean of the members' inference forms, see `Embedder.inference_form`."""
        return _MeanForm([member.inference_form(precision) for member in self.members], self.geometry)


@dataclass(frozen=True)
class _MeanForm:
    """The inference forms of an ensemble's members."""

    forms: list[PixelEmbedder]
    geometry: Geometry

    def describe(self) -> str:
        return self.forms[0].describe()

    def embed_pixels(self, images: list[Tensor]) -> NDArray[np.float32]:
        vectors = torch.from_numpy(np.stack([form.embed_pixels(images) for form in self.forms])).double()  # (M, n, E)
        # Image by image, so that a sum does not depend on the number of images.
        means = [self.geometry.mean(of_image) for of_image in torch.split(vectors, 1, dim=1)]
        return torch.cat([*means, vectors.new_empty(0, vectors.shape[2])]).float().numpy()


def check_agreement(
    models: Sequence[Embedder], names: Sequence[str], aspects: Mapping[str, Callable[[Embedder], object]], remedy: str
) -> None:
    """Check that all models have the same value of every aspect."""
    for model, name in zip(models, names, strict=True):
        for aspect, value_of in aspects.items():
            first, other = value_of(models[0]), value_of(model)
            if first != other:
                raise UserError(
                    f"the {aspect} of {name} is {_words(other)}, that of {names[0]} is {_words(first)}: {remedy}"
                )


def _words(value: object) -> str:
    if isinstance(value, EvaluationTransform):
        return f"{value.image_size} px, mean {tuple(value.mean)}, std {tuple(value.std)}"
    return str(value)


class PairEncoder(Encoder):
    """Embed images by two models; a vector is that of the first followed by that of the second, [E + D]."""

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
