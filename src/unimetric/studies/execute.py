"""Execution of a plan: finished runs are skipped, interrupted ones resumed, and a failure does not stop the rest."""

import itertools
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from unimetric.files import make_folder, write_text
from unimetric.progress import log_status
from unimetric.studies.names import describe_values
from unimetric.studies.plan import Entry, Model, Plan, Run
from unimetric.studies.process import RunProcesses
from unimetric.studies.state import Folder, State, runs_of
from unimetric.yaml_files import as_yaml


@dataclass(frozen=True)
class Failure:
    """A run that failed, or that could not be started.

    Args:
        run: Its name.
        reason: The last line of its output.
        log: The file with its output; None if it was not started.
    """

    run: str
    reason: str
    log: Path | None


def execute(plan: Plan, folder: Folder, after_each: Callable[[], object]) -> list[Failure]:
    """Run everything that is not done, all entries of the first seed before the second seed; return what failed.

    ``after_each`` is called after every run that succeeded.

    Raises:
        UserError: a folder holds a run with other options, or another benchmark is running there.
        Stopped: Ctrl-C or SIGTERM; the current run has saved.
    """
    make_folder(folder.out)
    with RunProcesses(folder.out) as processes:
        return _Execution(plan, folder, processes, after_each).run()


def listed(plan: Plan, folder: Folder) -> list[tuple[str, State]]:
    """List every run by name with its state; runs that wait for a choice have one line per model and seed."""
    lines: list[tuple[str, State]] = []
    for entry in plan.entries:
        lines += [(run.name, folder.state(run)) for run in runs_of(plan, folder, entry)]
        for model in entry.models:
            if folder.chosen(plan, entry, model) is None:
                name = entry.model_name(model)
                lines += [(f"{name}, seed {seed}, with the chosen options", "to do") for seed in entry.seeds]
    return lines


class _Execution:
    def __init__(self, plan: Plan, folder: Folder, processes: RunProcesses, after_each: Callable[[], object]) -> None:
        self.plan, self.folder, self.processes, self.after_each = plan, folder, processes, after_each
        self.failures: dict[str, Failure] = {}
        self.tried: set[str] = set()

    def run(self) -> list[Failure]:
        runs = [run for entry in self.plan.entries for run in runs_of(self.plan, self.folder, entry)]
        states = [self.folder.state(run) for run in runs]
        done = states.count("done")
        log_status(f"{self.plan.file.title}: {done} of {len(states)} known runs are done.")
        for seeds in itertools.zip_longest(*(entry.seeds for entry in self.plan.entries)):
            for entry, seed in zip(self.plan.entries, seeds, strict=True):
                if seed is None:
                    continue
                members = [run for model in entry.models if (run := self._run_model(entry, model, seed)) is not None]
                if entry.mode == "each" and len(members) == len(entry.models) > 1:
                    self._do(self.plan.ensemble(entry, seed, members))
        return list(self.failures.values())

    def _run_model(self, entry: Entry, model: Model, seed: int) -> Run | None:
        """Choose the model's options and train it; returns the run, or None if it failed."""
        failed = [trial for trial in self.plan.choice_runs(entry, model) if not self._do(trial)]
        chosen = self.folder.chosen(self.plan, entry, model)
        if chosen is None:
            name = f"{entry.model_name(model)}, seed {seed}"
            values = "; ".join(describe_values(trial.candidate or {}) for trial in failed)
            reason = f"not started: the choice waits for failed runs ({values}): fix those, or take them out of choose"
            self.failures.setdefault(name, Failure(name, reason, None))
            return None
        run = self.plan.run(entry, model, seed, chosen)
        return run if self._do(run) else None

    def _do(self, run: Run) -> bool:
        """Finish a run unless it is done; returns False if it failed."""
        state = self.folder.state(run)
        if state == "done":
            return True
        if run.folder in self.tried:
            return False
        self.tried.add(run.folder)
        files = self.folder.files(run)
        make_folder(files.folder.parent)
        if state == "to do" and files.folder.is_dir():
            # Left by an evaluation, or by a training that was killed before its first step.
            shutil.rmtree(files.folder)
        write_text(files.options, as_yaml(run.config))
        log_status(f"{run.name}: {'resumed' if state == 'cut off' else 'started'}, log in {files.log}")
        size = files.log.stat().st_size if files.log.is_file() else 0
        code = self.processes.run(arguments(run, self.folder, resume=state == "cut off"), files.log)
        if code == 0 and files.metrics.is_file():
            log_status(f"{run.name}: {_result(self.folder, run)}")
            self.after_each()
            return True
        failure = Failure(run.name, _reason(files.log, size, code), files.log)
        self.failures[run.name] = failure
        log_status(f"{run.name}: failed: {failure.reason} (see {files.log})", style="red")
        return False


def arguments(run: Run, folder: Folder, *, resume: bool = False) -> list[str]:
    """Return the arguments of a run's command, without ``unimetric``."""
    files = folder.files(run)
    options = ["--config", str(files.options)]
    if run.kind == "train":
        return ["train", "--resume" if resume else "--out", str(files.folder), *options]
    if run.kind == "evaluate":
        return ["evaluate", *options, "--out", str(files.folder)]
    members = [str(folder.out / member) for member in run.members]
    return ["evaluate", "--ensemble", *members, *options, "--out", str(files.folder)]


def _result(folder: Folder, run: Run) -> str:
    metrics = folder.metrics(run) or {}
    if not metrics.get("harmonic"):
        return "done"
    harmonic, unified = (100 * metrics[part]["recall@1"] for part in ("harmonic", "unified"))
    return f"Recall@1 {harmonic:.1f} % harmonic, {unified:.1f} % unified"


def _reason(log: Path, start: int, code: int) -> str:
    """Return the last line of a failed command's output, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    # The first line is the command itself.
    return lines[-1].removeprefix("unimetric: error: ") if len(lines) > 1 else f"exit code {code}"
