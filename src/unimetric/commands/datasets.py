"""The benchmark datasets: list them, or check which of them a folder holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unimetric.errors import MissingOptionError, OptionError

if TYPE_CHECKING:
    from unimetric.data.dataset_checks import DatasetCheck

_SHOWN = 3


def datasets(
    action: Literal["list", "check"], root: Path | None = None, *, decode: bool = False, json: bool = False
) -> int:
    """List the benchmark datasets, or check which of them a folder holds.

    Args:
        action: list the datasets, or check which of them ROOT contains. ``check`` names those to download as well.
        root: Folder that holds the datasets, for check.
        decode: Decode every image to find unreadable ones; takes minutes. For check.
        json: Print JSON instead of tables.
    """
    if action == "check" and root is None:
        raise MissingOptionError(
            "ROOT is missing: name the folder that holds the datasets, as in unimetric datasets check ROOT"
        )
    if action == "list" and (root is not None or decode):
        given = "--decode" if root is None else repr(str(root))
        raise OptionError(f"list takes no {given}; leave it out, or write: unimetric datasets check ROOT")
    from unimetric.data.dataset_checks import check_datasets, exit_code, list_datasets

    if root is None:
        if json:
            print(dumps(list_datasets(), indent=2))  # noqa: T201
        else:
            _print_datasets()
        return 0
    checks = check_datasets(root, decode=decode)
    if json:
        print(dumps([check.as_json() for check in checks], indent=2))  # noqa: T201
    else:
        _print_checks(checks)
    return exit_code(checks)


def _print_datasets() -> None:
    """Print a table of the benchmark datasets to standard output."""
    from rich.console import Console
    from rich.table import Table

    from unimetric.data.sources.benchmarks.published import PUBLISHED

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in ("source", "dataset", "images", "classes: train / test"):
        table.add_column(header, justify="right" if header == "images" else "left")
    for name, published in PUBLISHED.items():
        train, *test = published.classes.values()
        table.add_row(name, published.title, f"{published.all_images:,}", f"{train:,} / {test[0]:,}")
    console = Console(markup=False, highlight=False, soft_wrap=True)
    console.print(table)
    console.print(
        "\nRead one with SOURCE:FOLDER, for example cub200:/data/CUB_200_2011.\n"
        "See what is there, and what to download, with: unimetric datasets check FOLDER"
    )


def _print_checks(checks: Sequence[DatasetCheck]) -> None:
    """Print a section for each dataset to standard output, a line for each fact, and a line with the totals."""
    from rich.console import Console
    from rich.text import Text

    # Without markup, which paths may look like; unwrapped, so that they can be copied.
    console = Console(markup=False, highlight=False, soft_wrap=True)
    styles = {"good": "green", "bad": "red", "not found": "yellow"}
    for check in checks:
        title = Text.assemble((check.published.title, "bold"), f" ({check.name}): ", (check.state, styles[check.state]))
        console.print(title)
        for key, value in _lines(check):
            console.print(f"  {key:<11}{value}")
        console.print()
    states = [check.state for check in checks]
    sums = ", ".join(f"{states.count(state)} {state}" for state in styles if state in states)
    console.print(f"{len(checks)} datasets: {sums}")


def _lines(check: DatasetCheck) -> Iterator[tuple[str, str]]:
    published = check.published
    if check.folder is None:
        wanted = f"{' and '.join(published.marks[0])} (usually in {published.folders[0]})"
        yield "looked in", f"{check.looked_in[0]}, its folders and one level below, for {wanted}"
        if check.problem:
            yield "problem", check.problem
            return
        yield "download", f"{published.downloads()} from {published.home}"
        return
    yield "folder", str(check.folder)
    if check.problem:
        yield "problem", check.problem
        if published.home not in check.problem:
            yield "download", f"{published.downloads()} from {published.home}"
        return
    for role, (images, classes) in check.counts().items():
        yield (
            role,
            f"{_of(images, published.images.get(role))} images, {_of(classes, published.classes.get(role))} classes",
        )
    yield "in all", f"{_of(len(check.items), published.all_images)} images"
    if check.differences:
        yield "differs", f"from what was published: {'; '.join(check.differences)}"
    yield "missing", _some(len(check.missing), (_within(check, path) for path in check.missing))
    named = (f"{_within(check, path)} ({reason})" for path, reason in check.unreadable)
    yield "unreadable", _some(len(check.unreadable), named, "" if check.decoded else " (not decoded; see --decode)")
    pairs = (f"{_within(check, test)} is {_within(check, train)}" for train, test in check.duplicates)
    yield "duplicates", _some(len(check.duplicates), pairs, " between train and test")
    if check.missing or check.unreadable:
        yield "download", f"{published.downloads()} from {published.home}"


def _within(check: DatasetCheck, path: Path) -> str:
    """Return the path relative to the dataset's folder, which is printed above it."""
    if check.folder is None or not path.is_relative_to(check.folder):
        return str(path)
    return str(path.relative_to(check.folder))


def _of(found: int, published: int | None) -> str:
    return f"{found:,}" if published in (None, found) else f"{found:,} of {published:,}"


def _some(count: int, texts: Iterable[str], of_what: str = "") -> str:
    """Return the number, and the first few."""
    shown = [text for text, _ in zip(texts, range(_SHOWN), strict=False)]
    more = f" and {count - _SHOWN:,} more" if count > _SHOWN else ""
    return f"{count:,}{of_what}" + (f": {', '.join(shown)}{more}" if shown else "")
