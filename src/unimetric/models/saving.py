"""Model folders: ``config.json``, ``adapter.safetensors`` and a model card. Loading reads data and runs no code."""

import hashlib
import json
import os.path
import re
import tempfile
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from unimetric.config import MAX_EMBEDDING_SIZE, MAX_IMAGE_SIZE
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
from unimetric.geometry import Geometry, make_geometry
from unimetric.models.backbone import POOLS
from unimetric.models.sizes import ROTATION, Rotation, Sizes

FORMAT = 1
WEIGHTS, CONFIG, CARD = "adapter.safetensors", "config.json", "README.md"

NAMED_WEIGHTS = ("pretrained", "random")

_LARGEST_CONFIG = 2**20
"""Maximum size of a ``config.json`` in bytes; typical ones have about a thousand."""
_DEEPEST = 16
"""Maximum nesting depth of a ``config.json``."""

T = TypeVar("T")


def write_model(
    folder: Path, config: dict[str, Any], weights: bytes, card: str, rotation: Rotation | None = None
) -> None:
    """Write a model folder: ``weights`` are the content of its safetensors file, ``card`` the text of its README.

    Raises:
        UserError: no permission, or a full disk. No partial file remains.
    """
    make_folder(folder)
    # Write all files before renaming the first, so that a full disk leaves an older model intact.
    with explain_os_error(folder, "write to"), tempfile.TemporaryDirectory(prefix=".saving-", dir=folder) as staging:
        staged = Path(staging)
        write_bytes(staged / WEIGHTS, weights)
        write_text(staged / CARD, card)
        if rotation is not None:
            write_bytes(staged / ROTATION, rotation.to_bytes())
        write_json(staged / CONFIG, config)
        # Rename the configuration last: it holds the weights' checksum, so a partly replaced folder does not load.
        for name in (WEIGHTS, *([] if rotation is None else [ROTATION]), CARD, CONFIG):
            (staged / name).replace(folder / name)
        flush_folder(folder)


def write_rotation(folder: Path, config: dict[str, Any], rotation: Rotation) -> None:
    """Add a rotation to a model folder with this ``config.json``, or replace its rotation."""
    about = config | Sizes(rotation=rotation).to_config()
    with explain_os_error(folder, "write to"):
        write_bytes(folder / ROTATION, rotation.to_bytes())
        write_json(folder / CONFIG, about)
        flush_folder(folder)


def read_model_config(path: Path) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a model, which may be inside a run folder, and its ``config.json``, without reading weights.

    Raises:
        UserError: the folder contains no model, or its configuration is damaged.
    """
    inside = path / "model"
    folder = inside if not (path / CONFIG).is_file() and (inside / CONFIG).is_file() else path
    return folder, _read_config(folder)


def model_fingerprint(config: dict[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of everything that determines a model's vectors.

    Vectors of models with the same fingerprint may be mixed. It covers the backbone's and the learned weights, the
    input size, the method and the geometry, but neither paths nor the precision of the arithmetic. The rotation is not
    covered, because whole vectors do not depend on it; shorter ones have a `sized_fingerprint`.
    """
    backbone = {name: value for name, value in config["backbone"].items() if name != "weights"}
    content = {name: value for name, value in config.items() if name != "rotation"} | {"backbone": backbone}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_geometry(path: Path, config: dict[str, Any]) -> Geometry:
    """Return the geometry of the embeddings, from the content of ``config.json``."""
    constants = dict(_get(path, config, "geometry", dict))
    name = _get(path, config, "geometry.name", str)
    del constants["name"]
    try:
        return make_geometry(name, **constants)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def backbone_weights(folder: Path, recorded: str, given: str | Path | None) -> str:
    """Return the source of the backbone's weights: the ``given`` one, else the recorded one."""
    if given is not None:
        return str(given)
    if recorded in NAMED_WEIGHTS:
        return recorded
    # Only the name, so that a downloaded configuration cannot choose which file is read.
    file = folder / Path(recorded).name
    # `Path.is_file` raises for names that no file can have.
    if not os.path.isfile(file):  # noqa: PTH113
        raise UserError(
            f"the backbone's weights came from the file {shown(Path(recorded).name)}: put it into this folder, "
            "or load with from_pretrained(path, weights=FILE)"
        )
    return str(file)


def read_weights(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read the learned weights and check that ``config.json`` was written with them."""
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
    # RuntimeError: torch rejects a type or a size.
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise UserError(f"{path} is damaged or cut off ({cause(error)}): copy the whole model folder again") from error


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path} does not exist: name the folder of a finished run or of a saved model, or a backbone")
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
    _check_sizes(path, config)
    for key, largest in (("embedding_size", MAX_EMBEDDING_SIZE), ("backbone.image_size", MAX_IMAGE_SIZE)):
        if not 1 <= _get(path, config, key, int) <= largest:
            raise UserError(f"{path}: {key} is {shown(_get(path, config, key, int))}; use 1 to {largest}")
    return config  # type: ignore[no-any-return]


def _check_sizes(path: Path, config: dict[str, Any]) -> None:
    nested, rotation = config.get("nested_sizes", []), config.get("rotation")
    sizes = nested if isinstance(nested, list) else [None]
    if not all(type(size) is int and 1 <= size < _get(path, config, "embedding_size", int) for size in sizes):
        raise UserError(f"{path}: nested_sizes is {shown(nested)}, not a list of sizes below the embedding size")
    if rotation is not None and not (
        isinstance(rotation, dict) and _is_fingerprint(rotation.get("sha256")) and type(rotation.get("images")) is int
    ):
        raise UserError(f"{path}: rotation is {shown(rotation)}, not a fingerprint and a number of images")


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
