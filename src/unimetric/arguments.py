"""The command line of a function: its signature lists the options, its docstring is their help.

Parameters before the ``*`` are positional arguments, those after it options. A dataclass contributes its fields, as
``--name.field``, or as ``--field`` if the parameter is called ``options``; with a `Group` in the annotation, its fields
are options as if they were parameters. `Without`, `Common` and `Group` go into the annotation:
``device: Annotated[DeviceConfig, Without({"machines"})]``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, cast

from jsonargparse import ArgumentParser

from unimetric.config import RunConfig, run_config
from unimetric.config_values import from_options
from unimetric.errors import (
    InvalidValueError,
    MissingOptionError,
    OptionError,
    UnknownOptionError,
    UserError,
    nearest_names,
    shown,
)
from unimetric.files import user_path
from unimetric.option_help import Option, help_page
from unimetric.option_types import expected, misread
from unimetric.packaged_configs import config_names

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
else:
    from jsonargparse.typing import NonNegativeInt, PositiveInt

__all__ = ["Command", "Common", "Group", "NonNegativeInt", "PositiveInt", "Without", "options_parser"]


class Without(frozenset[str]):
    """Fields of a dataclass, as ``field`` or ``section.field``, or whole sections, that the command does not use."""


class Common(frozenset[str]):
    """Fields of a dataclass that ``--help`` lists; ``--help-all`` lists the others too."""


class Group(str):
    """Heading of an option, or of a dataclass of options, in ``--help``; "" for the first group."""


class _Parser(ArgumentParser):
    """Parser whose errors are `UserError`s instead of a page of usage."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if isinstance(ex, UserError):
            raise ex
        if isinstance(ex, argparse.ArgumentError) and ex.argument_name:
            raise OptionError(f"{ex.argument_name}: {ex.message}; see {self.prog} --help") from ex
        # Without an exception, arguments are left over.
        remedy = "; write all SOURCE arguments side by side, before or after the options" if ex is None else ""
        raise OptionError(f"{message}{remedy}; see {self.prog} --help") from ex


@functools.cache
def _typed(kind: Any) -> type[argparse.Action]:
    """An action like ``kind`` that reports a value of a wrong type as `InvalidValueError`."""
    check = kind._check_type

    class Typed(kind):  # type: ignore[misc]
        @functools.wraps(check)
        def _check_type(self, value: Any, *args: Any, **options: Any) -> Any:
            if (problem := misread(value, self._typehint)) is not None:
                raise InvalidValueError(_title(self), _as_typed(value), problem)
            try:
                return check(self, value, *args, **options)
            except Exception as error:  # jsonargparse lets errors of many kinds through for hostile values
                raise InvalidValueError(_title(self), _as_typed(value), expected(self._typehint, value)) from error

    return Typed


def _title(action: argparse.Action) -> str:
    return action.option_strings[0] if action.option_strings else action.dest.upper()


def _as_typed(value: Any) -> str:
    """A value for an error message, numbers without quotes."""
    # jsonargparse wraps the text of --options.NAME TEXT.
    plain = value.val if hasattr(value, "val") and hasattr(value, "key") else value
    return plain if isinstance(plain, str) and _is_number(plain) and plain.isprintable() else shown(plain)


class Command:
    """One command: builds the parser of a function, and calls the function with the parsed options."""

    def __init__(self, name: str, function: Callable[..., int]) -> None:
        self.name = name
        self.function = function
        self.parser = _Parser(
            prog=f"unimetric {name}", add_help=False, allow_abbrev=False, exit_on_error=False, print_config=None
        )
        hints = typing.get_type_hints(function, include_extras=True)
        self.parameters = [
            parameter.replace(annotation=hints[parameter.name])
            for parameter in inspect.signature(function).parameters.values()
        ]
        self.descriptions = _descriptions(function)
        self.options = [option for parameter in self.parameters for option in self._add(parameter)]
        if self.is_configured:
            self.parser.add_argument("--config", action="append")
            text = f"YAML file with any options, or a packaged configuration. Packaged are {', '.join(config_names())}."
            self.options.append(Option("config", Path, text, None, ""))
        _finish(self.parser)

    @property
    def is_configured(self) -> bool:
        """A `RunConfig` is among the parameters, and with it ``--config FILE``."""
        return any(_hint(parameter) is RunConfig for parameter in self.parameters)

    def _add(self, parameter: inspect.Parameter) -> Iterator[Option]:
        hint, name, marks = _hint(parameter), parameter.name, _marks(parameter)
        group = next((mark for mark in marks if isinstance(mark, Group)), "")
        if _is_group(parameter):
            hints, texts, defaults = typing.get_type_hints(hint), _descriptions(hint), hint()
            for field in dataclasses.fields(hint):
                default = getattr(defaults, field.name)
                yield _add_option(self.parser, Option(field.name, hints[field.name], texts[field.name], default, group))
        elif dataclasses.is_dataclass(hint):
            yield from _add_fields(self.parser, cast(type[Any], hint), "" if name == "options" else name, marks)
        else:
            required = parameter.default is parameter.empty
            default = None if required else parameter.default
            positional = parameter.kind is parameter.POSITIONAL_OR_KEYWORD
            text = self.descriptions.get(name, "")
            yield _add_option(self.parser, Option(name, hint, text, default, group, positional, required))

    def parse(self, argv: Sequence[str], base: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The values that were typed, nested by section, on top of ``base``.

        Raises:
            OptionError: an unknown option, a value of a wrong type, or a required one that is missing.
        """
        _check_names(self.parser, argv)
        start = None if base is None else self.parser.parse_object(_known(self.parser, base), defaults=False)
        return dict(self.parser.parse_args(list(argv), namespace=start, defaults=False).as_dict())

    def call(self, values: Mapping[str, Any]) -> int:
        """Call the function with parsed values.

        Raises:
            MissingOptionError: a required option is missing.
            UserError: raised by the function.
        """
        for option in self.options:
            if option.required and values.get(option.name) in (None, []):
                raise MissingOptionError(f"{option.title} is missing ({option.summary}); see {self.parser.prog} --help")
        return self.function(**dict(self._arguments(values)))

    def _arguments(self, values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        for parameter in self.parameters:
            name, hint = parameter.name, _hint(parameter)
            if hint is RunConfig:
                yield (
                    name,
                    run_config({key: values[key] for key in values if key in RunConfig.__dataclass_fields__}, ""),
                )
            elif _is_group(parameter):
                hints = typing.get_type_hints(hint)
                yield name, hint(**{key: _converted(values[key], hints[key]) for key in hints if key in values})
            elif dataclasses.is_dataclass(hint):
                given = values if name == "options" else values.get(name, {})
                yield name, from_options(cast(type[Any], hint), given)
            elif name in values:
                yield name, _converted(values[name], hint)

    def help(self, everything: bool = False) -> str:
        """The page of ``--help``, or of ``--help-all``."""
        return help_page(self.parser.prog, inspect.getdoc(self.function) or "", self.options, everything)


@functools.cache
def options_parser(kind: type[Any]) -> ArgumentParser:
    """A parser of nothing but the fields of a dataclass, for values from files."""
    parser = _Parser(add_help=False, exit_on_error=False, print_config=None)
    list(_add_fields(parser, kind, "", []))
    _finish(parser)
    return parser


def _add_option(parser: ArgumentParser, option: Option) -> Option:
    """Add one option or positional argument."""
    name, hint = option.name, option.hint
    if option.positional:
        nargs = "*" if option.is_list else None if option.required else "?"
        parser.add_argument(name, nargs=nargs, type=hint if typing.get_origin(hint) is Literal else str)
    elif hint is bool:
        parser.add_argument(f"--{name}", action="store_true")
    elif option.is_list:
        parser.add_argument(f"--{name}", nargs="+", action="extend")
    else:
        flags = ["-k", "--k"] if name == "k" else [f"--{name}"]
        parser.add_argument(*flags, type=hint, default=option.default)
    return option


def _add_fields(parser: ArgumentParser, kind: type[Any], prefix: str, marks: Sequence[Any]) -> Iterator[Option]:
    """Add a dataclass's fields, with those of the dataclasses in it."""
    left_out = next((mark for mark in marks if isinstance(mark, Without)), Without())
    common = next((mark for mark in marks if isinstance(mark, Common)), None)
    sections = {
        field.name: field.default_factory
        for field in dataclasses.fields(kind)
        if dataclasses.is_dataclass(field.default_factory)
    }
    for name, section in sections.items():
        if name not in left_out:
            inner = [_within(mark, name) for mark in marks if isinstance(mark, (Without, Common))]
            yield from _add_fields(parser, cast(type[Any], section), name, inner)
    names = [field.name for field in dataclasses.fields(kind) if field.name not in (*sections, *left_out)]
    parser.add_class_arguments(kind, prefix or None, as_group=False, skip={*sections, *left_out})
    hints, texts = typing.get_type_hints(kind), _descriptions(kind)
    defaults = kind()
    title = (inspect.getdoc(kind) or "").partition("\n")[0].rstrip(".").replace("``", "")
    for name in names:
        yield Option(
            f"{prefix}.{name}" if prefix else name,
            hints[name],
            texts[name],
            getattr(defaults, name),
            f"{prefix}: {title}" if prefix else "",
            common=common is None or name in common,
            is_field=True,
        )


def _within(mark: Without | Common, section: str) -> Without | Common:
    return type(mark)(name.removeprefix(f"{section}.") for name in mark if name.startswith(f"{section}."))


def _finish(parser: ArgumentParser) -> None:
    getattr(parser, "required_args", set()).clear()  # where jsonargparse before 4.50 keeps them
    for action in parser._actions:
        action.required = False  # checked by `Command.call`, after --config
        if hasattr(action, "_check_type"):
            action.__class__ = _typed(cast(Any, type(action)))
            if action._typehint is bool:  # type: ignore[attr-defined]
                action.nargs, action.const = "?", True


def _check_names(parser: ArgumentParser, argv: Sequence[str]) -> None:
    """Refuse options that the parser lacks."""
    known = parser._option_string_actions
    for text in argv:
        if text == "--":
            return
        name, _, value = text.partition("=")
        if name.startswith("--") and value == "--":  # argparse would drop the value
            raise OptionError(f"{name} is '--': that is not a value; leave it out or write another")
        if not name.startswith("-") or name in known or name in ("-", "-k") or _is_number(name) or name[:2] == "-k":
            continue
        parents = [name[:place] for place, letter in enumerate(name) if letter == "."]
        if not any(parent in known for parent in parents):
            raise UnknownOptionError(
                f"unknown option {name}; {nearest_names(name, [flag for flag in known if not flag.endswith('+')])}"
            )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _known(parser: ArgumentParser, values: Mapping[str, Any]) -> dict[str, Any]:
    """The nested options that the parser has."""
    known = {action.dest for action in parser._actions}
    return {
        section: kept
        for section, options in values.items()
        if (kept := {name: value for name, value in options.items() if f"{section}.{name}" in known})
    }


def _converted(value: Any, hint: Any) -> Any:
    """Text to paths, with ``~`` resolved."""
    if _has_path(hint):
        return (
            [user_path(path) for path in value]
            if isinstance(value, list)
            else value
            if value is None
            else user_path(value)
        )
    return value


def _has_path(hint: Any) -> bool:
    return hint is Path or any(_has_path(part) for part in typing.get_args(hint))


def _is_group(parameter: inspect.Parameter) -> bool:
    """The parameter is a dataclass whose fields are options of the command itself."""
    return dataclasses.is_dataclass(_hint(parameter)) and any(isinstance(mark, Group) for mark in _marks(parameter))


def _hint(parameter: inspect.Parameter) -> Any:
    hint = parameter.annotation
    return typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint


def _marks(parameter: inspect.Parameter) -> list[Any]:
    return list(getattr(parameter.annotation, "__metadata__", ()))


def _descriptions(documented: object) -> dict[str, str]:
    from docstring_parser import DocstringStyle, parse

    parsed = parse(inspect.getdoc(documented) or "", DocstringStyle.GOOGLE)
    return {entry.arg_name: " ".join((entry.description or "").split()) for entry in parsed.params}
