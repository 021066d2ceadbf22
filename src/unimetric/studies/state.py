"""State of a benchmark's folder: the runs that are done, cut off or to do, and the chosen options."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from unimetric.config import RunConfig, read_options, run_config
from unimetric.errors import UserError
from unimetric.files import parse_json
from unimetric.studies.names import describe_values
from unimetric.studies.plan import Entry, Model, Plan, Run

State = Literal["done", "cut off", "to do"]


class RunFiles(NamedTuple):
    """Paths of a run."""

    folder: Path
    options: Path
    """The command's options, beside the folder."""
    log: Path
    """The command's output, beside the folder."""
    metrics: Path
    """The measured numbers; written last."""
    started: Path
    """The configuration of a training that has started."""


@dataclass(frozen=True)
class Folder:
    """A benchmark's folder."""

    out: Path

    def files(self, run: Run) -> RunFiles:
        """Return the paths of a run."""
        folder = self.out / run.folder
        options, log = (folder.with_name(f"{folder.name}{ending}") for ending in (".yaml", ".log"))
        return RunFiles(folder, options, log, folder / "metrics.json", folder / "config.yaml")

    def metrics(self, run: Run) -> dict[str, Any] | None:
        """Return the run's ``metrics.json``, None if it is not done; a `UserError` if it is damaged."""
        path = self.files(run).metrics
        if not path.is_file():
            return None
        try:
            metrics = parse_json(path.read_text(encoding="utf-8"))
            if not isinstance(metrics["separate"], dict):
                raise TypeError("separate is not a mapping")  # noqa: TRY301 - one message for all damage
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}): delete {path.parent} to repeat the run") from error
        return dict(metrics)

    def state(self, run: Run) -> State:
        """Return the state of a run; a `UserError` if the run in the folder has other options."""
        files = self.files(run)
        done = files.metrics.is_file()
        made_with = files.started if run.kind == "train" else files.options
        if (done or run.kind == "train") and made_with.is_file():
            _refuse_other_options(run, files, run_config(read_options(made_with), str(made_with)))
        if done and not self._is_outdated(run):
            return "done"
        return "cut off" if run.kind == "train" and files.started.is_file() else "to do"

    def _is_outdated(self, run: Run) -> bool:
        """Return whether a member of an ensemble is newer than its measurement."""
        measured = self.files(run).metrics.stat().st_mtime_ns
        members = [self.out / member / "metrics.json" for member in run.members]
        return any(not path.is_file() or path.stat().st_mtime_ns > measured for path in members)

    def chosen(self, plan: Plan, entry: Entry, model: Model) -> dict[str, Any] | None:
        """Return the options chosen for a model; None while a run to choose by is missing.

        The best harmonic Recall@1 on validation classes wins; of equals, the file's first.
        """
        runs = plan.choice_runs(entry, model)
        scores = self.choice_scores(runs)
        if any(score is None for score in scores):
            return None
        best = max(range(len(runs)), key=lambda index: (scores[index], -index), default=None)
        return {} if best is None else dict(runs[best].candidate or {})

    def choice_scores(self, runs: list[Run]) -> list[float | None]:
        """Return the harmonic Recall@1 of every run; None for one that is not done."""
        measured = [self.metrics(run) for run in runs]
        return [None if metrics is None else float(metrics["harmonic"]["recall@1"]) for metrics in measured]


def runs_of(plan: Plan, folder: Folder, entry: Entry) -> Iterator[Run]:
    """Yield the known runs of an entry: those to choose by, and the others once the choice is made."""
    chosen: dict[str, dict[str, Any] | None] = {}
    for model in entry.models:
        if entry.choose_like is None:
            yield from plan.choice_runs(entry, model)
        chosen[model.name] = folder.chosen(plan, entry, model)
    for seed in entry.seeds:
        members = plan.runs(entry, seed, chosen)
        yield from members
        if entry.mode == "each" and len(members) == len(entry.models) > 1:
            yield plan.ensemble(entry, seed, members)


def _refuse_other_options(run: Run, files: RunFiles, found: RunConfig) -> None:
    planned, made = _deciding(run.config), _deciding(found)
    for name in dict.fromkeys([*planned, *made]):
        if planned.get(name) != made.get(name):
            raise UserError(
                f"{files.folder} was made with --{name} {made.get(name)!r}, but {run.name} is planned with "
                f"{planned.get(name)!r}: put the option back, delete that folder, or choose another --out"
            )


def _deciding(config: RunConfig) -> dict[str, Any]:
    """Return options by dotted name, without those of the device, its workers and the comparison at the end."""
    sections: Mapping[str, Mapping[str, Any]] = asdict(config)
    return {
        f"{section}.{name}": value
        for section, options in sections.items()
        if section != "device"
        for name, value in options.items()
        if (section, name) not in (("data", "workers"), ("evaluation", "baseline"))
    }


def describe_choice(plan: Plan, folder: Folder, entry: Entry, model: Model) -> str | None:
    """Describe a choice and its alternatives in one line; None if nothing was chosen."""
    chosen = folder.chosen(plan, entry, model)
    runs = plan.choice_runs(entry, model)
    if not chosen:
        return None
    if entry.choose_like:
        return f"{entry.name}: {describe_values(chosen)}, as chosen for {entry.choose_like}"
    scores = folder.choice_scores(runs)
    tried = "; ".join(
        f"{describe_values(run.candidate or {})}: {100 * score:.1f} %"
        for run, score in zip(runs, scores, strict=True)
        if score is not None
    )
    choice = f"{entry.model_name(model)}: chose {describe_values(chosen)}"
    return f"{choice} by harmonic Recall@1 on held-out train classes ({tried})"
