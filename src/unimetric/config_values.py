"""Checks of configuration values, and dataclasses made of nested options."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, cast

from unimetric.errors import OptionError, UnknownOptionError, UserError, nearest_names, shown

T = TypeVar("T")
MAX_PROCESSES = 256
"""Limit of the processes that one number starts, since a slip would stop the machine."""


@dataclasses.dataclass(frozen=True)
class NoOptions:
    """The options of a method or sampler that has none."""


def check_names(kind: type[Any], values: Any, origin: str) -> None:
    """Check that every option, nested ones included, is a field of a configuration dataclass.

    Raises:
        UnknownOptionError: one is not; ``origin`` and the nearest names are in the message.
        UserError: a section is not a mapping.
    """
    known = {entry.name: entry.default_factory for entry in dataclasses.fields(kind)}
    if not isinstance(values, Mapping):
        raise UserError(f"{origin} has {shown(values)} where options are expected: {', '.join(known)}")
    for name, value in values.items():
        if name not in known:
            raise UnknownOptionError(f"{origin} has an unknown option {shown(name)}; {nearest_names(str(name), known)}")
        if dataclasses.is_dataclass(known[name]):
            check_names(cast(type[Any], known[name]), value, f"{origin}, {name}:")


def from_options(kind: type[T], values: Mapping[str, Any]) -> T:
    """Return a configuration dataclass from its nested options by name; others keep their defaults."""
    known = {entry.name: entry for entry in dataclasses.fields(cast(Any, kind))}
    parts = {
        name: from_options(cast(type[Any], entry.default_factory), values[name])
        if dataclasses.is_dataclass(entry.default_factory)
        else values[name]
        for name, entry in known.items()
        if name in values
    }
    return kind(**parts)


_TYPES = {bool: "true or false", int: "a whole number", float: "a finite number", str: "text"}


def complete_options(owner: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by name, those that are not given with their defaults; a default's type is the option's.

    Args:
        owner: The method, loss or sampler, for messages.
        given: The options that a user gave.
        defaults: All options.

    Raises:
        UserError: an unknown option, a value of another type, or a number that is not finite.
    """
    for name, value in given.items():
        if name not in defaults:
            known = nearest_names(str(name), defaults) if defaults else "it has none"
            raise UserError(f"unknown option {shown(name)} of {owner}; {known}")
        kind = type(defaults[name])
        # A bool is an int to Python, not to a user.
        numeric = (int, float) if kind is float else kind
        fitting = isinstance(value, numeric) and isinstance(value, bool) == (kind is bool)
        if not fitting or (kind is float and not math.isfinite(value)):
            raise UserError(f"option {name} of {owner} is {shown(value)}: use {_TYPES[kind]}")
    return {**defaults, **given}


def require_option(owner: str, options: object, name: str, fitting: bool, remedy: str) -> None:
    """Refuse the value of an option of a method or sampler unless it is ``fitting``."""
    if not fitting:
        raise UserError(f"option {name} of {owner} is {shown(getattr(options, name))}: {remedy}")


def require_finite(option: str, value: object) -> None:
    """Refuse infinity and NaN, nested ones included, since JSON cannot hold them."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            require_finite(f"{option}.{name}", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            require_finite(option, inner)
    else:
        require(not isinstance(value, float) or math.isfinite(value), option, value, "use a finite number")


def require(condition: bool, option: str, value: object, remedy: str) -> None:
    """Refuse the value of an option unless the condition holds."""
    if not condition:
        raise UserError(f"--{option} is {shown(value)}: {remedy}")


def refuse_without_effect(
    given: Mapping[str, Any], defaults: Mapping[str, Any], reason: str, remedy: str = "leave it out"
) -> None:
    """Refuse options that were typed but have no effect.

    Args:
        given: Values of options by name; None, False and the default count as not typed.
        defaults: Defaults of those that have one.
        reason: The cause, such as "without MODEL".
        remedy: What to do instead.

    Raises:
        OptionError: the first of them is named.
    """
    for name, value in given.items():
        if value is not None and value is not False and value != defaults.get(name):
            raise OptionError(f"--{name} has no effect {reason}: {remedy}")


def require_workers(option: str, workers: int | Literal["auto"], fewest: int = 0) -> None:
    """Refuse a number of workers that no machine has the processors for."""
    fitting = workers == "auto" or fewest <= workers <= MAX_PROCESSES
    require(fitting, option, workers, f"use auto, or {fewest} to {MAX_PROCESSES}")
