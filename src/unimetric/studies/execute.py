"""Run what a plan has to do: skip what is done, resume what was cut off, go on after a failure."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from unimetric.files import make_folder, write_text
from unimetric.progress import say
from unimetric.studies.lock import locked
from unimetric.studies.plan import Entry, Model, Plan, Run, words
from unimetric.studies.process import Commands, command_line
from unimetric.studies.state import Folder, State, options_text, runs_of


@dataclass(frozen=True)
class Failure:
    """A run that failed, or that could not be started.

    Args:
        run: Its name.
        reason: The last line that it said.
        log: Everything that it said; None where it could not be started.
    """

    run: str
    reason: str
    log: Path | None


def execute(plan: Plan, folder: Folder, after_each: Callable[[], None]) -> list[Failure]:
    """Run everything that is not done.

    All runs of the first seed come before those of the second, so that a table is soon complete.

    Args:
        plan: What to run.
        folder: Where.
        after_each: Called after every run that succeeded.

    Returns:
        The runs that failed; the others are done.

    Raises:
        UserError: a folder holds a run of other options, or another benchmark is running there.
        Stopped: Ctrl-C or SIGTERM; the run under way has saved.
    """
    make_folder(folder.out)
    with locked(folder.out) as lock, Commands(lock) as commands:
        return _Execution(plan, folder, commands, after_each).run()


def listed(plan: Plan, folder: Folder) -> list[tuple[str, State]]:
    """Every run by name with its state; of runs that wait for a choice, one line per model.

    Raises:
        UserError: a folder holds a run of other options.
    """
    lines: list[tuple[str, State]] = []
    for entry in plan.entries:
        lines += [(run.name, folder.state(run)) for run in runs_of(plan, folder, entry)]
        for model in entry.models:
            if folder.chosen(plan, entry, model) is None:
                name = entry.name if model.name == "all" else f"{entry.name}, {model.name}"
                lines += [(f"{name}, seed {seed}, with the chosen options", "to do") for seed in entry.seeds]
    return lines


class _Execution:
    def __init__(self, plan: Plan, folder: Folder, commands: Commands, after_each: Callable[[], None]) -> None:
        self.plan, self.folder, self.commands, self.after_each = plan, folder, commands, after_each
        self.failures: dict[str, Failure] = {}
        self.tried: set[str] = set()

    def run(self) -> list[Failure]:
        runs = [run for entry in self.plan.entries for run in runs_of(self.plan, self.folder, entry)]
        states = [self.folder.state(run) for run in runs]
        done = states.count("done")
        say(f"{self.plan.file.title}: {done} runs are done, {len(states) - done} and what waits for them are to do.")
        for seed_index in range(max(len(entry.seeds) for entry in self.plan.entries)):
            for entry in self.plan.entries:
                if seed_index < len(entry.seeds):
                    self._run_entry(entry, entry.seeds[seed_index])
        return list(self.failures.values())

    def _run_entry(self, entry: Entry, seed: int) -> None:
        members = [run for model in entry.models if (run := self._run_model(entry, model, seed)) is not None]
        if entry.mode == "each" and len(members) == len(entry.models) > 1:
            self._do(self.plan.ensemble(entry, seed, members))

    def _run_model(self, entry: Entry, model: Model, seed: int) -> Run | None:
        """Choose the model's options and train it; the run, if it is done then."""
        failed = [trial for trial in self.plan.choice_runs(entry, model) if not self._do(trial)]
        chosen = self.folder.chosen(self.plan, entry, model)
        if chosen is None:
            name = entry.name if model.name == "all" else f"{entry.name}, {model.name}"
            values = "; ".join(words(trial.candidate or {}) for trial in failed)
            reason = f"not started: the choice waits for what failed ({values}): mend that, or take it out of choose"
            self.failures.setdefault(f"{name}, seed {seed}", Failure(f"{name}, seed {seed}", reason, None))
            return None
        run = self.plan.run(entry, model, seed, chosen)
        return run if self._do(run) else None

    def _do(self, run: Run) -> bool:
        """Bring a run to its end, if it is not there; whether it is now."""
        state = self.folder.state(run)
        if state == "done":
            return True
        if run.folder in self.tried:
            return False
        self.tried.add(run.folder)
        files = self.folder.files(run)
        make_folder(files.folder.parent)
        if state == "to do" and files.folder.is_dir():
            # What an evaluation, or a training that was killed before its first step, has left.
            shutil.rmtree(files.folder)
        write_text(files.options, options_text(run))
        say(f"{run.name}: {'going on' if state == 'cut off' else 'started'}, log in {files.log}")
        size = files.log.stat().st_size if files.log.is_file() else 0
        code = self.commands.run(arguments(run, self.folder, resume=state == "cut off"), files.log)
        if code == 0 and files.metrics.is_file():
            say(f"{run.name}: {_result(self.folder, run)}")
            self.after_each()
            return True
        failure = Failure(run.name, _reason(files.log, size, code), files.log)
        self.failures[run.name] = failure
        say(f"{run.name}: failed: {failure.reason} (see {files.log})", style="red")
        return False


def arguments(run: Run, folder: Folder, *, resume: bool = False) -> list[str]:
    """The command line of a run, after ``unimetric``."""
    files = folder.files(run)
    options = ["--config", str(files.options)]
    if run.kind == "train":
        return ["train", "--resume" if resume else "--out", str(files.folder), *options]
    if run.kind == "evaluate":
        return ["evaluate", *options, "--out", str(files.folder)]
    members = [str(folder.out / member) for member in run.members]
    return ["evaluate", "--ensemble", *members, *options, "--out", str(files.folder)]


def command(run: Run, folder: Folder) -> str:
    """What to type for the same run."""
    return command_line(arguments(run, folder))


def _result(folder: Folder, run: Run) -> str:
    metrics = folder.metrics(run) or {}
    if not metrics.get("harmonic"):
        return "done"
    harmonic, unified = (100 * metrics[part]["recall@1"] for part in ("harmonic", "unified"))
    return f"Recall@1 {harmonic:.1f} % harmonic, {unified:.1f} % unified"


def _reason(log: Path, start: int, code: int) -> str:
    """The last line that a failed command said, or the signal that ended it."""
    if code < 0:
        name = signal.Signals(-code).name
        hint = ", perhaps for lack of memory" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}"
    with log.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return next(_last_words(lines), f"exit code {code}")


def _last_words(lines: list[str]) -> Iterator[str]:
    # The first line is the command itself.
    for line in reversed(lines[1:]):
        yield line.removeprefix("unimetric: error: ")
