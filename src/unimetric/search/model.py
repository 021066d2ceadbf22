"""The model of a database: record it, compare it with another, load it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimetric.config import DeviceConfig
from unimetric.errors import ArgumentError, UserError
from unimetric.files import user_path
from unimetric.formats.stored_types import check_type
from unimetric.models.source import ModelSource
from unimetric.search.calibration import Calibration, read_calibration
from unimetric.search.errors import ModelMismatchError
from unimetric.search.stores import create_store
from unimetric.search.stores.base import FORMAT, Store, is_uri

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder


def source_of(
    model: str | Path | None, weights: str | Path | None, device: DeviceConfig | None, size: int | None = None
) -> ModelSource:
    """Return the model that arguments of `SearchIndex` name; without ``model``, the one that a database records."""
    if model is not None and is_uri(model):
        raise UserError(f"the model is {model}: name a folder on this machine")
    path = None if model is None else user_path(model)
    return ModelSource(path, None if weights is None else str(weights), device or DeviceConfig(), size)


def describe(source: ModelSource, metrics: str | Path | None, false_match_rate: float | None) -> dict[str, Any]:
    """Return the record of a new database about its model; arguments and errors are those of `SearchIndex.create`."""
    # Slow to import, and reading a database needs neither.
    from unimetric.models.saving import model_fingerprint, read_model_config
    from unimetric.models.sizes import check_size, sized_fingerprint

    path = source.folder
    folder, config = read_model_config(path)
    size = config["embedding_size"] if source.size is None else source.size
    check_size(size, config, str(source.path))
    whole = model_fingerprint(config)
    file = source.weights_file
    calibration = _find_calibration(path, folder, metrics, size)
    if false_match_rate is not None and calibration is not None:
        calibration.threshold(false_match_rate)
    elif false_match_rate is not None:
        raise UserError(
            f"false_match_rate is {false_match_rate:g}: {path} has no calibrated thresholds; measure it with "
            "unimetric evaluate, and name what that wrote with metrics"
        )
    return {
        "format": FORMAT,
        "model": {
            "folder": str(folder.resolve()),
            "weights": None if file is None else str(Path(file).resolve()),
            "fingerprint": sized_fingerprint(whole, config, size),
            "whole_fingerprint": whole,
            "shortened_to": None if size == config["embedding_size"] else size,
            "backbone": config["backbone"]["name"],
            "method": config["method"]["name"],
            "embedding_size": size,
            "geometry": config.get("geometry", {"name": "sphere"}),
        },
        "calibration": None if calibration is None else calibration.to_dict(),
        "false_match_rate": false_match_rate,
        "index": {"kind": "none", "rows": 0, "name": None, "efforts": []},
    }


def create_for_model(
    db: str | Path,
    source: ModelSource,
    metrics: str | Path | None,
    false_match_rate: float | None,
    group_copies: bool | None,
    vector_type: str | None,
) -> Store:
    """Open a database for writing, or make one; arguments and errors are those of `SearchIndex.create`."""
    about = describe(source, metrics, false_match_rate)
    about["vector_type"] = check_type(vector_type or "float32")
    if about["vector_type"] != "float32" and about["model"]["geometry"]["name"] != "sphere":
        raise UserError(
            f"--vector_type is {vector_type}: {source.path} is a hyperbolic model, whose points need float32"
        )
    store = create_store(db, about, about["model"]["embedding_size"])
    shorter = store.vector_size < about["model"]["embedding_size"]
    if source.size is None and _is_of_same_model(store, about) and shorter:
        about = describe(replace(source, size=store.vector_size), metrics, false_match_rate)
    _check_same_model(store, about, str(source.path))
    present = store.about.get("vector_type", "float32")
    if vector_type is not None and vector_type != present:
        raise UserError(
            f"--vector_type is {vector_type}: {store.place} holds vectors of {present}; leave it out, or name another "
            "database"
        )
    _renew(store, about, metrics is not None, false_match_rate=false_match_rate, group_copies=group_copies)
    return store


def _renew(store: Store, about: dict[str, Any], measured: bool, **recorded: Any) -> None:
    """Record that the model has moved or was measured again, and further values that are not None.

    A measurement that the user did not name does not replace a calibration on the database.
    """
    renewed = {**store.about, "model": about["model"]}
    own = (store.about["calibration"] or {}).get("database", False)
    if about["calibration"] is not None and (measured or not own):
        renewed["calibration"] = about["calibration"]
    renewed |= {name: value for name, value in recorded.items() if value is not None}
    if renewed != store.about:
        store.write_about(renewed)


def _check_same_model(store: Store, about: dict[str, Any], name: str) -> None:
    """Refuse to write vectors of another model, called ``name``, into a database."""
    recorded, given = store.about["model"], about["model"]
    if _is_of_same_model(store, about) and given["fingerprint"] != recorded["fingerprint"]:
        sizes = recorded["embedding_size"], given["embedding_size"]
        reason = (
            f"holds vectors of {sizes[0]} numbers, not {sizes[1]}: leave --size out, or name another database"
            if sizes[0] != sizes[1]
            else f"holds vectors of {sizes[0]} numbers by another rotation of {name}: index the images anew"
        )
        raise ModelMismatchError(f"the search database {store.place} {reason}")
    _check_fingerprint(store, given["fingerprint"], name)


def _is_of_same_model(store: Store, about: dict[str, Any]) -> bool:
    recorded = store.about["model"]
    return bool(recorded.get("whole_fingerprint", recorded["fingerprint"]) == about["model"]["whole_fingerprint"])


def check_embedder(store: Store, embedder: Embedder) -> None:
    """Refuse an embedder that is not the database's model."""
    if not hasattr(embedder, "fingerprint"):
        raise ArgumentError(f"embedder is of type {type(embedder).__name__}: give an Embedder")
    _check_fingerprint(store, embedder.fingerprint, "the given embedder")


def load_embedder(store: Store, source: ModelSource) -> Embedder:
    """Load the database's model from its source, or the recorded one; a `UserError` if that does not hold it."""
    # torch takes seconds to load.
    from unimetric.models.devices import choose_device
    from unimetric.models.embedder import Embedder
    from unimetric.models.saving import model_fingerprint, read_model_config
    from unimetric.models.sizes import check_size, sized_fingerprint

    recorded = store.about["model"]
    place = Path(recorded["folder"]) if source.path is None else source.folder
    try:
        folder, config = read_model_config(place)
    except UserError as error:
        raise UserError(f"the model of the search database {store.place}: {error}; name it with --model") from error
    size = recorded["embedding_size"]
    if size < config["embedding_size"]:
        check_size(size, config, str(place))
    fingerprints = (model_fingerprint(config), *config.get("compatible_with", ()))
    own, *compatible = (sized_fingerprint(each, config, size) for each in fingerprints)
    if recorded["fingerprint"] not in compatible:
        _check_fingerprint(store, own, str(place))
    file = source.weights or (recorded["weights"] if source.path is None else None)
    embedder = Embedder.from_pretrained(folder, weights=file, size=size)
    return embedder.to(choose_device(source.device.accelerator))


def _check_fingerprint(store: Store, fingerprint: str, name: str) -> None:
    recorded = store.about["model"]
    if fingerprint != recorded["fingerprint"]:
        raise ModelMismatchError(
            f"the search database {store.place} holds vectors of another model ({recorded['folder']}, fingerprint "
            f"{recorded['fingerprint'][:12]}) than {name} ({fingerprint[:12]}); use that model, or another database"
        )


def _find_calibration(path: Path, folder: Path, metrics: str | Path | None, size: int) -> Calibration | None:
    """Return the calibration of vectors of a size in the named measurement, or else in the folder's own."""
    if metrics is not None:
        named_place = user_path(metrics)
        file = named_place / "metrics.json" if named_place.is_dir() else named_place
        calibration = read_calibration(file, size)
        if calibration is None:
            raise UserError(
                f"{file} has no thresholds for vectors of {size} numbers; measure the model again with: "
                f"unimetric evaluate --size {size}"
            )
        return calibration
    places = [path, path / "evaluation"]
    if folder.name == "model" and (folder.parent / "config.yaml").is_file():
        places.append(folder.parent)
    for place in places:
        if (place / "metrics.json").is_file():
            calibration = read_calibration(place / "metrics.json", size)
            if calibration is not None:
                return calibration
    return None
