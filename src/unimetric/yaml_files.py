"""Read YAML files from any source as plain values, in limited time and memory."""

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from unimetric.errors import UserError, cause, shown
from unimetric.files import explain_os_error

_LARGEST_FILE = 2**20
"""Bytes, at most."""
_MOST_VALUES = 100_000
"""Values in a file, at most; those behind an alias count each time."""
_DEEPEST = 50
_OTHER_BASE = re.compile(r"[-+]?(0[0-7_]*[0-7]\Z|[0-9][0-9_]*:)")
_LONGEST_NUMBER = 100
"""Characters; the time to read a number grows faster than its length."""


def read_yaml(path: Path) -> Any:
    """Return the values in a YAML file: mappings, lists, text, numbers, booleans, dates and None; never other objects.

    Raises:
        UserError: it cannot be read, is no YAML, or is larger or deeper than options are.
    """
    with explain_os_error(path, "read"), path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise UserError(f"{path} has more than {_LARGEST_FILE} bytes: options take less; name another file")
    try:
        # Checked as a graph of nodes, before values are made of them.
        reader = yaml.SafeLoader(content.decode("utf-8"))
        try:
            node = reader.get_single_node()
            if node is None:
                return None
            _check(path, node)
            return reader.construct_document(node)
        finally:
            reader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        problem = getattr(error, "problem", None) or cause(error)
        raise UserError(f"{path}{where} is not YAML: {cause(ValueError(problem))}; correct the file") from error
    # Such as a date that no calendar has.
    except (UnicodeDecodeError, ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not YAML: {cause(error)}; correct the file") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply for options; correct the file") from error


def as_yaml(options: Any) -> str:
    """Return the text of a file with the fields of a dataclass, by name."""
    return yaml.safe_dump(asdict(options), sort_keys=False, allow_unicode=True)


def _check(path: Path, root: yaml.Node) -> None:
    """Refuse a document with too many, too long or too deep values, one in itself, or a name that is there twice."""
    known: dict[int, tuple[int, int]] = {}

    def measure(node: yaml.Node, depth: int) -> tuple[int, int]:
        """Return the number of values of a node, and their depth in levels."""
        if isinstance(node, yaml.ScalarNode):
            if not node.tag.endswith(":str") and len(node.value) > _LONGEST_NUMBER:
                raise _refused(path, node, f"has a number or date of {len(node.value)} characters")
            if node.tag.endswith((":int", ":float")) and _OTHER_BASE.match(node.value):
                raise UserError(
                    f"{path}, line {node.start_mark.line + 1}: YAML reads {node.value} as a number to the base of 8 or "
                    "60; write a name in quotes, a number without leading zeros or colons"
                )
            return 1, 0
        if id(node) not in known and depth < _DEEPEST:
            _refuse_repeated_names(node)
            parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
            measured = [measure(part, depth + 1) for part in parts]
            known[id(node)] = (
                1 + sum(size for size, _ in measured),
                1 + max((height for _, height in measured), default=0),
            )
        # A node that holds itself always becomes deeper.
        size, height = known.get(id(node), (1, 1))
        if depth + height > _DEEPEST:
            raise _refused(path, node, f"is nested deeper than {_DEEPEST} levels")
        if size > _MOST_VALUES:
            raise _refused(path, node, f"holds more than {_MOST_VALUES} values")
        return size, height

    measure(root, 0)


def _refuse_repeated_names(node: yaml.Node) -> None:
    # PyYAML would take the last one in silence.
    names: set[tuple[str, str]] = set()
    for key in (pair[0] for pair in node.value if isinstance(pair, tuple)):
        if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge"):
            if (key.tag, key.value) in names:
                problem = f"{shown(key.value)} is there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            names.add((key.tag, key.value))


def _refused(path: Path, node: yaml.Node, what: str) -> UserError:
    return UserError(f"{path}, line {node.start_mark.line + 1} {what}: write less, or correct the file")
