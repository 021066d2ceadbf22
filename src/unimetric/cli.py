"""The command line. Each command parses, calls one function, and prints; only those that compute import torch."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Sequence

from jsonargparse import Namespace

from unimetric.arguments import build_parser
from unimetric.completion import with_defaults
from unimetric.errors import ProcessLost, UserError, escaped
from unimetric.runners import pages, training, vectors

_COMMANDS: dict[str, Callable[[Namespace], int]] = {
    "train": training.train,
    "extend": training.extend,
    "evaluate": training.evaluate,
    "embed": vectors.embed,
    "prepare": training.prepare,
    "export": vectors.export,
    "index": vectors.index,
    "search": vectors.search,
    "benchmark": training.benchmark,
    "datasets": training.datasets,
    "report": pages.report,
    "compare": pages.compare,
    "inspect": pages.inspect,
    "serve": vectors.serve,
    "demo": training.demo,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        0 when it worked, 1 when a check or a run of a benchmark found something wrong, one of several processes died or
        training came upon numbers that are not finite, 2 for bad input, 130 when it was stopped, 141 when nobody reads
        its output any more.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in argv
    argv = [argument for argument in argv if argument != "--debug"]
    try:
        parser = build_parser()
        namespace = parser.parse_args(with_defaults(parser, argv, _COMMANDS))
        if namespace.subcommand is None:
            parser.print_help()
            return 0
        return _COMMANDS[namespace.subcommand](namespace[namespace.subcommand])
    except UserError as error:
        if debug:
            traceback.print_exc()
        print(f"unimetric: error: {_one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    except ProcessLost as error:
        print(f"unimetric: error: {_one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return 1
    except BrokenPipeError:
        # Whoever reads the output has had enough, as `| head` does. Nothing more can be said there, even at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        if debug:
            traceback.print_exc()
        print(f"unimetric: error: {_one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        if debug:
            traceback.print_exc()
        print("unimetric: stopped", file=sys.stderr)  # noqa: T201
        return 130


def _one_line(text: str) -> str:
    return escaped(" ".join(text.split()))


if __name__ == "__main__":
    sys.exit(main())
