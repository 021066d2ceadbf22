"""Tab completion for bash and zsh: a static script, made from the parsers by shtab."""

import argparse
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from unimetric.arguments import Command
from unimetric.errors import OptionError, UserError, nearest_names
from unimetric.option_help import Option

_SHELLS = ("bash", "zsh")
_FLAGS = {
    "--help": "The options that are used most",
    "--help-all": "Every option",
    "--debug": "Show the traceback of an error",
}


def completion_script(shell: str, commands: Mapping[str, Callable[..., int]]) -> str:
    """A script for a shell that completes the commands, their options and file names.

    Args:
        shell: ``bash`` or ``zsh``.
        commands: Functions by command name.

    Raises:
        UserError: another shell, or shtab is not installed.
    """
    if shell not in _SHELLS:
        raise OptionError(f"--print_completion is {shell!r}: {nearest_names(shell, _SHELLS)}")
    try:
        import shtab
    except ModuleNotFoundError as error:
        raise UserError("--print_completion needs the package shtab: pip install shtab") from error
    parser = argparse.ArgumentParser(prog="unimetric", add_help=False)
    parser.add_argument("--help", action="store_true", help="The commands")
    parser.add_argument("--version", action="store_true", help="The version")
    parser.add_argument("--print_completion", choices=_SHELLS, help="Print a script for Tab completion")
    subparsers = parser.add_subparsers()
    for name, function in commands.items():
        summary = (inspect.getdoc(function) or "").partition("\n")[0].rstrip(".")
        subparser = subparsers.add_parser(name, help=summary, add_help=False)
        for option in Command(name, function).options:
            short = ["-k"] if option.name == "k" else []
            names = [option.name] if option.positional else [*short, f"--{option.name}"]
            action = subparser.add_argument(*names, **_settings(option))
            if option.takes_file:
                action.complete = shtab.FILE  # type: ignore[attr-defined]
        for flag, text in _FLAGS.items():
            subparser.add_argument(flag, action="store_true", help=text)
    return str(shtab.complete(parser, shell))


def _settings(option: Option) -> dict[str, Any]:
    summary = option.description(everything=False).replace("%", "%%")
    if option.hint is bool and not option.default:
        return {"help": summary, "action": "store_true"}
    names = ["true", "false"] if bool in option.types else option.choices
    choices = {"choices": names} if names else {}
    several = {"nargs": "*"} if option.is_list else {}
    return {"help": summary, **choices, **several}
