"""The command line: the commands by name, and exit codes for errors. Only commands that compute import torch."""

import inspect
import io
import os
import sys
import textwrap
import threading
import traceback
from collections.abc import Callable, Sequence

from unimetric import __version__
from unimetric.arguments import Command
from unimetric.commands.audit import audit
from unimetric.commands.benchmark import benchmark
from unimetric.commands.compare import compare
from unimetric.commands.datasets import datasets
from unimetric.commands.demo import demo
from unimetric.commands.embed import embed
from unimetric.commands.evaluate import evaluate
from unimetric.commands.export import export
from unimetric.commands.extend import extend
from unimetric.commands.index import index
from unimetric.commands.inspect import inspect as inspect_image
from unimetric.commands.merge import merge
from unimetric.commands.prepare import prepare
from unimetric.commands.push import push
from unimetric.commands.report import report
from unimetric.commands.rotate import rotate
from unimetric.commands.search import search
from unimetric.commands.serve import serve
from unimetric.commands.train import train
from unimetric.commands.upgrade import upgrade
from unimetric.config_resolution import base_options
from unimetric.errors import ProcessLost, UnknownOptionError, UserError, escaped, nearest_names
from unimetric.shell_completion import completion_script

COMMANDS: dict[str, Callable[..., int]] = {
    "demo": demo,
    "train": train,
    "extend": extend,
    "merge": merge,
    "evaluate": evaluate,
    "report": report,
    "compare": compare,
    "inspect": inspect_image,
    "benchmark": benchmark,
    "audit": audit,
    "index": index,
    "upgrade": upgrade,
    "search": search,
    "serve": serve,
    "embed": embed,
    "export": export,
    "push": push,
    "rotate": rotate,
    "prepare": prepare,
    "datasets": datasets,
}

_LONGEST_MESSAGE = 1200
"""Characters."""
_OPTIONS = {
    "--help": "This page; unimetric COMMAND --help lists the options of a command.",
    "--version": "The version.",
    "--debug": "Show the traceback of an error; for every command.",
    "--print_completion bash|zsh": "Print a script that completes commands and options with Tab.",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 for success, 1 if a check or a run of a benchmark failed, a process of several died or training met numbers
        that are not finite, 2 for bad input, 130 after Ctrl-C, 141 if the reader of the output has gone.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Labels and paths may contain bytes that are not text, or characters that the terminal's encoding lacks.
        sys.stdout.reconfigure(errors="backslashreplace")
    debug = "--debug" in argv
    hook = threading.excepthook
    if not debug:
        threading.excepthook = _report_thread
    try:
        return _run([text for text in argv if text != "--debug"])
    except BrokenPipeError:
        # The reader has closed the pipe, as `| head` does; Python would report it once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (UserError, ProcessLost, OSError) as error:
        if debug:
            traceback.print_exc()
        print(f"unimetric: error: {_one_line(error)}", file=sys.stderr)  # noqa: T201
        return 2 if isinstance(error, OSError) else error.exit_code
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("unimetric: stopped", file=sys.stderr)  # noqa: T201
        return 130
    finally:
        threading.excepthook = hook


def _report_thread(failed: threading.ExceptHookArgs) -> None:
    """Report a full disk or the like in one line where a library's own thread met it, as TensorBoard's may."""
    if not isinstance(failed.exc_value, UserError | OSError):
        threading.__excepthook__(failed)
        return
    print(f"unimetric: warning: a thread has failed: {_one_line(failed.exc_value)}", file=sys.stderr)  # noqa: T201


def _run(argv: list[str]) -> int:
    name = argv[0] if argv else "--help"
    if name in ("--help", "-h", "--help-all"):
        print(_overview(), end="")  # noqa: T201
        return 0
    if name == "--version":
        print(f"unimetric {__version__}")  # noqa: T201
        return 0
    if name.partition("=")[0] == "--print_completion":
        _, equals, shell = name.partition("=")
        print(completion_script(shell if equals else "".join(argv[1:2]), COMMANDS))  # noqa: T201
        return 0
    if name not in COMMANDS:
        kind, known = ("option", [*_OPTIONS]) if name.startswith("-") else ("command", [*COMMANDS])
        quoted = name if name.startswith("-") else repr(name)
        raise UnknownOptionError(f"unknown {kind} {quoted}; {nearest_names(name, known)}")
    try:
        os.getcwd()  # noqa: PTH109
    except FileNotFoundError as error:
        raise UserError("the current folder was deleted; change to another one") from error
    command = Command(name, COMMANDS[name])
    typed = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
    if {"-h", "--help", "--help-all"} & set(typed):
        print(command.help(everything="--help-all" in typed), end="")  # noqa: T201
        return 0
    values = command.parse(argv[1:])
    if command.is_configured:
        values = command.parse(argv[1:], base_options(values))
    return command.call(values)


def _one_line(error: Exception) -> str:
    """The message on one printable line, without the middle of a very long one."""
    text = escaped(" ".join(str(error).split()))
    return (
        text
        if len(text) <= _LONGEST_MESSAGE
        else f"{text[: _LONGEST_MESSAGE // 2]} ... {text[-_LONGEST_MESSAGE // 3 :]}"
    )


def _overview() -> str:
    """Return the page of ``unimetric --help``."""
    entries = {name: (inspect.getdoc(function) or "").partition("\n")[0] for name, function in COMMANDS.items()}
    lines = ["usage: unimetric COMMAND [arguments and options]", "", "One embedding model for all image collections."]
    for title, listed in (("commands", entries), ("options", _OPTIONS)):
        lines += ["", f"{title}:"]
        width = max(map(len, listed)) + 4
        for name, text in listed.items():
            lines += textwrap.wrap(f"{name:<{width - 2}}{text}", 98, initial_indent="  ", subsequent_indent=" " * width)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
