"""The model of a database: record it, compare it with another, load it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from unimetric.errors import UserError
from unimetric.files import user_path
from unimetric.search.calibration import DEFAULT_RATE, Calibration, read_calibration
from unimetric.search.errors import ModelMismatchError
from unimetric.search.stores.base import FORMAT, Store, is_uri

if TYPE_CHECKING:
    from unimetric.config import DeviceConfig
    from unimetric.models.embedder import Embedder


def describe(
    model: str | Path, weights: str | Path | None, metrics: str | Path | None, false_match_rate: float | None
) -> dict[str, Any]:
    """Return the record of a new database about its model; the arguments are those of `SearchIndex.create`.

    Raises:
        UserError: the model or its measurement cannot be read, or it was not calibrated at that rate.
    """
    # Slow to import, and reading a database needs neither.
    from unimetric.models.saving import model_fingerprint, read_model_config
    from unimetric.models.source import ModelSource

    if is_uri(model):
        raise UserError(f"the model is {model}: name a folder on this machine")
    path = ModelSource(user_path(model)).folder
    folder, config = read_model_config(path)
    file = ModelSource(path, None if weights is None else str(weights)).weights_file
    calibration = _find_calibration(path, folder, metrics)
    rate = DEFAULT_RATE if false_match_rate is None else false_match_rate
    if calibration is not None:
        calibration.threshold(rate)
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
            "fingerprint": model_fingerprint(config),
            "backbone": config["backbone"]["name"],
            "method": config["method"]["name"],
            "embedding_size": config["embedding_size"],
            "geometry": config.get("geometry", {"name": "sphere"}),
        },
        "calibration": None if calibration is None else calibration.to_dict(),
        "false_match_rate": rate,
        "index": {"kind": "none", "rows": 0, "name": None, "efforts": []},
    }


def renew(store: Store, about: dict[str, Any], measured: bool, false_match_rate: float | None) -> None:
    """Record that the model has moved or was measured again, and keep the rest of a database's record.

    Args:
        store: The database.
        about: What `describe` returned.
        measured: True if the user named the measurement; another one does not replace a calibration on the database.
        false_match_rate: The rate to record; None to keep it.
    """
    renewed = {**store.about, "model": about["model"]}
    own = (store.about["calibration"] or {}).get("database", False)
    if about["calibration"] is not None and (measured or not own):
        renewed["calibration"] = about["calibration"]
    if false_match_rate is not None:
        renewed["false_match_rate"] = false_match_rate
    if renewed != store.about:
        store.write_about(renewed)


def check_same_model(store: Store, about: dict[str, Any], name: str) -> None:
    """Refuse to write vectors of another model, called ``name``, into a database.

    Raises:
        UserError: it is another one.
    """
    _check_fingerprint(store, about["model"]["fingerprint"], name)


def check_embedder(store: Store, embedder: Embedder) -> None:
    """Refuse an embedder that is not the database's model.

    Raises:
        UserError: it is another one.
    """
    from unimetric.models.saving import model_fingerprint

    _check_fingerprint(store, model_fingerprint(embedder.config()), "the given embedder")


def load_embedder(
    store: Store, model: str | Path | None, weights: str | Path | None, device: DeviceConfig | None
) -> Embedder:
    """Load the database's model from the recorded folder, or from another one.

    Raises:
        UserError: the folder is missing or damaged, or holds another model.
    """
    # torch takes seconds to load.
    from unimetric.models.devices import choose_device
    from unimetric.models.embedder import Embedder
    from unimetric.models.saving import model_fingerprint, read_model_config
    from unimetric.models.source import ModelSource

    recorded = store.about["model"]
    place = ModelSource(user_path(model)).folder if model else Path(recorded["folder"])
    try:
        folder, config = read_model_config(place)
    except UserError as error:
        raise UserError(f"the model of the search database {store.place}: {error}; name it with --model") from error
    if recorded["fingerprint"] not in config.get("compatible_with", []):
        _check_fingerprint(store, model_fingerprint(config), str(place))
    file = weights or (None if model else recorded["weights"])
    embedder = Embedder.from_pretrained(folder, weights=file)
    return embedder.to(choose_device("auto" if device is None else device.accelerator))


def _check_fingerprint(store: Store, fingerprint: str, name: str) -> None:
    recorded = store.about["model"]
    if fingerprint != recorded["fingerprint"]:
        raise ModelMismatchError(
            f"the search database {store.place} holds vectors of another model ({recorded['folder']}, fingerprint "
            f"{recorded['fingerprint'][:12]}) than {name} ({fingerprint[:12]}); use that model, or another database"
        )


def _find_calibration(path: Path, folder: Path, metrics: str | Path | None) -> Calibration | None:
    """The calibration of the named measurement, or else of the run or model folder's own, if there is one."""
    if metrics is not None:
        named_place = user_path(metrics)
        file = named_place / "metrics.json" if named_place.is_dir() else named_place
        calibration = read_calibration(file)
        if calibration is None:
            raise UserError(f"{file} has no thresholds; measure the model again with: unimetric evaluate")
        return calibration
    places = [path, path / "evaluation"]
    if folder.name == "model" and (folder.parent / "config.yaml").is_file():
        places.append(folder.parent)
    for place in places:
        if (place / "metrics.json").is_file():
            calibration = read_calibration(place / "metrics.json")
            if calibration is not None:
                return calibration
    return None
