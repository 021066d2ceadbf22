"""What a benchmark's folder holds: which runs are done, cut off or to do, and which options were chosen."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml

from unimetric.config import RunConfig, read_options, run_config
from unimetric.errors import UserError
from unimetric.studies.plan import Entry, Model, Plan, Run, words

State = Literal["done", "cut off", "to do"]


@dataclass(frozen=True)
class RunFiles:
    """Where a run's files lie.

    ``folder`` is what the command writes; beside it are the options that it is given (``.yaml``), and what it says
    (``.log``).
    """

    folder: Path

    @property
    def options(self) -> Path:
        """The options that the command is given."""
        return self.folder.with_name(f"{self.folder.name}.yaml")

    @property
    def log(self) -> Path:
        """What the command said."""
        return self.folder.with_name(f"{self.folder.name}.log")

    @property
    def metrics(self) -> Path:
        """The measured numbers; written last."""
        return self.folder / "metrics.json"

    @property
    def started(self) -> Path:
        """The configuration that a training was started with."""
        return self.folder / "config.yaml"


@dataclass(frozen=True)
class Folder:
    """A benchmark's folder.

    Args:
        out: Its path.
    """

    out: Path

    def files(self, run: Run) -> RunFiles:
        """The files of a run."""
        return RunFiles(self.out / run.folder)

    def metrics(self, run: Run) -> dict[str, Any] | None:
        """The run's ``metrics.json``; None where it is not done.

        Raises:
            UserError: the file is damaged.
        """
        path = self.files(run).metrics
        if not path.is_file():
            return None
        try:
            metrics = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(metrics["separate"], dict):
                raise TypeError("separate is no mapping")  # noqa: TRY301 - one message for all damage
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): delete {path.parent}, and the run is made again") from error
        return dict(metrics)

    def state(self, run: Run) -> State:
        """How far the run is.

        Raises:
            UserError: what is there was made with other options.
        """
        files = self.files(run)
        done = files.metrics.is_file()
        made_with = files.started if run.kind == "train" else files.options
        if (done or run.kind == "train") and made_with.is_file():
            _refuse_other_options(run, files, run_config(read_options(made_with), str(made_with)))
        if done and not self._is_outdated(run):
            return "done"
        return "cut off" if run.kind == "train" and files.started.is_file() else "to do"

    def _is_outdated(self, run: Run) -> bool:
        """Whether an ensemble was measured before one of its members was made anew."""
        measured = self.files(run).metrics.stat().st_mtime_ns
        members = [self.out / member / "metrics.json" for member in run.members]
        return any(not path.is_file() or path.stat().st_mtime_ns > measured for path in members)

    def chosen(self, plan: Plan, entry: Entry, model: Model) -> dict[str, Any] | None:
        """The options chosen for a model: none where nothing is to choose; None while runs to choose by are missing.

        The best harmonic Recall@1 on validation classes wins; of equals, the one that the file names first.
        """
        runs = plan.choice_runs(entry, model)
        scores = self.choice_scores(runs)
        if any(score is None for score in scores):
            return None
        best = max(range(len(runs)), key=lambda index: (scores[index], -index), default=None)
        return {} if best is None else dict(runs[best].candidate or {})

    def choice_scores(self, runs: list[Run]) -> list[float | None]:
        """Harmonic Recall@1 of every run, None where it is not done."""
        measured = [self.metrics(run) for run in runs]
        return [None if metrics is None else float(metrics["harmonic"]["recall@1"]) for metrics in measured]


def runs_of(plan: Plan, folder: Folder, entry: Entry) -> Iterator[Run]:
    """The runs of an entry that can be told so far: runs to choose by, and the others once the choice is made."""
    chosen: dict[str, dict[str, Any] | None] = {}
    listed: set[str] = set()
    for model in entry.models:
        if entry.choose_like is None:
            for run in plan.choice_runs(entry, model):
                listed.add(run.folder)
                yield run
        chosen[model.name] = folder.chosen(plan, entry, model)
    for seed in entry.seeds:
        members = [
            plan.run(entry, model, seed, options)
            for model in entry.models
            if (options := chosen[model.name]) is not None
        ]
        yield from members
        if entry.mode == "each" and len(members) == len(entry.models) > 1:
            yield plan.ensemble(entry, seed, members)


def options_text(run: Run) -> str:
    """The text of the options file that the run's command is given."""
    return yaml.safe_dump(asdict(run.config), sort_keys=False, allow_unicode=True)


def _refuse_other_options(run: Run, files: RunFiles, found: RunConfig) -> None:
    planned, made = _deciding(run.config), _deciding(found)
    for name in dict.fromkeys([*planned, *made]):
        if planned.get(name) != made.get(name):
            raise UserError(
                f"{files.folder} was made with --{name} {made.get(name)!r}, but {run.name} is planned with "
                f"{planned.get(name)!r}: put the option back, delete that folder, or choose another --out"
            )


def _deciding(config: RunConfig) -> dict[str, Any]:
    """Options by dotted name, without those that say where the computation runs."""
    sections: Mapping[str, Mapping[str, Any]] = asdict(config)
    return {
        f"{section}.{name}": value
        for section, options in sections.items()
        if section != "device"
        for name, value in options.items()
        if (section, name) != ("data", "workers")
    }


def describe_choice(plan: Plan, folder: Folder, entry: Entry, model: Model) -> str | None:
    """One line about what was chosen and from what; None where nothing was."""
    chosen = folder.chosen(plan, entry, model)
    runs = plan.choice_runs(entry, model)
    if not chosen:
        return None
    if entry.choose_like:
        return f"{entry.name}: {words(chosen)}, as chosen for {entry.choose_like}"
    scores = folder.choice_scores(runs)
    tried = "; ".join(
        f"{words(run.candidate or {})}: {100 * score:.1f} %"
        for run, score in zip(runs, scores, strict=True)
        if score is not None
    )
    name = entry.name if model.name == "all" else f"{entry.name}, {model.name}"
    return f"{name}: chose {words(chosen)} by harmonic Recall@1 on held-out train classes ({tried})"
