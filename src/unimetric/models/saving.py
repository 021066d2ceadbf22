"""Model folders: ``config.json``, ``adapter.safetensors`` and a model card. Only data is read, nothing is executed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from unimetric.errors import UserError
from unimetric.files import (
    explain_os_error,
    make_folder,
    sha256_of_file,
    write_atomically,
    write_json,
    write_text,
)
from unimetric.models.backbone import make_backbone
from unimetric.models.card import model_card

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder

FORMAT = 1
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"

T = TypeVar("T")


def save_model(embedder: Embedder, folder: Path, metrics: dict[str, Any] | None = None) -> None:
    """Write a model folder; see `Embedder.save_pretrained`."""
    make_folder(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in learned_weights(embedder).items()}
    write_atomically(folder / WEIGHTS, lambda temporary: save_file(weights, temporary))
    backbone = embedder.backbone
    config = {
        "format": FORMAT,
        "backbone": {
            "name": backbone.name,
            "weights": backbone.weights,
            "fingerprint": backbone.fingerprint,
            "image_size": backbone.image_size,
            "pool": backbone.pool_type,
        },
        "method": {"name": embedder.method_name, "options": asdict(embedder.options)},
        "embedding_size": embedder.embedding_size,
        "weights_sha256": sha256_of_file(folder / WEIGHTS),
        "preprocessing": {"mean": list(backbone.mean), "std": list(backbone.std), "interpolation": "bicubic"},
    }
    write_text(folder / CARD, model_card(config, embedder.trainable_parameter_count(), metrics))
    # Last, because it is what makes the folder a model: a folder cut off before this line does not load.
    write_json(folder / CONFIG, config)


def load_model(kind: type[Embedder], folder: Path, image_size: int | None = None) -> Embedder:
    """Read a model folder, or the one in a run folder; see `Embedder.from_pretrained`."""
    if not (folder / CONFIG).is_file() and (folder / "model" / CONFIG).is_file():
        folder = folder / "model"
    config = _read_config(folder)
    source = config["backbone"]
    if (folder / WEIGHTS).is_file() and sha256_of_file(folder / WEIGHTS) != config["weights_sha256"]:
        raise UserError(
            f"{folder / WEIGHTS} is not the file that {CONFIG} was written with: it is damaged, cut off or another "
            "model's; copy the whole model folder again"
        )
    weights = _read_weights(folder / WEIGHTS)
    backbone = make_backbone(
        source["name"],
        weights=source["weights"],
        image_size=source["image_size"] if image_size is None else image_size,
        pool=source["pool"],
    )
    if backbone.fingerprint != source["fingerprint"]:
        raise UserError(
            f"{folder} was trained on other weights of {source['name']} (fingerprint {source['fingerprint'][:12]}, "
            f"here {backbone.fingerprint[:12]}): give it the backbone that it was trained on"
        )
    embedder = kind(backbone, config["method"]["name"], config["method"]["options"], config["embedding_size"])
    assign_weights(embedder, weights, folder / WEIGHTS)
    return embedder.eval()


def learned_weights(embedder: Embedder) -> dict[str, Tensor]:
    """Everything that is learned, by name: all of the state but the frozen backbone's."""
    return {name: value for name, value in embedder.state_dict().items() if not name.startswith("backbone.")}


def assign_weights(embedder: Embedder, weights: dict[str, Tensor], origin: Path) -> None:
    """Put learned weights, as `learned_weights` gives them, into an embedder.

    Raises:
        UserError: a weight is missing, unknown, of another shape or type, or not finite; ``origin`` is named.
    """
    wanted = learned_weights(embedder)
    if missing := sorted(wanted.keys() - weights.keys()):
        raise UserError(
            f"{origin} lacks {missing[0]} ({len(missing)} missing): it is not a model of this configuration"
        )
    if unknown := sorted(weights.keys() - wanted.keys()):
        raise UserError(f"{origin} holds an unknown {unknown[0]}: it is not a model of this configuration")
    for name, value in weights.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise UserError(
                f"{origin}: {name} is {value.dtype} {list(value.shape)}, but the configuration wants "
                f"{wanted[name].dtype} {list(wanted[name].shape)}: the files are of different models"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{origin}: {name} holds values that are not finite: train the model again")
    embedder.load_state_dict(weights, strict=False)


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the whole model folder again")
    try:
        with explain_os_error(path, "read"):
            weights: dict[str, Tensor] = load_file(path)
            return weights
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is damaged or cut off ({error}): copy the whole model folder again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder of a finished run or of a saved model")
    try:
        with explain_os_error(path, "read"):
            config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): copy the whole model folder again") from error
    version = _get(path, config, "format", int)
    if version != FORMAT:
        raise UserError(f"{path} has format {version}, this version of unimetric reads {FORMAT}: update unimetric")
    for key in ("backbone.name", "backbone.weights", "backbone.fingerprint", "backbone.pool", "method.name"):
        _get(path, config, key, str)
    if config["backbone"]["pool"] not in ("auto", "token", "avg"):
        raise UserError(f"{path}: backbone.pool is {config['backbone']['pool']!r}; use auto, token or avg")
    _get(path, config, "method.options", dict)
    _get(path, config, "weights_sha256", str)
    for key in ("embedding_size", "backbone.image_size"):
        if not 1 <= _get(path, config, key, int) <= 2**16:
            raise UserError(f"{path}: {key} is {_get(path, config, key, int)}; use 1 to 65536")
    return config  # type: ignore[no-any-return]


def _get(path: Path, config: Any, key: str, kind: type[T]) -> T:
    value = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{path} lacks {key}: it is not a unimetric model")
        value = value[part]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{path}: {key} is {value!r}, not a {kind.__name__}: it is not a unimetric model")
    return value
