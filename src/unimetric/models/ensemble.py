"""Several embedders as one: an image's vector is the mean of theirs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from unimetric.data.decoding import ImageLike, listed_images
from unimetric.data.images import ImageError
from unimetric.data.transforms import EvaluationTransform
from unimetric.errors import UserError
from unimetric.geometry import Geometry
from unimetric.models.embedder import Embedder, decoded_batches


class Ensemble(nn.Module):
    """Embeds with every member, and averages: the mean direction of unit vectors, or the Poincaré mean of points.

    The ensemble of dataset-specific models is a baseline of Kim, Kim and Kwak, WACV 2025. Each image is decoded once;
    all members have to read the same pixels and to embed into the same space, where dimension i of one is averaged with
    dimension i of the others.

    Args:
        members: The embedders, at least one. They belong to this ensemble from now on.
        names: What error messages and `description` call them; as many as members.

    Raises:
        UserError: no member, or two that differ in embedding size, geometry or preprocessing.
    """

    method_name = "ensemble"

    def __init__(self, members: Sequence[Embedder], names: Sequence[str] | None = None) -> None:
        super().__init__()
        if not members:
            raise UserError("an ensemble of no models: give at least one")
        self.names = tuple(names or (f"model {number}" for number in range(1, len(members) + 1)))
        for member, name in zip(members, self.names, strict=True):
            _check_same_kind(members[0], member, self.names[0], name)
        self.models = nn.ModuleList(members)

    @classmethod
    def from_pretrained(
        cls, paths: Sequence[str | Path], *, weights: Sequence[str | Path | None] | None = None
    ) -> Ensemble:
        """Load model folders; see `Embedder.from_pretrained`.

        Args:
            paths: Run folders or model folders.
            weights: For each, where to take its backbone's weights from instead; None for where it says itself.

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
    def geometry(self) -> Geometry:
        """Where the vectors lie: where the members' do."""
        return self.members[0].geometry

    @property
    def embedding_size(self) -> int:
        """E, that of the members."""
        return self.members[0].embedding_size

    @property
    def transform(self) -> EvaluationTransform:
        """From an RGB image to the members' input."""
        return self.members[0].transform

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.members[0].device

    @property
    def encoded_in(self) -> str | None:
        """The form that `encode` computed in last, in a few words; None before."""
        return self.members[0].encoded_in

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the members' backbone; of several, the SHA-256 of their fingerprints in order."""
        fingerprints = [member.backbone.fingerprint for member in self.members]
        if len(set(fingerprints)) == 1:
            return fingerprints[0]
        return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()

    def trainable_parameter_count(self) -> int:
        """How many numbers are learned, in all members together."""
        return sum(member.trainable_parameter_count() for member in self.members)

    def description(self) -> dict[str, Any]:
        """What it is made of, in the shape that ``metrics.json`` keeps of a model, with a list of the members."""
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
        """Vectors [B, E] in float32, unit or points of the ball, for normalised images [B, 3, S, S]."""
        return self.geometry.mean(torch.stack([member(images) for member in self.members]))

    def encode(
        self, images: Sequence[ImageLike] | ImageLike, *, batch_size: int = 32, precision: str = "auto"
    ) -> NDArray[np.float32]:
        """As `Embedder.encode`."""
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
        """As `Embedder.encode_batches`."""
        forms = [member.inference_form(precision) for member in self.members]
        for pixels, errors in decoded_batches(images, self.transform, batch_size, skip_unreadable):
            vectors = [torch.from_numpy(form.embed_pixels(pixels)) for form in forms]
            yield self.geometry.mean(torch.stack(vectors).double()).float().numpy(), errors


def _check_same_kind(first: Embedder, other: Embedder, first_name: str, other_name: str) -> None:
    for what, of_first, of_other in (
        ("embedding size", first.embedding_size, other.embedding_size),
        ("geometry", first.geometry, other.geometry),
        ("preprocessing", first.transform, other.transform),
    ):
        if of_first != of_other:
            raise UserError(
                f"the {what} of {other_name} is {_words(of_other)}, that of {first_name} is {_words(of_first)}: "
                "the members of an ensemble have to agree in it; leave one out"
            )


def _words(value: object) -> str:
    if isinstance(value, EvaluationTransform):
        return f"{value.image_size} px, mean {tuple(value.mean)}, std {tuple(value.std)}"
    return str(value)
