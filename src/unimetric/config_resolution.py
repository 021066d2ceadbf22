"""The configuration of a run, from the files named on the command line and the options typed there."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from unimetric.arguments import options_parser
from unimetric.config import RunConfig, read_options, run_config
from unimetric.config_values import check_names
from unimetric.errors import InvalidValueError, OptionError, UserError
from unimetric.files import user_path
from unimetric.packaged_configs import config_path


def typed_config(values: Mapping[str, Any], origin: str) -> RunConfig:
    """Return a configuration from nested options; a `UserError` for an unknown name, a wrong type or range.

    Args:
        values: Options by section.
        origin: The file they come from, for error messages.
    """
    return run_config(checked_options(values, origin), origin)


_MODEL_FILES = ("config.json", "config.yaml", "model/config.json")
"""One of these lies in a model's or a run's folder."""


def checked_options(values: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """The same options after a check of names, types and ranges."""
    check_names(RunConfig, values, origin)
    try:
        given = dict(options_parser(RunConfig).parse_object(dict(values), defaults=False).as_dict())
    except InvalidValueError as error:
        raise InvalidValueError(error.option, error.value, error.remedy, origin) from error
    try:
        run_config(given, origin)
    except UserError as error:
        raise UserError(f"{origin}: {error}") from error
    return given


def base_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The options below those that were typed: the named run's own, then the files of ``--config`` in their order.

    Args:
        given: The values that were typed, with ``resume``, ``ensemble``, ``model_folder`` and ``config`` among them.

    Raises:
        OptionError: options of the model are given together with a trained model.
        UserError: a file is missing or bad.
    """
    ensemble = given.get("ensemble")
    trained = ensemble[0] if ensemble else given.get("model_folder")
    typed = [name for name in given.get("model", {}) if name != "weights"]
    if trained and typed:
        place = user_path(trained)
        if place.is_dir() and not any((place / name).is_file() for name in _MODEL_FILES):
            raise OptionError(
                f"--model.{typed[0]}: {trained} is not a trained model; write --data.sources '[{trained}]'"
            )
        raise OptionError(
            f"--model.{typed[0]}: {trained} is a trained model with options of its own; leave this option out"
        )
    run = trained or given.get("resume")
    layers: list[Mapping[str, Any]] = []
    if run and (own := user_path(run) / "config.yaml").is_file():
        layers.append(checked_options(read_options(own), str(own)))
    if ensemble:
        # Each member may have been trained on one dataset; together they are measured on all.
        layers.append({"data": {"train_datasets": [], "test_datasets": []}})
    layers += [checked_options(read_options(path), str(path)) for path in map(config_path, given.get("config", []))]
    merged: dict[str, Any] = {}
    for layer in layers:
        for section, options in layer.items():
            merged[section] = {**merged.get(section, {}), **options}
    return merged


def with_shorthands(config: RunConfig, sources: list[str] | None, strict: bool) -> RunConfig:
    """Return the configuration with its values replaced by the positional SOURCE arguments and ``--strict``."""
    data = config.data
    return replace(config, data=replace(data, sources=sources or data.sources, strict=strict or data.strict))
