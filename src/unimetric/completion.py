"""From what was typed to a configuration: packaged names, a run's own configuration, names and types checked."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace

from unimetric.arguments import Parser
from unimetric.config import RunConfig, read_options, run_config
from unimetric.errors import UserError, nearest_names
from unimetric.packaged_configs import config_path


def with_defaults(parser: ArgumentParser, argv: list[str], names: Collection[str]) -> list[str]:
    """Complete what was typed: names of packaged configurations, and a run's own configuration."""
    if not argv or argv[0] not in names:
        if argv and not argv[0].startswith("-"):
            raise UserError(f"unknown command {argv[0]!r}; {nearest_names(argv[0], names)}")
        return argv
    command = argv[0]
    if command not in ("train", "evaluate"):
        return argv
    argv = ["--data.strict=true" if argument == "--strict" else argument for argument in argv]
    files, typed = _take_configs(argv[1:])
    # Files come first, so that what is typed wins over them wherever it stands.
    checked = [checked_config(parser, command, file) for file in files]
    without_print = [text for text in typed if not text.startswith("--print_config")]
    known = parser.parse_args([command, *_config_options(checked), *without_print])[command]
    members = known.ensemble if command == "evaluate" else None
    run = known.resume if command == "train" else members[0] if members else known.model_folder
    if command == "evaluate" and run and (option := next((text for text in typed if _is_model_option(text)), None)):
        raise UserError(f"{option.split('=')[0]}: {run} says itself what model it is; leave this option out")
    own = Path(run or "").expanduser() / "config.yaml"
    base = []
    if run and own.is_file():
        base = _config_options([checked_config(parser, command, str(own))])
    if members:
        # Each member may know one dataset only; together they are measured on all.
        base += ["--data.train_datasets=[]", "--data.test_datasets=[]"]
    return [command, *base, *_config_options(checked), *typed]


def _take_configs(arguments: list[str]) -> tuple[list[str], list[str]]:
    """The values of ``--config``, and the other arguments."""
    files, others = [], []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--config" and (file := next(rest, None)) is not None:
            files.append(file)
        elif argument.startswith("--config="):
            files.append(argument.removeprefix("--config="))
        else:
            others.append(argument)
    return files, others


def _config_options(paths: Iterable[str]) -> list[str]:
    return [text for path in paths for text in ("--config", path)]


def _is_model_option(text: str) -> bool:
    """Whether it says what a trained model says itself: where its backbone's weights lie may be another place here."""
    return text.startswith(("--model.", "--model=")) and text.split("=")[0] != "--model.weights"


def checked_config(parser: ArgumentParser, command: str, text: str) -> str:
    """The path of a configuration, by path or packaged name, after making sure that it is good."""
    path = config_path(text)
    read_options(path)
    try:
        parser.parse_args([command, "--config", str(path)])
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    return str(path)


def configured(options: Namespace) -> RunConfig:
    """The configuration that options and files add up to."""
    values = options.as_dict()
    config = run_config({name: values[name] for name in RunConfig.__dataclass_fields__}, "the configuration")
    sources = values.get("sources")
    return replace(config, data=replace(config.data, sources=sources)) if sources else config


def typed_config(values: Mapping[str, Any], origin: str) -> RunConfig:
    """A configuration from nested options, their names and types checked."""
    try:
        # Names first, in this project's words; values of a wrong type are for the parser to tell.
        with suppress(TypeError):
            run_config(values, origin)
        return run_config(_run_parser().parse_object(dict(values)).as_dict(), origin)
    except UserError as error:
        if str(error).startswith(origin):
            raise
        raise UserError(f"{origin}: {error}") from error


@cache
def _run_parser() -> ArgumentParser:
    parser = Parser()
    parser.add_class_arguments(RunConfig)
    return parser
