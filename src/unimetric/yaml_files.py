"""YAML files, which may come from anywhere: read as plain values, in limited time and memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from unimetric.errors import UserError, cause
from unimetric.files import explain_os_error

_LARGEST_FILE = 2**20
"""Bytes, at most."""
_MOST_VALUES = 100_000
"""How many values a file may stand for: what an alias repeats counts each time, for whoever looks at all of it."""
_DEEPEST = 50
_LONGEST_NUMBER = 100
"""Characters; to read a number takes longer than its length."""


def read_yaml(path: Path, loader: type[yaml.SafeLoader] = yaml.SafeLoader) -> Any:
    """The values in a YAML file: mappings, lists, text, numbers, booleans, dates and None; tags make nothing else.

    Args:
        path: The file.
        loader: PyYAML's safe loader, or a stricter one.

    Raises:
        UserError: it cannot be read, is no YAML, or is larger, deeper or more often repeated than options are.
    """
    with explain_os_error(path, "read"), path.open("rb") as file:
        content = file.read(_LARGEST_FILE + 1)
    if len(content) > _LARGEST_FILE:
        raise UserError(f"{path} has more than {_LARGEST_FILE} bytes: it does not hold options; name another file")
    try:
        # Checked as a graph of nodes, before values are made of them.
        reader = loader(content.decode("utf-8"))
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
        raise UserError(f"{path}{where} is not YAML: {cause(ValueError(problem))}; mend the file") from error
    # The second: a date that no calendar has, and the like.
    except (UnicodeDecodeError, ValueError, OverflowError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is not YAML: {cause(error)}; mend the file") from error
    except RecursionError as error:
        raise UserError(f"{path} is nested too deeply for options; mend the file") from error


def _check(path: Path, root: yaml.Node) -> None:
    """Refuse a document that stands for too much.

    Raises:
        UserError: a number is too long, values are nested too deeply or are too many, or one holds itself.
    """
    known: dict[int, tuple[int, int]] = {}

    def measure(node: yaml.Node, depth: int) -> tuple[int, int]:
        """How many values a node stands for, and how many levels deep they are."""
        if isinstance(node, yaml.ScalarNode):
            if not node.tag.endswith(":str") and len(node.value) > _LONGEST_NUMBER:
                raise _refused(path, node, f"has a number or date of {len(node.value)} characters")
            return 1, 0
        if id(node) not in known and depth < _DEEPEST:
            parts = [part for pair in node.value for part in (pair if isinstance(pair, tuple) else (pair,))]
            measured = [measure(part, depth + 1) for part in parts]
            known[id(node)] = (
                1 + sum(size for size, _ in measured),
                1 + max((height for _, height in measured), default=0),
            )
        # One that holds itself is always deeper.
        size, height = known.get(id(node), (1, 1))
        if depth + height > _DEEPEST:
            raise _refused(path, node, f"is nested deeper than {_DEEPEST} levels")
        if size > _MOST_VALUES:
            raise _refused(path, node, f"stands for more than {_MOST_VALUES} values")
        return size, height

    measure(root, 0)


def _refused(path: Path, node: yaml.Node, what: str) -> UserError:
    return UserError(f"{path}, line {node.start_mark.line + 1} {what}: write less, or mend the file")
