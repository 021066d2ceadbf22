"""The model that users load, run and save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from unimetric.errors import UserError, shown
from unimetric.files import cache_folder, make_folder, user_path
from unimetric.geometry import Geometry
from unimetric.models.backbone import Backbone, make_backbone, outline_backbone
from unimetric.models.card import model_card
from unimetric.models.encoding import Encoder, InferenceCache, PixelEmbedder
from unimetric.models.network import Network, assign_weights, check_weights, learned_weights
from unimetric.models.packaged import PACKAGED
from unimetric.models.petl import method_options
from unimetric.models.saving import (
    CONFIG,
    FORMAT,
    NAMED_WEIGHTS,
    WEIGHTS,
    backbone_weights,
    read_geometry,
    read_model_config,
    read_weights,
    write_model,
)


class Embedder(Network, Encoder):
    """An embedding model: a `Network` that can be loaded, saved and applied to images.

    Args:
        backbone: The frozen backbone. The embedder takes it over.
        method: Name of the parameter-efficient method, see `METHODS`.
        options: Its options; others keep their defaults.
        embedding_size: E. A method without a head returns vectors of the backbone's own width instead.
        geometry: The space of the vectors: ``sphere``, ``poincare`` (with the paper's constants), or a `PoincareBall`
            with others. A method without a head supports the sphere only.

    Attributes:
        encoded_in: The form that `encode` last used, in a few words; None before.
        compatible_with: Fingerprints of other models whose vectors this model's queries may search.

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
        super().__init__(backbone, method, options, embedding_size, geometry)
        self._inference = InferenceCache()
        self.compatible_with: tuple[str, ...] = ()

    @classmethod
    def from_pretrained(
        cls, path: str | Path, *, image_size: int | None = None, weights: str | Path | None = None
    ) -> Embedder:
        """Load a model folder that `save_pretrained` wrote. Nothing in it is executed.

        Args:
            path: The folder, with ``config.json`` and ``adapter.safetensors``; or the run folder that contains it; or
                the name of a backbone, such as ``dinov2-small``, for the backbone without training.
            image_size: Input size in pixels, if different from that of training.
            weights: Another source of the same backbone weights, as for `make_backbone`; a file that was downloaded
                on another machine, for instance.

        Raises:
            UserError: the folder or a file is missing, damaged or does not fit, or the backbone is a different one.
        """
        folder, config = read_model_config(model_path(user_path(path)))
        source, method = config["backbone"], config["method"]
        geometry = read_geometry(folder / CONFIG, config)
        learned = read_weights(folder / WEIGHTS, config["weights_sha256"])
        cls._check_sizes(config, geometry, learned, folder)
        try:
            backbone = make_backbone(
                source["name"],
                weights=backbone_weights(folder, source["weights"], weights),
                image_size=source["image_size"] if image_size is None else image_size,
                pool=source["pool"],
            )
        except UserError as error:
            raise UserError(f"{folder / CONFIG}: {error}") from error
        _check_same_backbone(backbone, config, folder)
        embedder = cls(backbone, method["name"], method["options"], config["embedding_size"], geometry)
        embedder.compatible_with = tuple(config.get("compatible_with", []))
        with embedder._at_trained_size(source["image_size"]):
            assign_weights(embedder, learned, folder / WEIGHTS)
        return embedder.eval()

    @classmethod
    def _check_sizes(cls, config: dict[str, Any], geometry: Geometry, learned: dict[str, Tensor], folder: Path) -> None:
        """Check that the configuration's sizes are those of the weights, before memory is allocated."""
        source, method = config["backbone"], config["method"]
        try:
            method_options(method["name"], method["options"])
            outline = outline_backbone(source["name"], image_size=source["image_size"], pool=source["pool"])
            with torch.device("meta"):
                embedder = cls(outline, method["name"], method["options"], config["embedding_size"], geometry)
        except UserError as error:
            raise UserError(f"{folder / CONFIG}: {error}") from error
        check_weights(learned_weights(embedder), learned, folder / WEIGHTS)

    @contextmanager
    def _at_trained_size(self, trained_size: int) -> Iterator[None]:
        """Load trained position embeddings at the size of their training, and resample them afterwards.

        Frozen ones are resampled once to the wanted size, because each resampling costs precision.
        """
        backbone = self.backbone
        wanted = backbone.image_size
        if wanted == trained_size or "vit.pos_embed" not in self.method.trained_in_backbone:
            yield
            return
        backbone.resize(trained_size)
        yield
        backbone.resize(wanted)

    def save_pretrained(self, path: str | Path, *, metrics: dict[str, Any] | None = None) -> None:
        """Write ``adapter.safetensors``, ``config.json`` and a model card, a few MB; the backbone is not copied.

        Args:
            path: The folder; created if it is missing.
            metrics: Measured numbers for the model card, in the shape of ``metrics.json``.

        Raises:
            UserError: no permission, or a full disk. No partial file remains.
        """
        content = save(self._learned_on_cpu())
        config = self._config(content)
        card = model_card(config, self.trainable_parameter_count(), metrics)
        write_model(user_path(path), config, content, card)

    def config(self) -> dict[str, Any]:
        """Return the ``config.json`` that `save_pretrained` would write."""
        return self._config(save(self._learned_on_cpu()))

    def _learned_on_cpu(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in learned_weights(self).items()}

    def _config(self, content: bytes) -> dict[str, Any]:
        backbone = self.backbone
        compatible = {"compatible_with": list(self.compatible_with)} if self.compatible_with else {}
        return {
            "format": FORMAT,
            "backbone": {
                "name": backbone.name,
                # Only the file's name, because this machine's folders do not exist elsewhere.
                "weights": backbone.weights if backbone.weights in NAMED_WEIGHTS else Path(backbone.weights).name,
                "fingerprint": backbone.fingerprint,
                "image_size": backbone.image_size,
                "pool": backbone.pool_type,
            },
            "method": {"name": self.method_name, "options": asdict(self.options)},
            "embedding_size": self.embedding_size,
            "geometry": self.geometry.to_dict(),
            "weights_sha256": hashlib.sha256(content).hexdigest(),
            "preprocessing": _preprocessing(backbone),
            **compatible,
        }

    def train(self, mode: bool = True) -> Embedder:
        """Set the training mode, as for every module; training mode frees the inference form."""
        if mode:
            self._inference = InferenceCache()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        # A copy builds its own inference form.
        return {**self.__dict__, "_inference": InferenceCache()}

    def inference_form(self, precision: str = "auto") -> PixelEmbedder:
        """Return the fastest equivalent of this model in its present state.

        See `fuse`, and `Int8Model` for ``int8``. The result is cached until the model is changed or trained, or another
        precision is requested.
        """
        form = self._inference.get(self, precision)
        self._log_form(form)
        return form


def _preprocessing(backbone: Backbone) -> dict[str, Any]:
    return {"mean": list(backbone.mean), "std": list(backbone.std), "interpolation": "bicubic"}


def _check_same_backbone(backbone: Backbone, config: dict[str, Any], folder: Path) -> None:
    source = config["backbone"]
    if backbone.fingerprint != source["fingerprint"]:
        raise UserError(
            f"{folder} was trained on other weights of {source['name']} (fingerprint {source['fingerprint'][:12]!a}, "
            f"here {backbone.fingerprint[:12]!a}): give it the backbone that it was trained on"
        )
    if config.get("preprocessing") != _preprocessing(backbone):
        raise UserError(
            f"{folder / CONFIG}: its preprocessing is {shown(config.get('preprocessing'))}, that of {source['name']} "
            f"here is {_preprocessing(backbone)}: use the version of timm that the model was trained with"
        )


def model_path(path: Path) -> Path:
    """Return the folder of a model; for the name of a backbone, the folder of its frozen model in the user's cache.

    Raises:
        UserError: the backbone's weights cannot be read, or the cache cannot be written.
    """
    name = str(path)
    if path.name != name or path.exists():
        return path
    if name not in PACKAGED and not timm.is_model(name):
        return path
    folder = cache_folder() / "models" / name
    if not (folder / "config.json").is_file():
        make_folder(folder)
        Embedder(make_backbone(name), "frozen").save_pretrained(folder)
    return folder
