"""The words of search answers: how many answers of each are right, on queries that took no part in the calibration.

    python benchmarks/words.py NAME RUN [NAME RUN ...]

Of the vectors that ``unimetric evaluate`` or ``train`` wrote, no model runs. Every test image is a query among all the
others. Half of the classes calibrate and the other half test, in 10 random halvings, each used in both directions; and
each collection is tested with the calibration of all others. Writes ``words.json`` and ``words.md`` into ``results``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from machine import write_result
from unimetric.evaluation.thresholds import calibrate
from unimetric.formats.vectors import read_measured
from unimetric.search.calibration import Calibration, strength_of

WORDS = ("identical", "strong", "possible", "weak")
HALVINGS, FIRST = 10, 10
"""Random halvings of the classes, and the answers of a search that are judged."""
KINDS = {"classes": "other classes of the same collections", "collection": "a collection that was not measured"}

Floats = NDArray[np.float64]
Rows = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Searches:
    """Each image of a run as a query among all others.

    Attributes:
        similarities: [Q, Q]; -inf for the query itself.
        same: True for images of the query's class, [Q, Q].
        datasets: [Q].
        classes: Numbers of the classes, [Q].
    """

    similarities: Floats
    same: Rows
    datasets: NDArray[np.str_]
    classes: NDArray[np.int64]

    @classmethod
    def read(cls, folder: Path) -> Searches:
        """Read a run's vectors and compare all of them."""
        measured = read_measured(folder / "vectors.parquet")
        vectors = measured.query_vectors.astype(np.float64)
        similarities = vectors @ vectors.T
        np.fill_diagonal(similarities, -np.inf)
        datasets = np.array([item.dataset for item in measured.query])
        _, classes = np.unique([f"{item.dataset}\0{item.label}" for item in measured.query], return_inverse=True)
        return cls(similarities, classes[:, None] == classes[None], datasets, classes)

    def best(self, columns: Rows, of_class: bool) -> Floats:
        """The highest similarity of each query to an image of its class, or of others, among these columns."""
        values = np.where(self.same == of_class, self.similarities, -np.inf)[:, columns].max(axis=1)
        return np.where(np.isfinite(values), values, np.nan)

    def calibrated(self, queries: Rows) -> Calibration:
        """The calibration by some queries, as ``metrics.json`` has it."""

        def part(rows: Rows, columns: Rows) -> dict[str, Any]:
            genuine, impostors = self.best(columns, True)[rows], self.best(columns, False)[rows]
            return calibrate(genuine, impostors, np.where(genuine > impostors, 1.0, 0.0)).to_dict()

        everything = np.ones(len(self.datasets), bool)
        separate = {
            str(name): part(queries & (self.datasets == name), self.datasets == name)
            for name in np.unique(self.datasets[queries])
        }
        return Calibration.from_dict({"unified": part(queries, everything), "separate": separate})


def splits(searches: Searches, kind: str) -> Iterator[tuple[Rows, Rows]]:
    """Queries that calibrate, and queries that test."""
    if kind == "collection":
        for name in np.unique(searches.datasets):
            yield searches.datasets != name, searches.datasets == name
        return
    for seed in range(HALVINGS):
        half = np.random.default_rng(seed).permutation(searches.classes.max() + 1) % 2 == 0
        rows = half[searches.classes]
        yield rows, ~rows
        yield ~rows, rows


def measure(searches: Searches, kind: str) -> dict[str, dict[str, int]]:
    """Answers with each word: the first, those of them that are right, and so on."""
    names = ("first", "first_right", "shown", "shown_right", "absent")
    counts = {word: dict.fromkeys(names, 0) for word in WORDS}
    order = np.argsort(-searches.similarities, axis=1)[:, :FIRST]
    others = np.where(searches.same, -np.inf, searches.similarities)
    for calibrating, testing in splits(searches, kind):
        calibration = searches.calibrated(calibrating)

        def word(query: int, row: int, calibration: Calibration = calibration) -> str:
            score = float(searches.similarities[query, row])
            (confidence,) = calibration.confidences([score], [str(searches.datasets[row])])
            return strength_of(score, 1.0, confidence) or "none"

        for query in np.flatnonzero(testing):
            counts[word(query, int(others[query].argmax()))]["absent"] += 1
            for rank, row in enumerate(order[query].tolist()):
                found, right = counts[word(query, row)], int(searches.same[query, row])
                found["shown"] += 1
                found["shown_right"] += right
                found["first"] += rank == 0
                found["first_right"] += right * (rank == 0)
    return counts


def share(part: int, whole: int) -> str:
    """A percentage; a dash for a share of nearly nothing."""
    return f"{100 * part / whole:.0f}" if whole >= 20 else "–"


def report(measured: dict[str, dict[str, dict[str, dict[str, int]]]]) -> str:
    """The page with the tables."""
    lines = [
        "# The words of search answers, measured",
        "",
        "`python benchmarks/words.py`, on the test images of runs: classes that were not trained on. A word is right",
        "if the answer is of the query's class; queries that took part in the calibration are not counted.",
        "",
        "- *right*: of the first answers with this word, in percent;",
        "- *of the first ten*: of all answers with this word among the first ten;",
        "- *searches*: the share of searches whose first answer has this word, in percent;",
        "- *absent*: the same after removing the query's class from the catalogue, when every answer is wrong.",
    ]
    for kind, title in KINDS.items():
        lines += ["", f"## Calibrated on {title}", ""]
        lines += ["| model | word | right | of the first ten | searches | absent |", "|---|---|---:|---:|---:|---:|"]
        for name, kinds in measured.items():
            total = sum(found["first"] for found in kinds[kind].values())
            for word, found in kinds[kind].items():
                if found["first"] or found["absent"]:
                    cells = (
                        share(found["first_right"], found["first"]),
                        share(found["shown_right"], found["shown"]),
                        share(found["first"], total),
                        share(found["absent"], total),
                    )
                    lines.append(f"| {name} | {word} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> None:
    """Measure runs, and write the results."""
    measured = {}
    for name, folder in zip(arguments[::2], arguments[1::2], strict=True):
        searches = Searches.read(Path(folder))
        measured[name] = {kind: measure(searches, kind) for kind in KINDS}
    write_result("words", {"assumed_share_absent": 0.2, "answers": measured})
    (Path(__file__).parent / "results" / "words.md").write_text(report(measured))


if __name__ == "__main__":
    main(sys.argv[1:])
