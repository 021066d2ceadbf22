"""The arithmetic of rows, and tables that survive any name."""

from __future__ import annotations

import csv
import io
import re
import statistics
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from rich.console import Console

from unimetric.studies.collect import Row, _joined, add_ratios, summarise
from unimetric.studies.names import MEMORY, PARAMETERS, RATIO, SECONDS
from unimetric.studies.results import _machine
from unimetric.studies.tables import _count, latex, latex_escape, make_grid, markdown, print_grid, rows_csv

COLUMNS = ["birds", "R&D_1 | 50 %", "harmonic", "unified", PARAMETERS, SECONDS, MEMORY]


def row(name: str, *recalls: float, seeds: int | None = None) -> Row:
    values = {column: list(recalls) for column in COLUMNS[:4]} | {
        PARAMETERS: [2_485_376.0] * len(recalls),
        SECONDS: [75.4] * len(recalls),
        MEMORY: [1.5e9] * len(recalls),
    }
    done = tuple(range(len(recalls)))
    return Row(name, name, done, tuple(range(seeds or len(recalls))), values)


ROWS = [row("frozen", 0.2), row("PUMA", 0.50, 0.54, 0.52), row("LoRA", 0.52), row("to come", seeds=2)]


@given(st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_mean_and_sample_deviation(values: list[float]) -> None:
    summary = summarise(values)
    assert summary is not None
    mean = sum(values) / len(values)
    assert summary.mean == pytest.approx(mean)
    assert summary.deviation == pytest.approx(
        (sum((x - mean) ** 2 for x in values) / (len(values) - 1)) ** 0.5, abs=1e-9
    )


def test_one_value_has_no_deviation_and_none_no_mean() -> None:
    assert summarise([0.5]) is not None
    assert summarise([0.5]).deviation is None  # type: ignore[union-attr]
    assert summarise([]) is None


def test_the_best_of_a_column_is_bold_and_what_looks_the_same() -> None:
    grid = make_grid(ROWS, COLUMNS)
    cells = dict(grid.rows)
    assert [cells[name][0].text for name in cells] == ["20.0", "52.0 ± 2.0", "52.0", "–"]
    assert [cells[name][0].best for name in cells] == [False, True, True, False]
    assert [cell.text for cell in cells["PUMA"][4:]] == ["2.49 M", "1:15", "1.50 GB"]
    assert not any(cell.best for row_cells in cells.values() for cell in row_cells[4:])
    assert not any(cell.best for cell in make_grid(ROWS[:1], COLUMNS).rows[0][1])


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0"), (9_999, "9999"), (49_280, "49.3 k"), (999_949, "999.9 k"), (999_950, "1.00 M"), (21_715_968, "21.72 M")],
)
def test_parameters_keep_three_digits(count: int, text: str) -> None:
    assert _count(count) == text


def test_the_machine_is_the_gpu_where_there_is_one() -> None:
    machine = {"gpu": None, "processor": "some CPU", "threads": 2, "precision": "bf16", "torch": "2.6"}
    assert _machine(machine) == "some CPU, 2 threads, bf16, torch 2.6"
    assert _machine(machine | {"gpu": "some GPU"}) == "some GPU, 2 threads, bf16, torch 2.6"


def test_specialists_parameters_are_divided_by_each_rows_own() -> None:
    def trained(name: str, *parameters: float) -> Row:
        return Row(name, name, tuple(range(len(parameters))), (0, 1), {PARAMETERS: list(parameters)})

    rows = [trained("frozen", 0.0), trained("PUMA", 2.5e6, 2.5e6), trained("eight", 172.5e6), trained("to come")]
    ratios = {row.name: row.values[RATIO] for row in add_ratios(rows, {"eight"})}
    assert ratios == {"frozen": [], "PUMA": [69.0, 69.0], "eight": [1.0], "to come": []}
    assert dict(make_grid(add_ratios(rows, {"eight"}), [RATIO]).rows)["PUMA"][0].text == "69.0"
    assert add_ratios(rows, {"to come"}) == add_ratios(rows, set()) == rows


def test_markdown() -> None:
    text = markdown("A title", make_grid(ROWS, COLUMNS), ["a note"])
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(COLUMNS) + 2}
    assert "| PUMA | **52.0 ± 2.0** |" in text
    assert text.endswith("\n- a note\n")


@given(st.text(alphabet="\\&%$#_{}~^<>[]()!*`|±–; ab\n", max_size=12))
@example("*a* __b__ _c_ `d` <b>e</b> &lt; [f](g) | h_i")
def test_a_name_is_plain_text_in_the_title_and_notes_of_markdown(name: str) -> None:
    text = markdown(f"T {name} t", make_grid(ROWS, COLUMNS), [f"Seed 0: {name}."])
    blocks = MarkdownIt().parse(text)
    title, note = (
        blocks[1],
        next(block for before, block in pairwise(blocks) if before.type == "paragraph_open" and before.level == 2),
    )
    for block, expected in ((title, f"T {name} t"), (note, f"Seed 0: {name}.")):
        assert {child.type for child in block.children or ()} <= {"text", "text_special"}
        assert "".join(child.content for child in block.children or ()) == " ".join(expected.split())


@given(st.text(alphabet="\\&%$#_{}~^<>[]*|±– ab\n", max_size=12))
def test_latex_has_the_same_cells_whatever_the_name(name: str) -> None:
    text = latex("T", make_grid([row(name, 0.5), row("x", 0.25, 0.75)], COLUMNS), [f"note {name}"])
    body = [line for line in text.splitlines() if not line.startswith("%")]
    assert body[0] == r"\begin{tabular}{lrrrrrrr}"
    assert body[-1] == r"\end{tabular}"
    lines = [line for line in body if line.endswith(r"\\")]
    assert len(lines) == 3
    assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {len(COLUMNS)}
    assert [body[1], body[3], body[-2]] == [r"\toprule", r"\midrule", r"\bottomrule"]
    # A row that began with one of these would hand it to the line break before it.
    assert not any(line.startswith(("[", "*")) for line in body)
    escaped = latex_escape(name)
    assert not re.search(r"(?<!\\)[%#_]", escaped)
    unescaped = re.sub(r"\\[{}]", "", escaped)
    assert unescaped.count("{") == unescaped.count("}")
    assert "\n" not in escaped


def test_latex_marks_the_best() -> None:
    text = latex("T", make_grid(ROWS, COLUMNS), [])
    assert r"PUMA & \textbf{52.0 $\pm$ 2.0}" in text
    assert r"R\&D\_1 \textbar{} 50 \%" in text


def test_csv_has_full_precision() -> None:
    values = [0.123456789012345, 0.2]
    lines = list(csv.DictReader(io.StringIO(rows_csv([row("PUMA", *values), *ROWS[3:]], COLUMNS))))
    assert float(lines[0]["recall@1 birds mean"]) == statistics.fmean(values)
    assert float(lines[0]["recall@1 birds std"]) == statistics.stdev(values)
    assert (lines[0]["seeds"], lines[0]["seeds planned"]) == ("2", "2")
    assert (lines[1]["recall@1 birds mean"], lines[1]["seeds"], lines[1]["seeds planned"]) == ("", "0", "2")


@pytest.mark.parametrize("width", [80, 100, 160])
def test_the_terminal_shows_everything_uncut(width: int) -> None:
    names = [f"dataset-{index}" for index in range(8)]
    columns = [*names, "harmonic", "unified", PARAMETERS, SECONDS, MEMORY]
    rows = [
        Row(f"a rather long name of an entry, number {n}", "e", (0, 1), (0, 1), {c: [0.1 * n, 0.5] for c in columns})
        for n in range(3)
    ]
    console = Console(width=width, record=True, file=io.StringIO())
    print_grid("T", make_grid(rows, columns), [], console)
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for name in [*names, "harmonic", "unified", "trained", "time", "memory"]:
        assert text.count(name) == 1
    assert text.count("±") == 3 * 10


def measured(recalls: dict[str, float], parameters: int, seconds: float, memory: int) -> dict[str, object]:
    return {
        "separate": {name: {"recall@1": value} for name, value in recalls.items()},
        "model": {"trainable_parameters": parameters},
        "training_seconds": seconds,
        "cost": {"peak_memory_bytes": memory},
    }


@pytest.mark.parametrize(("mode", "parameters", "seconds"), [("each", 30, 3.0), ("leave-one-out", 15, 1.5)])
def test_each_dataset_by_its_own_model(mode: str, parameters: int, seconds: float) -> None:
    runs = [measured({"a": 0.5, "b": 0.9}, 10, 1.0, 7), measured({"a": 0.8, "b": 0.25}, 20, 2.0, 5)]
    values = _joined(["a", "b"], runs, mode)
    assert values == {
        "a": 0.5,
        "b": 0.25,
        "harmonic": pytest.approx(2 / (1 / 0.5 + 1 / 0.25)),
        PARAMETERS: parameters,
        SECONDS: seconds,
        MEMORY: 7,
    }
