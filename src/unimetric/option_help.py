"""The page of ``--help``: usage, then one line for each option, grouped."""

import shutil
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

_FILES = {
    *("SOURCE", "DB", "IMAGE", "RUN", "MODEL", "MATRIX", "config", "sources", "data", "calibrate", "ensemble", "db"),
    *("vectors", "metrics", "cache", "weights", "delete_path", "out"),
}
"""Options of text that name a file, a folder or, some of them, a URI."""
_VALUES = {"data": "SOURCE", "calibrate": "SOURCE", "ensemble": "MODEL", "where": "CONDITION", "shard": "I/N"}
"""Values that are neither a name nor a path."""
_FLAGS = 30
"""Columns of names; longer ones get a line of their own."""


@dataclass(frozen=True)
class Option:
    """One option or positional argument.

    Args:
        name: Parameter, or ``section.field``.
        hint: Its type.
        text: Its description; the first sentence is the short one.
        default: Its default.
        group: Its heading in the help; "" for the first group.
        positional: An argument without ``--``.
        required: It has no default.
        common: ``--help`` lists it.
        is_field: Field of a configuration: lists are written as in YAML.
    """

    name: str
    hint: Any
    text: str
    default: Any
    group: str
    positional: bool = False
    required: bool = False
    common: bool = True
    is_field: bool = False

    @property
    def title(self) -> str:
        """The name as typed."""
        if not self.positional:
            return f"--{self.name}"
        return (self.name.rstrip("s") if self.is_list else self.name).upper()

    @property
    def types(self) -> list[Any]:
        """The alternatives of its type, without None."""
        origin: Any = typing.get_origin(self.hint)
        union = origin in (typing.Union, types.UnionType)
        return [part for part in (typing.get_args(self.hint) if union else [self.hint]) if part is not types.NoneType]

    @property
    def is_list(self) -> bool:
        """It takes several values."""
        return any(typing.get_origin(part) is list for part in self.types)

    @property
    def choices(self) -> list[str]:
        """The names that it takes; empty if it takes other values too."""
        origins: list[Any] = [typing.get_origin(part) for part in self.types]
        return [str(name) for name in typing.get_args(self.types[0])] if origins == [Literal] else []

    @property
    def usage(self) -> str:
        """The argument in the line of usage."""
        if not self.positional:
            return f"{self.title} {self._value}"
        several = f"{self.title} ..." if self.is_list else self.title
        return several if self.required else f"[{several}]"

    @property
    def flag(self) -> str:
        """The option with the kind of its value."""
        if self.positional or (self.hint is bool and not self.default):
            return self.title
        return f"{'-k, ' if self.name == 'k' else ''}{self.title} {self._value}"

    @property
    def _value(self) -> str:
        if self.is_list and "." in self.name:
            return "[A,B]"
        if self.is_list:
            return f"{_VALUES.get(self.name, 'PATH' if self.takes_file else 'NAME')} ..."
        if self.name in _VALUES:
            return _VALUES[self.name]
        if any(typing.get_origin(part) is dict for part in self.types):
            return "{A: B}"
        if self.takes_file:
            return "PATH"
        if bool in self.types:
            return "true|false"
        if any(isinstance(part, type) and issubclass(part, (int, float)) for part in self.types):
            return "N"
        names = "|".join(self.choices)
        return names if names and len(f"  {self.title} {names}") < _FLAGS else "NAME"

    @property
    def takes_file(self) -> bool:
        """The value is the path of a file or folder, or may be one."""
        return Path in self.types or self.title.rpartition(".")[2].strip("-") in _FILES

    @property
    def summary(self) -> str:
        """The first sentence."""
        return self.text.replace("``", "").partition(". ")[0].rstrip(".")

    @property
    def is_shortened(self) -> bool:
        """The description has more than its first sentence."""
        return self.summary != self.text.replace("``", "").rstrip(".")

    def description(self, everything: bool) -> str:
        """The first sentence, or the whole text, and the default."""
        text = self.text.replace("``", "") if everything else self.summary
        if any(choice not in f"{self.flag} {text}" for choice in self.choices):
            text = f"{text.rstrip('.')}: {', '.join(self.choices)}"
        return f"{text} [{self._default}]" if self.default or type(self.default) in (int, float) else text

    @property
    def _default(self) -> str:
        if isinstance(self.default, bool):
            return "true"
        if isinstance(self.default, list):
            return ", ".join(map(str, self.default))
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)


def help_page(program: str, documentation: str, options: Sequence[Option], everything: bool) -> str:
    """The text of ``--help`` or ``--help-all``.

    Args:
        program: With the command's name.
        documentation: Docstring of the command; its first paragraphs are shown.
        options: In the order of the page.
        everything: List every option with its whole description.
    """
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    usage = [option.usage for option in options if option.positional or option.required]
    lines = textwrap.wrap(" ".join(["usage:", program, *usage, "[options]"]), width, subsequent_indent=" " * 8)
    about = documentation.partition("\n\nArgs:")[0].partition("\n\nReturns:")[0].replace("``", "")
    for paragraph in about.split("\n\n"):
        lines += ["", *textwrap.wrap(" ".join(paragraph.split()), width)]
    shown = [option for option in options if everything or option.common]
    for group in dict.fromkeys(["", *(option.group for option in shown)]):
        members = [option for option in shown if option.group == group]
        if group or members:
            heading = group or "arguments and options"
            lines += ["", (heading if ": " in heading else f"{heading}:")[:width]]
        for option in members:
            lines += _entry(option, everything, width)
    if len(shown) < len(options):
        lines += ["", f"{len(options) - len(shown)} more options, and details: {program} --help-all"]
    elif not everything and any(option.is_shortened for option in options):
        lines += ["", f"Details: {program} --help-all"]
    return "\n".join(lines) + "\n"


def _entry(option: Option, everything: bool, width: int) -> list[str]:
    flag = f"  {option.flag}"
    indent = " " * (_FLAGS + 2)
    text = textwrap.wrap(option.description(everything), max(width - len(indent), 20)) or [""]
    if len(flag) + 1 >= len(indent):
        return [flag, *(f"{indent}{line}" for line in text)]
    return [f"{flag:<{len(indent)}}{text[0]}", *(f"{indent}{line}" for line in text[1:])]
