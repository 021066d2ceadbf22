"""Comparisons against `paired_bootstrap` on values put in order by hand."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from runs import make_run, write_run

from unimetric.errors import UserError
from unimetric.evaluation import evaluate, paired_bootstrap
from unimetric.formats.vectors import MeasuredVectors, read_measured
from unimetric.report.compare import compare_runs, difference_words, opis_words, print_comparison, write_comparison

NAMES = ("birds", "cars")


def shuffled(folder: Path, measured: MeasuredVectors, seed: int = 3) -> Path:
    """The same measurement with its images in another order."""
    order = np.random.default_rng(seed).permutation(len(measured.query))
    return write_run(folder, tuple(measured.query[row] for row in order), measured.query_vectors[order])


def per_query(measured: MeasuredVectors) -> Any:
    labels, datasets = ([getattr(item, name) for item in measured.query] for name in ("label", "dataset"))
    return evaluate(measured.query_vectors, labels, datasets).per_query


@pytest.fixture
def runs(tmp_path: Path) -> tuple[Path, Path]:
    pictures = tmp_path / "pictures"
    first = make_run(tmp_path / "first", NAMES, noise=1.5, pictures=pictures, images=6)
    return first, make_run(tmp_path / "second", NAMES, noise=1.0, seed=1, pictures=pictures, images=6)


def test_every_run_is_in_the_legend(runs: tuple[Path, Path], tmp_path: Path) -> None:
    names = ("_old", "__", "run $x^2$")
    for name in names:
        shutil.copytree(runs[0], tmp_path / name)
    write_comparison(compare_runs([tmp_path / name for name in names]), tmp_path / "page.html")
    figure = (tmp_path / "page.html").read_text().partition("<figure>")[2].partition("</figure>")[0]
    assert re.findall(">([^<>]+)</text>", figure)[-len(names) :] == list(names)


def test_every_value_is_that_of_its_dataset_whatever_the_order_of_the_datasets(
    runs: tuple[Path, Path], tmp_path: Path
) -> None:
    measured = read_measured(runs[0] / "vectors.parquet")
    turned = write_run(tmp_path / "turned", measured.query[::-1], measured.query_vectors[::-1])
    comparison = compare_runs([runs[0], turned])
    assert [name for name, _ in comparison.opis] == [*NAMES, "unified"]
    assert len({own for _, (own, _) in comparison.opis}) == 3, "a test of the order needs different values"
    for _, (own, other) in comparison.opis:
        assert own == pytest.approx(other, abs=1e-12)
    for _, cells in comparison.lines:
        assert cells[0].score.value == pytest.approx(cells[1].score.value, abs=1e-12)


def test_a_difference_is_that_of_the_paired_bootstrap(runs: tuple[Path, Path], tmp_path: Path) -> None:
    first, second = (read_measured(run / "vectors.parquet") for run in runs)
    comparison = compare_runs([runs[0], shuffled(tmp_path / "shuffled", second)])
    ours, theirs = per_query(second), per_query(first)
    separate = paired_bootstrap(ours.by_dataset("separate"), theirs.by_dataset("separate"))
    unified = paired_bootstrap(ours.by_dataset("unified"), theirs.by_dataset("unified"))
    expected = [*separate.datasets.values(), separate.harmonic, unified.overall]
    assert [name for name, _ in comparison.lines] == [*NAMES, "harmonic", "unified"]
    assert [cells[1].difference for _, cells in comparison.lines] == expected
    assert all(cells[0].difference is None for _, cells in comparison.lines)
    assert any(difference.difference != 0 for difference in expected), "a test of differences needs one"


def test_the_other_way_round_is_the_opposite(runs: tuple[Path, Path]) -> None:
    one, other = compare_runs(runs), compare_runs(runs[::-1])
    for (_, forth), (_, back) in zip(one.lines, other.lines, strict=True):
        assert forth[1].difference is not None
        assert back[1].difference is not None
        assert forth[1].difference.difference == pytest.approx(-back[1].difference.difference)
        assert forth[1].difference.probability == pytest.approx(1 - back[1].difference.probability)
        assert [cell.score for cell in forth] == [cell.score for cell in back][::-1]


def test_a_line_fits_eighty_columns(runs: tuple[Path, Path]) -> None:
    comparison = compare_runs(runs)
    console = Console(width=80)
    with console.capture() as capture:
        print_comparison(comparison, console)
    lines = capture.get().splitlines()[:-1]
    assert max(map(len, lines)) <= 80
    words = " ".join(difference_words(comparison.lines[-1][1][1]))
    assert " ".join(lines[-2].split()).endswith(words)
    assert lines[-1].split()[0] == "OPIS"


def test_one_image_more_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    second = read_measured(runs[1] / "vectors.parquet")
    fewer = write_run(tmp_path / "fewer", second.query[1:], second.query_vectors[1:])
    with pytest.raises(UserError, match=r"'0\.png' of 'birds' is in one of them only"):
        compare_runs([runs[0], fewer])


def test_opis_of_every_gallery_beside_the_first_run(runs: list[Path], tmp_path: Path) -> None:
    comparison = compare_runs(runs)
    assert [name for name, _ in comparison.opis] == [*comparison.analyses[0].datasets, "unified"]
    for run, analysis in enumerate(comparison.analyses):
        found = [values[run] for _, values in comparison.opis]
        written = analysis.numbers["thresholds"]
        assert found == [part["consistency"]["opis"] for part in (*written["separate"].values(), written["unified"])]
    assert opis_words(0.0412, None) == ("0.0412", "")
    assert opis_words(0.0412, 0.05) == ("0.0412", "−0.0088")
    assert opis_words(None, 0.05) == ("–", "")
