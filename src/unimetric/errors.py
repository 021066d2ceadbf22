"""Errors that a user can fix, and values in the text of their messages."""

import difflib
import inspect
import os
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any, ClassVar, TypeVar


class UserError(Exception):
    """Bad input: one line that names the file or option, its value, and the remedy.

    The command line prints it without a traceback and exits with ``exit_code``. The service answers with ``code``; a
    subclass with a meaning of its own sets both.
    """

    exit_code: ClassVar[int] = 2
    code: ClassVar[str] = "failed"
    """One word for programs; it stays the same when the message changes."""


class ArgumentError(UserError):
    """A value in a call or request is wrong. The message quotes that call, and names of datasets and columns, only.

    It names no file or folder of this machine, so the service may show it to a client.
    """

    code: ClassVar[str] = "invalid_request"


class OptionError(UserError):
    """Options of a command or a configuration that cannot be used."""

    code: ClassVar[str] = "invalid_option"


class UnknownOptionError(OptionError):
    """An option, a section or a command that does not exist."""


class MissingOptionError(OptionError):
    """A required option that was not given."""


class InvalidValueError(OptionError, TypeError):
    """A value that an option cannot have; also a `TypeError`, since parsers expect one.

    Args:
        option: Name of the option, as typed.
        value: The value, short enough for one line.
        remedy: Values that it can have.
        origin: The file that holds the value, if it was not typed.
    """

    def __init__(self, option: str, value: str, remedy: str, origin: str = "") -> None:
        super().__init__(f"{origin}: {option} is {value}: {remedy}" if origin else f"{option} is {value}: {remedy}")
        self.option = option
        self.value = value
        self.remedy = remedy


class WriteError(UserError):
    """A file could not be written: a full disk, no permission. Existing content is unchanged."""

    code: ClassVar[str] = "cannot_write"


class NonFiniteError(UserError):
    """Training met a loss or a gradient that is not a finite number. Not bad input, so the exit code is 1."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "not_finite"


class WorkerError(UserError):
    """Worker processes cannot hand over what they decode, for lack of shared memory or a usable ``TMPDIR``."""

    exit_code: ClassVar[int] = 1
    code: ClassVar[str] = "worker_failed"


class ProcessLost(Exception):  # noqa: N818 - it is not this process's error
    """A process died that trains together with this one or decodes images for it: one line with the remedy.

    The command line prints it without a traceback and exits with ``exit_code``.
    """

    exit_code: ClassVar[int] = 1


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxdict = _SHORT.maxlist = 10


def shown(value: object) -> str:
    """Return the `repr` of a value for an error message, shortened to one line.

    >>> shown("a\\nb")
    "'a\\\\nb'"
    >>> len(shown("x" * 10**6))
    100
    """
    return _SHORT.repr(value)


def escaped(text: object) -> str:
    """Return text or a path for one line of a page or a terminal, with unprintable characters as in Python's source.

    >>> print(escaped("new\\nline \\ud800 größe.jpg"))
    new\\nline \\ud800 größe.jpg
    """
    line = str(text)
    return line if line.isprintable() else "".join(s if s.isprintable() else ascii(s)[1:-1] for s in line)


def cause(error: BaseException) -> str:
    """Return a library's error for an error message, in one line of at most 200 characters.

    >>> cause(ValueError("bad\\n  value"))
    'bad value'
    """
    return escaped(" ".join(str(error).split())[:200])


def nearest_names(name: str, valid: Iterable[str]) -> str:
    """Return the valid names nearest to a wrong one, for the end of an error message.

    >>> nearest_names("arcfase", ["arcface", "cosface", "triplet"])
    "did you mean 'arcface' or 'cosface'? valid: arcface, cosface, triplet"
    >>> nearest_names("--training.lr", ["--training.loggers", "--training.learning_rate"])
    "did you mean '--training.learning_rate'? valid: --training.learning_rate, --training.loggers"
    """
    names = sorted(valid)
    short = name.rpartition(".")[2].lstrip("-")
    meant = [known for known in names if "_" in known and _initials(known) == short]
    close = meant or difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    listed = ", ".join(names) if len(names) <= 40 else f"{len(names)} names"
    if not close:
        return f"valid: {listed}"
    return f"did you mean {' or '.join(repr(match) for match in close)}? valid: {listed}"


def _initials(name: str) -> str:
    return "".join(word[:1] for word in name.rpartition(".")[2].lstrip("-").split("_"))


_T = TypeVar("_T")
_KINDS: dict[str, tuple[tuple[type, ...], str]] = {
    **dict.fromkeys(("path", "db", "model", "weights"), ((str, os.PathLike), "a path")),
    **dict.fromkeys(("image_size", "size", "batch_size", "n", "seed", "offset"), ((Integral,), "a whole number")),
    **dict.fromkeys(("precision", "revision", "dataset", "id", "kind"), ((str,), "a text")),
    "false_match_rate": ((Real,), "a number"),
    **dict.fromkeys(("exact", "group_copies", "skip_unreadable"), ((bool,), "True or False")),
    "datasets": ((Iterable,), "a list of texts"),
    "ids": ((Sequence,), "a list of ids"),
}
"""What the arguments of these names are in all of the public functions."""


def check_kind(name: str, value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Refuse an argument of another type; ``wanted`` describes the right ones."""
    # True counts as a number in Python, and text as a list.
    stray = (isinstance(value, bool) and kinds in ((Integral,), (Real,))) or (
        isinstance(value, str | bytes) and kinds == (Sequence,)
    )
    if stray or not isinstance(value, kinds):
        raise ArgumentError(f"{name} is of type {type(value).__name__}: give {wanted}")


def check_arguments(cls: type[_T]) -> type[_T]:
    """Decorate a public class: its own public methods refuse arguments of another type by an `ArgumentError`.

    Those with the usual names are checked, also among further keywords; one that is None by default may be None. All
    entries of a list of ids or datasets have to be texts.
    """
    for name, member in list(vars(cls).items()):
        function = member.__func__ if isinstance(member, classmethod) else member
        if name.startswith("_") or not inspect.isfunction(function):
            continue
        parameters = inspect.signature(function).parameters
        takes_more = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters.values())
        if takes_more or not _KINDS.keys().isdisjoint(parameters):
            checked = _checked(function, parameters)
            setattr(cls, name, classmethod(checked) if isinstance(member, classmethod) else checked)
    return cls


def _checked(function: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> Callable[..., Any]:
    names = tuple(parameters)
    required = {name for name, parameter in parameters.items() if parameter.default is not None}

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        for name, value in (*zip(names, args, strict=False), *kwargs.items()):
            if name in _KINDS and (value is not None or name in required):
                check_kind(name, value, *_KINDS[name])
                if isinstance(value, list | tuple):
                    for entry in value:
                        check_kind(f"an entry of {name}", entry, str, "a text")
        return function(*args, **kwargs)

    return checked
