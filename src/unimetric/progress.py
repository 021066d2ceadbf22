"""Progress bars on the terminal, for everything longer than two seconds."""

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
"""Everything said to a person goes to standard error; standard output is for results."""


def say(text: str, style: str | None = None) -> None:
    """Tell a person one line, as it is: names that look like markup stay what they are, and nothing is wrapped."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def progress_bar(disable: bool = False) -> Progress:
    """A bar with the count, the time spent and the time left, on standard error."""
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
