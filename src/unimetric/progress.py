"""Status lines and progress bars on standard error; standard output is left to results."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

T = TypeVar("T")

console = Console(stderr=True)
"""The console on standard error."""


def log_status(text: str, style: str | None = None) -> None:
    """Print one line to standard error, without wrapping it and without reading markup in it."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


say = log_status


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
