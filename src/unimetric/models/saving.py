"""Model folders: ``config.json``, ``adapter.safetensors`` and a model card. Only data is read, nothing is executed."""

from __future__ import annotations

import hashlib
import json
import os.path
import re
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from unimetric.errors import UserError, cause, shown
from unimetric.files import (
    explain_os_error,
    flush_folder,
    make_folder,
    sha256_of_file,
    write_bytes,
    write_json,
    write_text,
)
from unimetric.geometry import Geometry, Sphere, make_geometry
from unimetric.models.backbone import POOLS, Backbone, make_backbone, outline_backbone
from unimetric.models.card import model_card
from unimetric.models.petl import method_options

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder

FORMAT = 1
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"

_NAMED_WEIGHTS = ("pretrained", "random")

_LARGEST_CONFIG = 2**20
"""Bytes of a ``config.json``, at most; one has about a thousand."""
_LARGEST_IMAGE = 4096
"""Pixels of a side, at most: the position embeddings are made in the size that is asked for."""
_DEEPEST = 16
"""How far the values of a ``config.json`` may be nested."""

T = TypeVar("T")


def save_model(embedder: Embedder, folder: Path, metrics: dict[str, Any] | None = None) -> None:
    """Write a model folder; see `Embedder.save_pretrained`."""
    make_folder(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in learned_weights(embedder).items()}
    # All files are written before the first is renamed: a full disk leaves the model that was there as it was.
    with explain_os_error(folder, "write to"), tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as staging:
        staged = Path(staging)
        # Through bytes: save_file's errors do not say that they are the operating system's.
        write_bytes(staged / WEIGHTS, save(weights))
        config = _config(embedder, sha256_of_file(staged / WEIGHTS))
        write_text(staged / CARD, model_card(config, embedder.trainable_parameter_count(), metrics))
        write_json(staged / CONFIG, config)
        # The configuration last, because it holds the weights' checksum: a folder cut off in between does not load.
        for name in (WEIGHTS, CARD, CONFIG):
            (staged / name).replace(folder / name)
        flush_folder(folder)


def model_config(embedder: Embedder) -> dict[str, Any]:
    """What ``config.json`` would hold, were the model saved."""
    weights = {name: value.detach().cpu().contiguous() for name, value in learned_weights(embedder).items()}
    return _config(embedder, hashlib.sha256(save(weights)).hexdigest())


def read_model_config(path: Path) -> tuple[Path, dict[str, Any]]:
    """The folder of a model, which may be in a run folder, and its ``config.json``; no weights are read.

    Raises:
        UserError: the folder holds no model, or its configuration is damaged.
    """
    folder = _model_folder(path)
    return folder, _read_config(folder)


def model_fingerprint(config: dict[str, Any]) -> str:
    """SHA-256 of all that decides a model's vectors, in hexadecimal: two models with the same one may be mixed.

    It covers the backbone's and the learned weights, the input size, the method and the geometry; neither paths nor the
    precision of the arithmetic.
    """
    backbone = {name: value for name, value in config["backbone"].items() if name != "weights"}
    geometry = config.get("geometry", Sphere().to_dict())
    content = {**config, "backbone": backbone, "geometry": geometry}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _model_folder(path: Path) -> Path:
    inside = path / "model"
    return inside if not (path / CONFIG).is_file() and (inside / CONFIG).is_file() else path


def _config(embedder: Embedder, weights_sha256: str) -> dict[str, Any]:
    backbone = embedder.backbone
    compatible = {"compatible_with": list(embedder.compatible_with)} if embedder.compatible_with else {}
    return {
        "format": FORMAT,
        "backbone": {
            "name": backbone.name,
            # A file by its name alone: the folders of this machine are nobody else's.
            "weights": backbone.weights if backbone.weights in _NAMED_WEIGHTS else Path(backbone.weights).name,
            "fingerprint": backbone.fingerprint,
            "image_size": backbone.image_size,
            "pool": backbone.pool_type,
        },
        "method": {"name": embedder.method_name, "options": asdict(embedder.options)},
        "embedding_size": embedder.embedding_size,
        "geometry": embedder.geometry.to_dict(),
        "weights_sha256": weights_sha256,
        "preprocessing": _preprocessing(backbone),
        **compatible,
    }


def _preprocessing(backbone: Backbone) -> dict[str, Any]:
    return {"mean": list(backbone.mean), "std": list(backbone.std), "interpolation": "bicubic"}


def load_model(
    kind: type[Embedder], folder: Path, image_size: int | None = None, backbone_weights: str | Path | None = None
) -> Embedder:
    """Read a model folder, or the one in a run folder; see `Embedder.from_pretrained`."""
    folder, config = read_model_config(folder)
    source = config["backbone"]
    geometry = _geometry(folder / CONFIG, config)
    weights = _read_weights(folder / WEIGHTS, config["weights_sha256"])
    _check_sizes(kind, config, geometry, weights, folder)
    try:
        backbone = make_backbone(
            source["name"],
            weights=_backbone_weights(folder, source["weights"], backbone_weights),
            image_size=source["image_size"] if image_size is None else image_size,
            pool=source["pool"],
        )
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
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
    method = config["method"]
    embedder = kind(backbone, method["name"], method["options"], config["embedding_size"], geometry)
    embedder.compatible_with = tuple(config.get("compatible_with", []))
    with _at_trained_size(embedder, source["image_size"]):
        assign_weights(embedder, weights, folder / WEIGHTS)
    return embedder.eval()


def _check_sizes(
    kind: type[Embedder], config: dict[str, Any], geometry: Geometry, weights: dict[str, Tensor], folder: Path
) -> None:
    """Refuse a configuration that says other sizes than the weights have, before memory is taken for them."""
    source, method = config["backbone"], config["method"]
    try:
        method_options(method["name"], method["options"])
        outline = outline_backbone(source["name"], image_size=source["image_size"], pool=source["pool"])
        with torch.device("meta"):
            embedder = kind(outline, method["name"], method["options"], config["embedding_size"], geometry)
    except UserError as error:
        raise UserError(f"{folder / CONFIG}: {error}") from error
    check_weights(learned_weights(embedder), weights, folder / WEIGHTS)


def _geometry(path: Path, config: dict[str, Any]) -> Geometry:
    """Where the embeddings lie; on the sphere, where a model from before there was anything else does not say."""
    if "geometry" not in config:
        return Sphere()
    constants = dict(_get(path, config, "geometry", dict))
    name = _get(path, config, "geometry.name", str)
    del constants["name"]
    try:
        return make_geometry(name, **constants)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


@contextmanager
def _at_trained_size(embedder: Embedder, trained_size: int) -> Iterator[None]:
    """Position embeddings that were trained come in the size that they were trained at, and are resampled afterwards.

    Frozen ones are made in the wanted size from the start: each resampling costs precision.
    """
    backbone = embedder.backbone
    wanted = backbone.image_size
    if wanted == trained_size or "vit.pos_embed" not in embedder.method.trained_in_backbone:
        yield
        return
    backbone.resize(trained_size)
    yield
    backbone.resize(wanted)


def _backbone_weights(folder: Path, recorded: str, given: str | Path | None) -> str:
    """Where to take the backbone's weights from: as the caller says, else as recorded."""
    if given is not None:
        return str(given)
    if recorded in _NAMED_WEIGHTS:
        return recorded
    # The name alone: a configuration from elsewhere does not choose which file is read.
    file = folder / Path(recorded).name
    # `Path.is_file` has errors of its own for names that no file can have.
    if not os.path.isfile(file):  # noqa: PTH113
        raise UserError(
            f"the backbone's weights came from the file {shown(Path(recorded).name)}: put it into this folder, "
            "or load with from_pretrained(path, weights=FILE)"
        )
    return str(file)


def learned_weights(embedder: Embedder) -> dict[str, Tensor]:
    """Everything that is learned, by name: all of the state but what is frozen of the backbone."""
    state = embedder.state_dict()
    return {name: state[name] for name in learned_names(embedder, state)}


def learned_names(embedder: Embedder, names: Iterable[str]) -> list[str]:
    """Those of an embedder's parameters or state that are learned."""
    trained = {f"backbone.{name}" for name in embedder.method.trained_in_backbone}
    return [name for name in names if not name.startswith("backbone.") or name in trained]


def assign_weights(embedder: Embedder, weights: dict[str, Tensor], origin: Path) -> None:
    """Put learned weights, as `learned_weights` gives them, into an embedder.

    Raises:
        UserError: a weight is missing, unknown, of another shape or type, or not finite; ``origin`` is named.
    """
    check_weights(learned_weights(embedder), weights, origin)
    embedder.load_state_dict(weights, strict=False)


def check_weights(wanted: dict[str, Tensor], weights: dict[str, Tensor], origin: Path) -> None:
    """Refuse weights that could not be put where the ``wanted`` ones are; their values are not looked at.

    Raises:
        UserError: as `assign_weights`.
    """
    if missing := sorted(wanted.keys() - weights.keys()):
        raise UserError(
            f"{origin} lacks {missing[0]} ({len(missing)} missing): it is not a model of this configuration"
        )
    if unknown := sorted(weights.keys() - wanted.keys()):
        raise UserError(f"{origin} holds an unknown {shown(unknown[0])[1:-1]}: it is not a model of this configuration")
    for name, value in weights.items():
        if value.shape != wanted[name].shape or value.dtype != wanted[name].dtype:
            raise UserError(
                f"{origin}: {name} is {value.dtype} {list(value.shape)}, but the configuration wants "
                f"{wanted[name].dtype} {list(wanted[name].shape)}: the files are of different models"
            )
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(f"{origin}: {name} holds values that are not finite: train the model again")


def _read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    if not path.is_file():
        raise UserError(f"{path} is missing: copy the whole model folder again")
    try:
        with explain_os_error(path, "read"):
            if sha256_of_file(path) != sha256:
                raise UserError(
                    f"{path} is not the file that {CONFIG} was written with: it is damaged, cut off or another "
                    "model's; copy the whole model folder again"
                )
            weights: dict[str, Tensor] = load_file(path)
            return weights
    # The last: what torch says of a type or a size that it does not know.
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or cut off ({cause(error)}): copy the whole model folder again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder of a finished run or of a saved model")
    try:
        with explain_os_error(path, "read"):
            if (size := path.stat().st_size) > _LARGEST_CONFIG:
                raise UserError(f"{path} has {size} bytes: it is not a unimetric model")
            config = json.loads(path.read_text(encoding="utf-8"))
        deep = _is_deeper(config, _DEEPEST)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({cause(error)}): copy the whole model folder again") from error
    except RecursionError:
        deep = True
    if deep:
        raise UserError(f"{path} is nested deeper than {_DEEPEST} levels: it is not a unimetric model")
    version = _get(path, config, "format", int)
    if version != FORMAT:
        raise UserError(
            f"{path} has format {shown(version)}, this version of unimetric reads {FORMAT}: update unimetric"
        )
    for key in ("backbone.name", "backbone.weights", "backbone.fingerprint", "backbone.pool", "method.name"):
        _get(path, config, key, str)
    if config["backbone"]["pool"] not in POOLS:
        raise UserError(f"{path}: backbone.pool is {shown(config['backbone']['pool'])}; use {', '.join(POOLS)}")
    _get(path, config, "method.options", dict)
    _get(path, config, "weights_sha256", str)
    compatible = config.get("compatible_with", [])
    if not isinstance(compatible, list) or not all(_is_fingerprint(value) for value in compatible):
        raise UserError(f"{path}: compatible_with is {shown(compatible)}, not a list of fingerprints")
    for key, largest in (("embedding_size", 2**16), ("backbone.image_size", _LARGEST_IMAGE)):
        if not 1 <= _get(path, config, key, int) <= largest:
            raise UserError(f"{path}: {key} is {shown(_get(path, config, key, int))}; use 1 to {largest}")
    return config  # type: ignore[no-any-return]


def _is_fingerprint(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_deeper(value: object, levels: int) -> bool:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return any(levels == 0 or _is_deeper(each, levels - 1) for each in inner)


def _get(path: Path, config: Any, key: str, kind: type[T]) -> T:
    value = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise UserError(f"{path} lacks {key}: it is not a unimetric model")
        value = value[part]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise UserError(f"{path}: {key} is {shown(value)}, not a {kind.__name__}: it is not a unimetric model")
    return value
