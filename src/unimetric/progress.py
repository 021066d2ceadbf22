"""Status lines and progress bars on standard error; standard output is left to results."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from unimetric.errors import escaped

T = TypeVar("T")

console = Console(stderr=True)
"""The console on standard error."""


def log_status(text: str, style: str | None = None) -> None:
    """Print one line to standard error, without wrapping it and without reading markup in it."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def log_notes(notes: Iterable[str]) -> None:
    """Print remarks, each in a line of its own."""
    for note in notes:
        log_status(f"note: {note}", style="yellow")


def log_skipped(entries: Iterable[Any]) -> None:
    """Print files that were left out, by their ``path`` and ``reason``, each in a line of its own."""
    for entry in entries:
        log_status(f"skipped {escaped(entry.path)}: {entry.reason}")


class Stages:
    """Status lines of a long command's stages, each with the time left.

    Args:
        shares: The stages in order, each with its share of the whole time.
        clock: Returns seconds since an arbitrary moment.
    """

    def __init__(self, shares: Mapping[str, float], clock: Callable[[], float] = time.monotonic) -> None:
        self._shares, self._clock, self._started, self._begun = dict(shares), clock, clock(), 0

    def begin(self) -> None:
        """Print the next stage, and the time left as estimated from the stages that are done."""
        names, shares = list(self._shares), list(self._shares.values())
        done = sum(shares[: self._begun])
        elapsed = self._clock() - self._started
        left = f", {duration(elapsed / done * (sum(shares) - done))} left" if done else ""
        self._begun += 1
        log_status(f"Stage {self._begun} of {len(names)}: {names[self._begun - 1]}{left}", style="bold")


def duration(seconds: float) -> str:
    """Return an estimated time in words.

    >>> duration(4.2), duration(31), duration(200)
    ('about 5 s', 'about 30 s', 'about 3 minutes')
    """
    if seconds < 90:
        return f"about {max(5, round(seconds / 5) * 5)} s"
    return f"about {round(seconds / 60)} minutes"


def clock_time(seconds: float) -> str:
    """Return a time in minutes and seconds, with hours where there are any.

    >>> clock_time(59.6), clock_time(3605)
    ('1:00', '1:00:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def progress_bar(disable: bool = False) -> Progress:
    """Return a progress bar on standard error with a count, the time spent and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=disable,
    )


def track(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yield from ``iterable`` under a progress bar."""
    with progress_bar() as progress:
        task = progress.add_task(description, total=total, note="")
        for value in iterable:
            yield value
            progress.advance(task)
