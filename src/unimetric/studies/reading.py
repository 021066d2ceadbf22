"""A benchmark's YAML file, checked for names; what it means is for `plan`."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from unimetric.config import RunConfig
from unimetric.errors import UserError, nearest_names, shown
from unimetric.yaml_files import read_yaml

SECTIONS = tuple(field.name for field in dataclasses.fields(RunConfig))
_TOP = ("title", "base", "seeds", "axes", "validation_fraction")
_OVERLAY = (*SECTIONS, "seeds", "datasets", "choose", "choose_like")


@dataclass(frozen=True)
class BenchmarkFile:
    """What a benchmark's file says.

    Args:
        path: The file, for messages.
        title: What stands above the table.
        base: Options that all runs share.
        seeds: ``training.seed`` of the runs, where an entry does not say its own.
        axes: For every axis its entries, by name, each a set of options and of the words of an entry.
        validation_fraction: Share of the train classes that options are chosen on.
    """

    path: Path
    title: str
    base: dict[str, Any]
    seeds: tuple[int, ...]
    axes: dict[str, dict[str, dict[str, Any]]]
    validation_fraction: float


def read_file(path: Path) -> BenchmarkFile:
    """Read a benchmark's file.

    Raises:
        UserError: the file cannot be read, is no YAML, or has unknown or malformed parts.
    """
    values = read_yaml(path, _Loader)
    if not isinstance(values, Mapping) or not values.get("axes"):
        raise UserError(f"{path} is no benchmark: it has no axes:; see docs/benchmark.md for the format")
    _check_names(values, _TOP, str(path))
    title = values.get("title", path.stem)
    if not isinstance(title, str):
        raise UserError(f"{path}: title is {shown(title)}: use text")
    fraction = values.get("validation_fraction", 0.5)
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 0.5:
        raise UserError(f"{path}: validation_fraction is {shown(fraction)}: use a number above 0, at most 0.5")
    base = values.get("base") or {}
    _check_names(base, SECTIONS, f"{path}, base:")
    return BenchmarkFile(
        path=path,
        title=title,
        base=dict(base),
        seeds=read_seeds(values.get("seeds", [0]), str(path)),
        axes=_read_axes(values["axes"], str(path)),
        validation_fraction=float(fraction),
    )


def read_seeds(value: Any, origin: str) -> tuple[int, ...]:
    """Seeds as a list of distinct whole numbers.

    Raises:
        UserError: it is anything else.
    """
    good = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not good or any(type(seed) is not int or seed < 0 for seed in value) or len(set(value)) < len(value):
        raise UserError(f"{origin}: seeds is {shown(value)}: use a list of different whole numbers, such as [0, 1, 2]")
    return tuple(value)


def _read_axes(axes: Any, origin: str) -> dict[str, dict[str, dict[str, Any]]]:
    if not isinstance(axes, Mapping):
        raise UserError(f"{origin}, axes: has {shown(axes)} where axes should stand: write NAME: and entries below it")
    read: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, entries in axes.items():
        if not isinstance(entries, Mapping) or not entries:
            raise UserError(
                f"{origin}, axes: {axis}: has {shown(entries)} where entries should stand: write NAME: {{...}}"
            )
        read[str(axis)] = {}
        for name, overlay in entries.items():
            _check_names(overlay or {}, _OVERLAY, f"{origin}, {axis}: {name}:")
            read[str(axis)][str(name)] = dict(overlay or {})
        if len(read[str(axis)]) < len(entries):
            raise UserError(f"{origin}, axes: {axis}: has two entries of one name; rename one")
    return read


def _check_names(values: Any, known: Sequence[str], origin: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{origin} has {shown(values)} where options should stand: {', '.join(known)}")
    for name in values:
        if name not in known:
            raise UserError(f"{origin} has an unknown option {shown(name)}; {nearest_names(str(name), known)}")
        if name in SECTIONS and not isinstance(values[name], Mapping):
            raise UserError(
                f"{origin}, {name}: has {shown(values[name])} where options should stand: write NAME: VALUE"
            )


_WORDS = {
    "tag:yaml.org,2002:bool": re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"),
    "tag:yaml.org,2002:float": re.compile(
        r"(?:[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$"
    ),
}


class _Loader(yaml.SafeLoader):
    """YAML in which ``on`` is a word, ``1e-5`` a number, and a name given twice an error."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way
        first: [(tag, _WORDS.get(tag, pattern)) for tag, pattern in resolvers]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, (str, int, float, bool)):
                raise yaml.constructor.ConstructorError(None, None, "a name is no text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} is there twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)
