"""The runs of a benchmark: the product of its axes, each entry with its models and seeds.

Nothing here imports torch, so that a plan is shown at once.
"""

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unimetric.config import RunConfig
from unimetric.data.labels import clean_label
from unimetric.errors import UserError, nearest_names
from unimetric.studies.matrix_file import MODES, SECTIONS, MatrixFile, merge, nested, read_candidates, read_seeds
from unimetric.studies.names import COLUMNS, absolute_source, describe_values, slugs

Check = Callable[[Mapping[str, Any], str], RunConfig]
"""From nested options, and their origin for messages, to a configuration."""


@dataclass(frozen=True)
class Model:
    """One model of an entry; with several seeds it is trained several times.

    Args:
        name: ``all``, ``only NAME``, or ``without NAME``.
        slug: Its folder's name within the entry's folder.
        dataset: The dataset whose separate numbers it gives; None for all.
        values: Its options as nested mappings, without the chosen ones.
    """

    name: str
    slug: str
    dataset: str | None
    values: dict[str, Any] = field(hash=False)


@dataclass(frozen=True)
class Entry:
    """A row of the table; two rows for dataset-specific models, one of them for their ensemble.

    Args:
        name: The names on all axes.
        slug: Its folder's name.
        mode: ``all``: one model, trained on everything. ``each``: a model per dataset, trained on that.
            ``leave-one-out``: a model per dataset, trained on all others.
        seeds: ``training.seed`` of the runs.
        values: Its options as nested mappings, without those of single models and chosen ones.
        models: The models to train.
        candidates: The sets of values to choose from, by dotted option; empty if nothing is chosen.
        choose_like: The entry whose choice is used instead.
    """

    name: str
    slug: str
    mode: str
    seeds: tuple[int, ...]
    values: dict[str, Any] = field(hash=False)
    models: tuple[Model, ...]
    candidates: tuple[dict[str, Any], ...] = field(default=(), hash=False)
    choose_like: str | None = None

    def model_name(self, model: Model) -> str:
        """Return a model's name for messages."""
        return self.name if model.name == "all" else f"{self.name}, {model.name}"


@dataclass(frozen=True)
class Run:
    """One command and its run folder.

    Args:
        kind: ``train``; ``evaluate`` for a frozen backbone; ``ensemble`` of trained models.
        entry: The name of its entry.
        model: The name of its model.
        folder: Relative to the benchmark's folder.
        seed: ``training.seed``.
        config: Every option.
        candidate: The values on trial, if this is a run to choose by.
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
        """The run's name for messages."""
        trial = "" if self.candidate is None else f", trying {describe_values(self.candidate)}"
        model = "" if self.model == "all" else f", {self.model}"
        return f"{self.entry}{model}{trial}, seed {self.seed}"


@dataclass(frozen=True)
class Plan:
    """A benchmark that is ready to run."""

    file: MatrixFile
    datasets: tuple[str, ...]
    entries: tuple[Entry, ...]
    check: Check = field(repr=False)

    def entry(self, name: str) -> Entry:
        """Return the entry with a name."""
        return next(entry for entry in self.entries if entry.name == name)

    def chooser(self, entry: Entry, model: Model) -> tuple[Entry, Model]:
        """Return the entry and model whose choice a model uses: its own, or that of `Entry.choose_like`."""
        if entry.choose_like is None:
            return entry, model
        other = self.entry(entry.choose_like)
        return other, other.models[0]

    def choice_runs(self, entry: Entry, model: Model) -> list[Run]:
        """Return the runs on validation classes that decide a model's options; empty if nothing is to be chosen."""
        entry, model = self.chooser(entry, model)
        trial = {
            "data": {"validation_fraction": self.file.validation_fraction},
            # Validated once, at the end.
            "training": {"seed": 0, "validate_every": 10**9, "selection": "last"},
            "evaluation": {"classes": "validation"},
        }
        folders = slugs(describe_values(candidate) for candidate in entry.candidates)
        runs = []
        for candidate in entry.candidates:
            values = merge(model.values, nested(candidate), trial)
            folder = f"{entry.slug}/{model.slug}-choose-{folders[describe_values(candidate)]}/seed-0"
            runs.append(self._run(entry, model, folder, 0, values, candidate))
        return runs

    def run(self, entry: Entry, model: Model, seed: int, chosen: Mapping[str, Any]) -> Run:
        """Return the run of a model with a seed and the options chosen for it."""
        values = merge(model.values, nested(chosen), {"training": {"seed": seed}})
        return self._run(entry, model, f"{entry.slug}/{model.slug}/seed-{seed}", seed, values, None)

    def runs(self, entry: Entry, seed: int, chosen: Mapping[str, Mapping[str, Any] | None]) -> list[Run]:
        """Return the runs of an entry's models with a seed, of those whose options are ``chosen``, by name."""
        known = ((model, chosen[model.name]) for model in entry.models)
        return [self.run(entry, model, seed, options) for model, options in known if options is not None]

    def _run(
        self, entry: Entry, model: Model, folder: str, seed: int, values: Mapping[str, Any], candidate: Any
    ) -> Run:
        # A frozen row belongs in the matrix itself.
        values = merge({"evaluation": {"baseline": False}}, values)
        config = self.check(values, f"{self.file.path}, {entry.name}")
        kind: Literal["train", "evaluate"] = "evaluate" if config.model.method == "frozen" else "train"
        return Run(kind, entry.name, model.name, folder, seed, config, candidate)

    def ensemble(self, entry: Entry, seed: int, members: Sequence[Run]) -> Run:
        """Return the run that measures the average embedding of an entry's models."""
        config = self.check(merge(entry.values, {"training": {"seed": seed}}), f"{self.file.path}, {entry.name}")
        folder = f"{entry.slug}/ensemble/seed-{seed}"
        inside = tuple(member.folder for member in members)
        return Run("ensemble", entry.name, "ensemble", folder, seed, config, members=inside)

    def checked_runs(self) -> Iterator[Run]:
        """Yield one run per different set of options, without the seeds."""
        for entry in self.entries:
            for model in entry.models:
                for candidate in self.chooser(entry, model)[0].candidates or ({},):
                    yield self.run(entry, model, entry.seeds[0], candidate)


def make_plan(
    file: MatrixFile,
    sources: Sequence[str],
    check: Check,
    dataset_names: Callable[[Sequence[str]], Sequence[str]] | None = None,
) -> Plan:
    """Lay out the runs of a benchmark, with these sources in the place of the file's, if there are any.

    ``check`` makes a configuration of options; by default, the sources are read for the names of their datasets.

    Raises:
        UserError: an entry is malformed, a source cannot be read, none is given, or a dataset has the name of a column.
    """
    named = [absolute_source(source) for source in sources or file.sources]
    if not named:
        raise UserError(
            f"{file.path} names no sources: name them on the command line, as in unimetric benchmark {file.path.stem} "
            "SOURCES... --out FOLDER"
        )
    base = merge(file.base, {"data": {"sources": named}})
    names = tuple((dataset_names or read_dataset_names)(named))
    if taken := next((name for name in names if name in COLUMNS), None):
        raise UserError(
            f"{file.path}: a dataset has the name {taken!r}, which is another column of the table; give it one of its "
            "own, as in NAME=PATH"
        )
    plan = Plan(file, names, tuple(_entries(file, base, names)), _memoized(check))
    _check_plan(plan)
    return plan


def read_dataset_names(sources: Sequence[str]) -> list[str]:
    """Return the names of the datasets in sources, in their order; a `UserError` if a source cannot be read."""
    from unimetric.data.sources import read_sources

    return [dataset.name for dataset in read_sources(sources)]


def _memoized(check: Check) -> Check:
    """Return the check with its results cached, because a plan's runs are requested repeatedly."""
    known: dict[str, RunConfig] = {}

    def memoized(values: Mapping[str, Any], origin: str) -> RunConfig:
        key = json.dumps([origin, values], sort_keys=True, default=repr)
        if key not in known:
            known[key] = check(values, origin)
        return known[key]

    return memoized


def _entries(file: MatrixFile, base: Mapping[str, Any], datasets: Sequence[str]) -> list[Entry]:
    combinations = list(itertools.product(*file.axes.values()))
    names = [", ".join(labels) for labels in combinations]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file.path}: two entries have the name {twice!r}; rename one")
    folders = slugs(names)
    return [
        _entry(file, base, datasets, name, folders[name], labels)
        for name, labels in zip(names, combinations, strict=True)
    ]


def _entry(
    file: MatrixFile, base: Mapping[str, Any], datasets: Sequence[str], name: str, folder: str, labels: Sequence[str]
) -> Entry:
    origin = f"{file.path}, {name}"
    overlay = merge(*(file.axes[axis][label] for axis, label in zip(file.axes, labels, strict=True)))
    if "sources" in (overlay.get("data") or {}):
        raise UserError(f"{origin}: data.sources is the same for all entries; write it in base, or after the command")
    values = merge(base, {section: overlay[section] for section in SECTIONS if section in overlay})
    mode = overlay.get("datasets", "all")
    if mode not in MODES:
        raise UserError(f"{origin}: datasets is {mode!r}; {nearest_names(str(mode), MODES)}")
    seeds = read_seeds(overlay.get("seeds", file.seeds), origin)
    return Entry(
        name=name,
        slug=folder,
        mode=mode,
        # Nothing is random in a frozen backbone.
        seeds=seeds[:1] if values.get("model", {}).get("method") == "frozen" else seeds,
        values=values,
        models=tuple(_models(values, mode, datasets, origin)),
        candidates=tuple(read_candidates(overlay.get("choose", {}), origin)),
        choose_like=_liked(overlay.get("choose_like"), file, labels, origin),
    )


def _models(values: dict[str, Any], mode: str, datasets: Sequence[str], origin: str) -> list[Model]:
    if mode == "all":
        return [Model("all", "all", None, values)]
    trained = [clean_label(str(name)) for name in (values.get("data") or {}).get("train_datasets") or datasets]
    for name in trained:
        if name not in datasets:
            raise UserError(f"{origin}: data.train_datasets names {name!r}; {nearest_names(str(name), datasets)}")
    if mode == "leave-one-out" and len(trained) < 2:
        raise UserError(
            f"{origin}: datasets is 'leave-one-out', with one dataset only ({trained[0]!r}): give two or more"
        )

    def others(name: str) -> list[str]:
        return [other for other in trained if other != name]

    word = "only" if mode == "each" else "without"
    return [
        Model(
            f"{word} {name}",
            f"{word}-{folder}",
            name,
            merge(values, {"data": {"train_datasets": [name] if mode == "each" else others(name)}}),
        )
        for name, folder in slugs(trained).items()
    ]


def _liked(wanted: Any, file: MatrixFile, labels: Sequence[str], origin: str) -> str | None:
    """Return the name of the entry that differs in one label only: the one that ``choose_like`` names on its axis."""
    if wanted is None:
        return None
    for index, axis in enumerate(file.axes):
        if str(wanted) in file.axes[axis] and "choose_like" in file.axes[axis][labels[index]]:
            return ", ".join([*labels[:index], str(wanted), *labels[index + 1 :]])
    valid = [name for axis in file.axes for name in file.axes[axis]]
    raise UserError(f"{origin}: choose_like is {wanted!r}; {nearest_names(str(wanted), valid)}")


def _check_plan(plan: Plan) -> None:
    """Refuse impossible entries before anything runs."""
    for entry in plan.entries:
        origin = f"{plan.file.path}, {entry.name}"
        _check_choice(plan, entry, origin)
        for model in entry.models:
            plan.choice_runs(entry, model)
    for run in plan.checked_runs():
        origin, mode = f"{plan.file.path}, {run.entry}", plan.entry(run.entry).mode
        if run.config.evaluation.classes != "test":
            raise UserError(f"{origin}: evaluation.classes is 'validation', which is for choosing; leave it out")
        if run.kind == "evaluate" and mode != "all":
            raise UserError(f"{origin}: datasets is {mode!r}, but frozen trains nothing; leave datasets out")


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
