"""The error that a user can mend, and the words it is said in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Bad input: one line that names the file or option, its value, and the remedy.

    The command line prints it without a traceback and exits with code 2.
    """


class ProcessLost(Exception):  # noqa: N818 - it is not this process's error
    """One of the processes that train together died: one line that says which, how, and how to go on.

    The command line prints it without a traceback and exits with code 1.
    """


def nearest_names(name: str, valid: Iterable[str], count: int = 3) -> str:
    """Say which of the valid names come nearest to a wrong one, for the end of an error message.

    >>> nearest_names("arcfase", ["arcface", "cosface", "triplet"])
    "did you mean 'arcface' or 'cosface'? valid: arcface, cosface, triplet"
    """
    names = sorted(valid)
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    listed = ", ".join(names) if len(names) <= 40 else f"{len(names)} names"
    if not close:
        return f"valid: {listed}"
    return f"did you mean {' or '.join(repr(match) for match in close)}? valid: {listed}"
