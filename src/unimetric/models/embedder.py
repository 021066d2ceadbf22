"""The model that users load, run and save."""

from __future__ import annotations

import copy
import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save
from torch import Tensor

from unimetric.errors import UserError, check_arguments, shown
from unimetric.files import cache_folder, make_folder, user_path, write_json
from unimetric.formats.hub import HubName, fetch_model
from unimetric.geometry import Geometry
from unimetric.models.backbone import Backbone, make_backbone, outline_backbone
from unimetric.models.card import model_card
from unimetric.models.encoding import Encoder, InferenceCache, PixelEmbedder, ShortForm
from unimetric.models.network import Network, assign_weights, check_weights, learned_weights
from unimetric.models.packaged import PACKAGED
from unimetric.models.publishing import push_model
from unimetric.models.saving import (
    CONFIG,
    FORMAT,
    NAMED_WEIGHTS,
    WEIGHTS,
    backbone_weights,
    model_fingerprint,
    read_geometry,
    read_model_config,
    read_weights,
    write_model,
)
from unimetric.models.sizes import Sizes, check_size, sized_fingerprint


@check_arguments
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
        sizes: Nested sizes or rotation, for shorter vectors.
        whole: The model that this one was `shortened` from, in a tuple; None for others.

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
        super().__init__(backbone, method, options or {}, embedding_size, geometry)
        self._inference = InferenceCache()
        self.compatible_with: tuple[str, ...] = ()
        self.sizes = Sizes()
        # In a tuple, so that torch does not register it as a submodule.
        self.whole: tuple[Embedder] | None = None

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        revision: str | None = None,
        image_size: int | None = None,
        weights: str | Path | None = None,
        size: int | None = None,
    ) -> Embedder:
        """Load a model folder that `save_pretrained` wrote. Nothing in it is executed.

        Args:
            path: The folder, with ``config.json`` and ``adapter.safetensors``; or the run folder that contains it; or
                the name of a backbone, such as ``dinov2-small``, for the backbone without training; or that of a model
                on the hub, ``owner/name``. What exists here comes first; see `model_path`.
            revision: Branch, tag or commit of a model on the hub, as in ``owner/name@revision``.
            image_size: Input size in pixels, if different from that of training.
            weights: Another source of the same backbone weights, as for `make_backbone`; a file that was downloaded
                on another machine, for instance.
            size: Numbers of a vector, if fewer than the model's; see `shortened`.

        Raises:
            UserError: the folder or a file is missing, damaged or does not fit, the backbone is a different one, or the
                model has no vectors of that size.
        """
        folder, config = read_model_config(model_path(user_path(path), revision))
        if size is not None:
            check_size(size, config, str(path))
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
        embedder.sizes = Sizes.read(folder, config)
        return embedder.eval() if size is None else embedder.eval().shortened(size)

    @classmethod
    def _check_sizes(cls, config: dict[str, Any], geometry: Geometry, learned: dict[str, Tensor], folder: Path) -> None:
        """Check that the configuration's sizes are those of the weights, before memory is allocated."""
        source, method = config["backbone"], config["method"]
        try:
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
        if self.whole is not None:
            raise UserError("this model has shortened vectors: save the whole model, which gives vectors of every size")
        content = save(self._learned_on_cpu())
        config = self._config(content)
        card = model_card(config, self.trainable_parameter_count(), metrics)
        write_model(user_path(path), config, content, card, self.sizes.rotation)

    def push_to_hub(
        self,
        name: str,
        *,
        metrics: dict[str, Any] | None = None,
        private: bool = False,
        license: str | None = None,
        message: str = "",
        token: str | None = None,
    ) -> str:
        """Write what `save_pretrained` writes into a model on the hub, and ``metrics.json`` beside it.

        Args:
            name: ``owner/name``, or ``owner/name@branch``; made if it does not exist.
            metrics: Measured numbers, in the shape of ``metrics.json``; paths and the machine in them are not pushed.
            private: Make a new model private.
            license: Identifier of the licence for the card, such as ``apache-2.0``.
            message: The commit's first line.
            token: Access token; by default that of HF_TOKEN or of ``hf auth login``.

        Returns:
            The address of the commit.

        Raises:
            UserError: the hub refused or cannot be reached.
        """
        target = HubName.parse(name)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, metrics=metrics)
            if metrics is not None:
                write_json(Path(folder) / "metrics.json", metrics)
            return push_model(Path(folder), target, private=private, license=license, message=message, token=token)

    def config(self) -> dict[str, Any]:
        """Return the ``config.json`` that `save_pretrained` would write."""
        return self._config(save(self._learned_on_cpu()))

    @property
    def fingerprint(self) -> str:
        """SHA-256 of everything that determines the vectors, their size included; see `model_fingerprint`."""
        config = self.config()
        return sized_fingerprint(model_fingerprint(config), config, self.embedding_size)

    def shortened(self, size: int) -> Embedder:
        """Return this model with unit vectors of ``size`` numbers; it shares the weights, and cannot be saved.

        A vector is the first numbers of the rotated whole one, scaled to length 1. It is ``sizes.shorten`` of the whole
        vector, to the bit.

        Raises:
            UserError: the size is out of range, or the model has neither nested sizes nor a rotation.
        """
        if self.whole is not None:
            return self.whole[0].shortened(size)
        config = {"embedding_size": self.embedding_size, "geometry": self.geometry.to_dict(), **self.sizes.to_config()}
        check_size(size, config, "MODEL")
        if size == self.embedding_size:
            return self
        twin = copy.copy(self)
        twin.whole = (self,)
        twin.size_map = torch.from_numpy(self.sizes.matrix(self.embedding_size, size))
        twin.embedding_size = size
        twin.compatible_with = tuple(sized_fingerprint(other, config, size) for other in self.compatible_with)
        return twin

    def _learned_on_cpu(self) -> dict[str, Tensor]:
        return {name: value.detach().cpu().contiguous() for name, value in learned_weights(self).items()}

    def _config(self, content: bytes) -> dict[str, Any]:
        if self.whole is not None:
            return self.whole[0]._config(content)
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
            **self.sizes.to_config(),
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
        if self.whole is not None:
            form: PixelEmbedder = ShortForm(self.whole[0].inference_form(precision), self.sizes, self.embedding_size)
        else:
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


def model_path(path: Path, revision: str | None = None) -> Path:
    """Return the folder of a model given by path or name; ``revision`` is a branch, tag or commit on the hub.

    In this order: what exists here; the name of a backbone, whose frozen model is kept in the user's cache;
    ``owner/name`` or ``owner/name@revision`` of a model on the hub, unless something called ``owner`` exists here;
    ``hf:owner/name`` in any case. Anything else is returned as it is.

    Raises:
        UserError: the backbone's weights cannot be read, the hub has no such model or cannot be reached, or the cache
            cannot be written.
    """
    if path.exists() or (name := HubName.of_path(path)) is None:
        if revision is not None:
            raise UserError(f"the revision is {revision!r}, but {path} is not a model on the hub: leave it out")
        return path if path.exists() else _frozen_model(path)
    if revision is not None and name.revision is not None:
        raise UserError(f"{path} has a revision already: leave out revision={revision!r}")
    return fetch_model(HubName(name.repo, revision or name.revision))


def _frozen_model(path: Path) -> Path:
    name = str(path)
    if path.name != name or (name not in PACKAGED and not timm.is_model(name)):
        return path
    folder = cache_folder() / "models" / name
    if not (folder / "config.json").is_file():
        make_folder(folder)
        Embedder(make_backbone(name), "frozen").save_pretrained(folder)
    return folder
