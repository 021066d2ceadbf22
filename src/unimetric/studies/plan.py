"""From a benchmark's file to its runs: the product of the axes, each entry with its models and seeds.

Nothing here imports torch, so that a plan is shown at once.
"""

from __future__ import annotations

import itertools
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unimetric.config import RunConfig, run_config
from unimetric.errors import UserError, nearest_names
from unimetric.studies.names import slugs
from unimetric.studies.reading import SECTIONS, BenchmarkFile, read_file, read_seeds

Check = Callable[[Mapping[str, Any], str], RunConfig]
"""From nested options and what to call them in a message to a configuration."""

_SOURCE = re.compile(r"((?:[^=/\\:]*=)?(?:[A-Za-z][A-Za-z0-9_-]+:)?)(.*)", re.DOTALL)
_MODES = ("all", "each", "leave-one-out")


@dataclass(frozen=True)
class Model:
    """One model of an entry; with several seeds it is trained several times.

    Args:
        name: ``all``, ``only NAME``, or ``without NAME``.
        slug: The name of its folder in the entry's.
        dataset: Whose separate numbers it answers for; None for all.
        values: Its options, as nested mappings, without a chosen one.
    """

    name: str
    slug: str
    dataset: str | None
    values: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Entry:
    """A row of the table (two, where there are dataset-specific models: one is for their ensemble).

    Args:
        name: The names on all axes.
        labels: The name on each axis.
        slug: The name of its folder.
        mode: ``all``: one model, trained on everything. ``each``: a model per dataset, trained on that.
            ``leave-one-out``: a model per dataset, trained on all others.
        seeds: ``training.seed`` of the runs.
        values: Its options, as nested mappings, those of single models and chosen ones left out.
        models: What is trained.
        candidates: The sets of values that one is chosen from, by dotted option; empty where nothing is chosen.
        choose_like: The entry whose choice is taken over.
    """

    name: str
    labels: dict[str, str] = field(hash=False)
    slug: str
    mode: str
    seeds: tuple[int, ...]
    values: dict[str, Any] = field(hash=False)
    models: tuple[Model, ...]
    candidates: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    choose_like: str | None = None


@dataclass(frozen=True)
class Run:
    """One command and the folder that it fills.

    Args:
        kind: ``train``; ``evaluate`` for a frozen backbone; ``ensemble`` of trained models.
        entry: The name of its entry.
        model: The name of its model.
        folder: Relative to the benchmark's folder.
        seed: ``training.seed``.
        config: Every option.
        candidate: The values on trial, where this is a run to choose by.
        members: Folders of the ensemble's runs, relative to the benchmark's folder.
    """

    kind: Literal["train", "evaluate", "ensemble"]
    entry: str
    model: str
    folder: str
    seed: int
    config: RunConfig
    candidate: dict[str, Any] | None = field(default=None, hash=False)
    members: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What to call it in messages."""
        trial = "" if self.candidate is None else f", trying {words(self.candidate)}"
        model = "" if self.model == "all" else f", {self.model}"
        return f"{self.entry}{model}{trial}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A benchmark, ready to be run.

    Args:
        file: What it was made from.
        sources: Where the images are.
        datasets: Names of the datasets, in the sources' order.
        entries: The rows.
        check: How options become a configuration.
    """

    file: BenchmarkFile
    sources: tuple[str, ...]
    datasets: tuple[str, ...]
    entries: tuple[Entry, ...]
    check: Check = field(repr=False)

    def entry(self, name: str) -> Entry:
        """The entry of a name."""
        return next(entry for entry in self.entries if entry.name == name)

    def chooser(self, entry: Entry, model: Model) -> tuple[Entry, Model]:
        """The entry and model whose choice decides for a model: its own, unless `Entry.choose_like` says another."""
        if entry.choose_like is None:
            return entry, model
        other = self.entry(entry.choose_like)
        return other, other.models[0]

    def choice_runs(self, entry: Entry, model: Model) -> list[Run]:
        """The runs on validation classes that decide which options the model gets; empty if nothing is to choose."""
        entry, model = self.chooser(entry, model)
        trial = {
            "data": {"validation_fraction": self.file.validation_fraction},
            # Once, at the end.
            "training": {"seed": 0, "validate_every": 10**9, "selection": "last"},
            "evaluation": {"classes": "validation"},
        }
        folders = slugs(words(candidate) for candidate in entry.candidates)
        runs = []
        for candidate in entry.candidates:
            values = merge(model.values, nested(candidate), trial)
            folder = f"{entry.slug}/{model.slug}-choose-{folders[words(candidate)]}/seed-0"
            runs.append(self._run(entry, model, folder, 0, values, candidate))
        return runs

    def run(self, entry: Entry, model: Model, seed: int, chosen: Mapping[str, Any]) -> Run:
        """The run of a model with a seed and the options that were chosen for it."""
        values = merge(model.values, nested(chosen), {"training": {"seed": seed}})
        return self._run(entry, model, f"{entry.slug}/{model.slug}/seed-{seed}", seed, values, None)

    def _run(
        self, entry: Entry, model: Model, folder: str, seed: int, values: Mapping[str, Any], candidate: Any
    ) -> Run:
        config = self.check(values, f"{self.file.path}, {entry.name}")
        kind: Literal["train", "evaluate"] = "evaluate" if config.model.method == "frozen" else "train"
        return Run(kind, entry.name, model.name, folder, seed, config, candidate)

    def ensemble(self, entry: Entry, seed: int, members: Sequence[Run]) -> Run:
        """The measurement of the average embedding of an entry's models."""
        config = self.check(merge(entry.values, {"training": {"seed": seed}}), f"{self.file.path}, {entry.name}")
        folder = f"{entry.slug}/ensemble/seed-{seed}"
        inside = tuple(member.folder for member in members)
        return Run("ensemble", entry.name, "ensemble", folder, seed, config, members=inside)


def make_plan(
    path: Path,
    sources: Sequence[str] = (),
    *,
    check: Check = run_config,
    dataset_names: Callable[[Sequence[str]], Sequence[str]] | None = None,
) -> Plan:
    """Read a benchmark's file and lay out its runs.

    Args:
        path: The YAML file.
        sources: As in `DataConfig.sources`, instead of the file's.
        check: How options become a configuration.
        dataset_names: From sources to the names of their datasets; by default, the sources are read.

    Raises:
        UserError: the file or an entry is malformed, a source cannot be read, or none is given.
    """
    file = read_file(path)
    named = [absolute_source(source) for source in sources or _sources(file.base)]
    base = merge(file.base, {"data": {"sources": named}})
    if not named:
        raise UserError(
            f"{path} names no sources: name them on the command line, as in unimetric benchmark {path.stem} "
            "SOURCES... --out FOLDER"
        )
    names = tuple((dataset_names or read_dataset_names)(named))
    plan = Plan(file, tuple(named), names, tuple(_entries(file, base, names)), _remembering(check))
    _check_plan(plan)
    return plan


def read_dataset_names(sources: Sequence[str]) -> list[str]:
    """The names of the datasets that sources hold, in their order.

    Raises:
        UserError: a source cannot be read.
    """
    from unimetric.data.sources import read_sources

    return [dataset.name for dataset in read_sources(sources)]


def _remembering(check: Check) -> Check:
    """The same check, made once for the same options: a plan is asked for its runs again and again."""
    known: dict[str, RunConfig] = {}

    def remembering(values: Mapping[str, Any], origin: str) -> RunConfig:
        key = json.dumps([origin, values], sort_keys=True, default=repr)
        if key not in known:
            known[key] = check(values, origin)
        return known[key]

    return remembering


def absolute_source(text: str) -> str:
    """A source string whose path does not depend on the current folder; what is no path that exists stays as it is.

    ``NAME=`` and ``FORMAT:`` in front of the path are kept.
    """
    if text != "demo" and _exists(text):
        return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 - links in the path stay
    match = _SOURCE.fullmatch(text)
    if match is None or not _exists(match[2]):
        return text
    return match[1] + os.path.abspath(Path(match[2]).expanduser())  # noqa: PTH100


def _exists(place: str) -> bool:
    try:
        return bool(place) and Path(place).expanduser().exists()
    except (OSError, ValueError, RuntimeError):
        return False


def merge(*overlays: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings, one over the other: a later one's values win, and mappings are merged in turn.

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
    """Options by dotted name as nested mappings.

    >>> nested({"training.learning_rate": 0.1, "model.options.prompts": 4})
    {'training': {'learning_rate': 0.1}, 'model': {'options': {'prompts': 4}}}
    """
    values: dict[str, Any] = {}
    for name, value in dotted.items():
        for part in reversed(name.split(".")):
            value = {part: value}
        values = merge(values, value)
    return values


def words(candidate: Mapping[str, Any]) -> str:
    """Chosen values for a person.

    >>> words({"training.learning_rate": 2e-05, "model.options.adapter_drop": 0.2})
    'learning_rate 2e-05, adapter_drop 0.2'
    """
    return ", ".join(f"{name.split('.')[-1]} {_word(value)}" for name, value in candidate.items())


def _word(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    return value if isinstance(value, str) else json.dumps(value)


def _sources(base: Mapping[str, Any]) -> list[str]:
    data = base.get("data") or {}
    sources = data.get("sources") if isinstance(data, Mapping) else None
    if sources is None:
        return []
    if not isinstance(sources, Sequence) or isinstance(sources, str):
        raise UserError(f"--data.sources is {sources!r}: use a list, as in [birds, cars]")
    return [str(source) for source in sources]


def _entries(file: BenchmarkFile, base: Mapping[str, Any], datasets: Sequence[str]) -> list[Entry]:
    axes = list(file.axes)
    combinations = list(itertools.product(*file.axes.values()))
    names = [", ".join(labels) for labels in combinations]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file.path}: two entries have the name {twice!r}; rename one")
    folders = slugs(names)
    entries = []
    for name, labels in zip(names, combinations, strict=True):
        origin = f"{file.path}, {name}"
        overlay = merge(*(file.axes[axis][label] for axis, label in zip(axes, labels, strict=True)))
        if "sources" in (overlay.get("data") or {}):
            raise UserError(
                f"{origin}: data.sources is the same for all entries; write it in base, or after the command"
            )
        values = merge(base, {section: overlay[section] for section in SECTIONS if section in overlay})
        mode = overlay.get("datasets", "all")
        if mode not in _MODES:
            raise UserError(f"{origin}: datasets is {mode!r}; {nearest_names(str(mode), _MODES)}")
        seeds = read_seeds(overlay.get("seeds", file.seeds), origin)
        if values.get("model", {}).get("method") == "frozen":
            # Nothing in it is drawn.
            seeds = seeds[:1]
        entries.append(
            Entry(
                name=name,
                labels=dict(zip(axes, labels, strict=True)),
                slug=folders[name],
                mode=mode,
                seeds=seeds,
                values=values,
                models=tuple(_models(values, mode, datasets, origin)),
                candidates=tuple(_candidates(overlay.get("choose", {}), origin)),
                choose_like=_liked(overlay.get("choose_like"), file, axes, labels, origin),
            )
        )
    return entries


def _models(values: dict[str, Any], mode: str, datasets: Sequence[str], origin: str) -> list[Model]:
    if mode == "all":
        return [Model("all", "all", None, values)]
    trained = list((values.get("data") or {}).get("train_datasets") or datasets)
    for name in trained:
        if name not in datasets:
            raise UserError(f"{origin}: data.train_datasets names {name!r}; {nearest_names(str(name), datasets)}")
    if mode == "each":
        return [
            Model(f"only {name}", f"only-{folder}", name, merge(values, {"data": {"train_datasets": [name]}}))
            for name, folder in slugs(trained).items()
        ]
    if len(trained) < 2:
        raise UserError(
            f"{origin}: datasets is 'leave-one-out', with one dataset only ({trained[0]!r}): give two or more"
        )
    return [
        Model(
            f"without {name}",
            f"without-{folder}",
            name,
            merge(values, {"data": {"train_datasets": [other for other in trained if other != name]}}),
        )
        for name, folder in slugs(trained).items()
    ]


def _candidates(choose: Any, origin: str) -> list[dict[str, Any]]:
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


def _liked(wanted: Any, file: BenchmarkFile, axes: Sequence[str], labels: Sequence[str], origin: str) -> str | None:
    """The name of the entry that differs in one label only: the one that ``choose_like`` names on its own axis."""
    if wanted is None:
        return None
    for index, axis in enumerate(axes):
        if str(wanted) in file.axes[axis] and "choose_like" in file.axes[axis][labels[index]]:
            return ", ".join([*labels[:index], str(wanted), *labels[index + 1 :]])
    valid = [name for axis in axes for name in file.axes[axis]]
    raise UserError(f"{origin}: choose_like is {wanted!r}; {nearest_names(str(wanted), valid)}")


def _check_plan(plan: Plan) -> None:
    """Refuse, before anything runs, what could not be run."""
    for entry in plan.entries:
        origin = f"{plan.file.path}, {entry.name}"
        _check_choice(plan, entry, origin)
        for model in entry.models:
            for candidate in plan.chooser(entry, model)[0].candidates or ({},):
                run = plan.run(entry, model, entry.seeds[0], candidate)
                if run.config.evaluation.classes != "test":
                    raise UserError(
                        f"{origin}: evaluation.classes is 'validation', which is for choosing; leave it out"
                    )
                if run.kind == "evaluate" and entry.mode != "all":
                    raise UserError(
                        f"{origin}: datasets is {entry.mode!r}, but frozen trains nothing; leave datasets out"
                    )
            plan.choice_runs(entry, model)


def _check_choice(plan: Plan, entry: Entry, origin: str) -> None:
    if entry.choose_like is None:
        return
    if entry.candidates:
        raise UserError(f"{origin}: choose and choose_like are both given; leave one out")
    other = plan.entry(entry.choose_like)
    if not other.candidates or other.mode != "all":
        raise UserError(
            f"{origin}: choose_like names {other.name!r}, which chooses nothing for all datasets at once; name an "
            "entry with choose and without datasets"
        )
    if entry.mode == "leave-one-out":
        raise UserError(
            f"{origin}: choose_like would look at classes of the dataset that is left out; write choose instead"
        )
