"""A benchmark's YAML file: reading it, checking its names, and merging its nested options."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unimetric.config import RunConfig
from unimetric.errors import UserError, nearest_names, shown
from unimetric.option_types import misread
from unimetric.yaml_files import read_yaml

SECTIONS = tuple(field.name for field in dataclasses.fields(RunConfig))
_TOP = ("title", "base", "seeds", "axes", "validation_fraction")
_OVERLAY = (*SECTIONS, "seeds", "datasets", "choose", "choose_like")
MODES = ("all", "each", "leave-one-out")


@dataclass(frozen=True)
class MatrixFile:
    """The content of a benchmark's file.

    Args:
        path: The file, for messages.
        title: The table's title.
        base: Options of all runs, as nested mappings.
        seeds: ``training.seed`` of the runs of entries without seeds.
        axes: By axis and name, each entry's options and its words (``seeds``, ``datasets``, ``choose``,
            ``choose_like``).
        validation_fraction: Share of the train classes that options are chosen on; above 0, at most 0.5.
    """

    path: Path
    title: str
    base: dict[str, Any]
    seeds: tuple[int, ...]
    axes: dict[str, dict[str, dict[str, Any]]]
    validation_fraction: float

    @property
    def sources(self) -> list[str]:
        """The base's ``data.sources``, empty if there are none; a `UserError` if they are no list."""
        sources = self.base.get("data", {}).get("sources") or []
        if not isinstance(sources, Sequence) or isinstance(sources, str):
            raise UserError(f"--data.sources is {sources!r}: use a list, as in [birds, cars]")
        return [str(source) for source in sources]


def read_matrix(path: Path) -> MatrixFile:
    """Read a benchmark's file; a `UserError` if it cannot be read, or has unknown or malformed parts."""
    values = read_yaml(path)
    if not isinstance(values, Mapping) or not values.get("axes"):
        raise UserError(f"{path} is not a benchmark: it has no axes:; see docs/benchmark.md for the format")
    _check_names(values, _TOP, str(path))
    title = values.get("title", path.stem)
    if not isinstance(title, str):
        raise UserError(f"{path}: title is {shown(title)}: use text")
    fraction = values.get("validation_fraction", 0.5)
    if isinstance(fraction, bool) or not isinstance(fraction, (int, float)) or not 0 < fraction <= 0.5:
        raise UserError(f"{path}: validation_fraction is {shown(fraction)}: use a number above 0, at most 0.5")
    base = values.get("base") or {}
    _check_names(base, SECTIONS, f"{path}, base:")
    return MatrixFile(
        path=path,
        title=title,
        base=dict(base),
        seeds=read_seeds(values.get("seeds", [0]), str(path)),
        axes=_read_axes(values["axes"], str(path)),
        validation_fraction=float(fraction),
    )


def read_seeds(value: Any, origin: str) -> tuple[int, ...]:
    """Return seeds, given as a list of distinct whole numbers."""
    good = isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0
    if not good or any(type(seed) is not int or seed < 0 for seed in value) or len(set(value)) < len(value):
        raise UserError(f"{origin}: seeds is {shown(value)}: use a list of different whole numbers, such as [0, 1, 2]")
    return tuple(value)


def _read_axes(axes: Any, origin: str) -> dict[str, dict[str, dict[str, Any]]]:
    if not isinstance(axes, Mapping):
        raise UserError(f"{origin}, axes: has {shown(axes)} where axes belong: write NAME: and entries below it")
    read: dict[str, dict[str, dict[str, Any]]] = {}
    for axis, entries in axes.items():
        if not isinstance(entries, Mapping) or not entries:
            raise UserError(f"{origin}, axes: {axis}: has {shown(entries)} where entries belong: write NAME: {{...}}")
        # Numbers are good names.
        _check_texts({name: None for name in entries if type(name) not in (int, float)}, f"{origin}, axes: {axis}:")
        read[str(axis)] = {}
        for name, overlay in entries.items():
            _check_names(overlay or {}, _OVERLAY, f"{origin}, {axis}: {name}:")
            read[str(axis)][str(name)] = dict(overlay or {})
        if len(read[str(axis)]) < len(entries):
            raise UserError(f"{origin}, axes: {axis}: has two entries of one name; rename one")
    return read


def _check_names(values: Any, known: Sequence[str], origin: str) -> None:
    if not isinstance(values, Mapping):
        raise UserError(f"{origin} has {shown(values)} where options belong: {', '.join(known)}")
    for name in values:
        if name not in known:
            raise UserError(f"{origin} has an unknown option {shown(name)}; {nearest_names(str(name), known)}")
        if name in SECTIONS and not isinstance(values[name], Mapping):
            raise UserError(f"{origin}, {name}: has {shown(values[name])} where options belong: write NAME: VALUE")
        if name in SECTIONS:
            _check_texts(values[name], f"{origin}, {name}:")


def _check_texts(values: Mapping[Any, Any], origin: str) -> None:
    """Check that YAML reads all names as text, at any depth; it reads ``no`` as a truth value."""
    if remedy := misread(values, dict[str, Any]):
        raise UserError(f"{origin} {remedy}")
    for name, value in values.items():
        if isinstance(value, Mapping):
            _check_texts(value, f"{origin} {name}:")


def read_candidates(choose: Any, origin: str) -> list[dict[str, Any]]:
    """Return every combination of the values to choose from, by dotted option.

    Raises:
        UserError: an unknown option, one that cannot be chosen, or values that are not a list.
    """
    if not isinstance(choose, Mapping):
        raise UserError(
            f"{origin}: choose is {choose!r}: write options and lists, as in training.learning_rate: [1e-5]"
        )
    if not choose:
        return []
    for name, values in choose.items():
        if str(name).split(".")[0] not in SECTIONS or "." not in str(name):
            raise UserError(
                f"{origin}, choose: has an unknown option {name!r}: write SECTION.OPTION, as training.steps"
            )
        if name in ("training.seed", "evaluation.classes", "data.validation_fraction", "data.sources"):
            raise UserError(f"{origin}, choose: {name} cannot be chosen by the numbers; leave it out")
        listed = isinstance(values, Sequence) and not isinstance(values, str) and len(values) > 0
        if not listed or any(values.count(value) > 1 for value in values):
            raise UserError(f"{origin}, choose: {name} is {values!r}: use a list of different values")
    return [dict(zip(choose, values, strict=True)) for values in itertools.product(*choose.values())]


def merge(*overlays: Mapping[str, Any]) -> dict[str, Any]:
    """Merge nested mappings; a later one's values win.

    >>> merge({"model": {"method": "puma", "image_size": 112}}, {"model": {"method": "lora"}})
    {'model': {'method': 'lora', 'image_size': 112}}
    """
    merged: dict[str, Any] = {}
    for overlay in overlays:
        for name, value in overlay.items():
            if isinstance(value, Mapping):
                before = merged.get(name)
                merged[name] = merge(before if isinstance(before, Mapping) else {}, value)
            else:
                merged[name] = deepcopy(value)
    return merged


def nested(dotted: Mapping[str, Any]) -> dict[str, Any]:
    """Return options by dotted name as nested mappings.

    >>> nested({"training.learning_rate": 0.1, "model.options.prompts": 4})
    {'training': {'learning_rate': 0.1}, 'model': {'options': {'prompts': 4}}}
    """
    values: dict[str, Any] = {}
    for name, value in dotted.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        values = merge(values, value)
    return values
