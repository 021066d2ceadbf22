"""Tables as they appear on terminals, and in Markdown."""

from __future__ import annotations

import re
from typing import Any

import pytest
from rich.console import Console

from unimetric.report.tables import print_results, result_cells

COUNTS: dict[str, Any] = {
    "queries": 40,
    "gallery": 50,
    "queries_without_positive": 0,
    "skipped_files": 0,
    "datasets_left_out": [],
}


def metrics(separate: dict[str, float], harmonic: float, unified: float, **more: Any) -> dict[str, Any]:
    return {
        "separate": {name: {"recall@1": value} for name, value in separate.items()},
        "harmonic": {"recall@1": harmonic},
        "unified": {"recall@1": unified},
        "counts": COUNTS,
        "model": {"trainable_parameters": 2_485_376},
        "seconds": 5.4,
    } | more


ROWS = [
    ("frozen", metrics({"birds": 0.5, "cars": 0.0666}, 0.1, 0.2, model={"trainable_parameters": 0})),
    ("puma", metrics({"birds": 1.0, "flowers": 0.25}, 0.3, 0.4, training_seconds=3600.0)),
]


def rendered(rows: list[tuple[str, dict[str, Any]]], width: int) -> list[str]:
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        print_results(rows, console)
    return capture.get().splitlines()


def cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_a_wide_terminal_has_a_row_for_each_model() -> None:
    lines = rendered(ROWS, 120)
    assert lines[0].strip() == "Recall@1, %"
    assert cells(lines[1]) == ["birds", "cars", "flowers", "harmonic", "unified", "trained", "time"]
    assert cells(lines[3]) == ["frozen", "50.0", "6.7", "–", "10.0", "20.0", "0", "0:05"]
    assert cells(lines[4]) == ["puma", "100.0", "–", "25.0", "30.0", "40.0", "2.49 M", "1:00:05"]


def test_a_narrow_terminal_has_a_column_for_each_model() -> None:
    lines = rendered(ROWS, 60)
    assert cells(lines[1]) == ["frozen", "puma"]
    assert [cells(line) for line in lines[3:10]] == [
        ["birds", "50.0", "100.0"],
        ["cars", "6.7", "–"],
        ["flowers", "–", "25.0"],
        ["harmonic", "10.0", "30.0"],
        ["unified", "20.0", "40.0"],
        ["trained", "0", "2.49 M"],
        ["time", "0:05", "1:00:05"],
    ]
    assert all(len(line) <= 60 for line in lines)


def test_the_table_turns_exactly_where_it_would_not_fit() -> None:
    width = max(map(len, rendered(ROWS, 200)[:6]))
    assert "birds" in rendered(ROWS, width)[1]
    assert "birds" not in rendered(ROWS, width - 1)[1]


@pytest.mark.parametrize("width", [60, 200])
def test_names_that_look_like_markup_are_printed_as_they_are(width: int) -> None:
    rows = [("[bold]x", metrics({"[/red]": 0.5, "[link=a]b": 0.25}, 0.5, 0.5))]
    text = "\n".join(rendered(rows, width))
    assert all(name in text for name in ("[bold]x", "[/red]", "[link=a]b"))


def test_what_was_not_measured_is_said() -> None:
    counts = COUNTS | {"queries_without_positive": 3, "skipped_files": 2, "datasets_left_out": ["b", "c d"]}
    text = rendered([("puma", metrics({"a": 0.5}, 0.5, 0.5, counts=counts))], 60)[-1]
    assert text == (
        "puma: 40 queries against 50 images, 3 of them without a positive, skipped, 2 files skipped, "
        "named in metrics.json, no number for 'b', 'c d'"
    )


def test_cells() -> None:
    header, cells = result_cells([*ROWS, ("a|b", metrics({"cars": 0.1}, 0.1, 0.1, seconds=59.6))])
    assert header == ["Recall@1, %", "birds", "cars", "flowers", "harmonic", "unified", "trained", "time"]
    assert cells == [
        ["frozen", "50.0", "6.7", "–", "10.0", "20.0", "0", "0:05"],
        ["puma", "100.0", "–", "25.0", "30.0", "40.0", "2.49 M", "1:00:05"],
        ["a|b", "–", "10.0", "–", "10.0", "10.0", "2.49 M", "1:00"],
    ]


def test_the_demo_has_a_row_for_each_model_on_eighty_columns() -> None:
    separate = dict.fromkeys(("digits", "glyphs", "icons", "photographs"), 1.0)
    rows = [("frozen", metrics(separate, 1.0, 1.0)), ("puma", metrics(separate, 1.0, 1.0, training_seconds=700.0))]
    lines = rendered(rows, 80)
    assert cells(lines[1]) == [*separate, "harmonic", "unified", "trained", "time"]
    assert [cells(line)[0] for line in lines[3:5]] == ["frozen", "puma"]


def test_eight_domains_have_a_row_for_each_model_on_a_hundred_columns() -> None:
    names = ("birds", "cars", "products", "clothes", "food", "signs", "art", "plants")
    rows = [(name, metrics(dict.fromkeys(names, 0.5), 0.5, 0.5)) for name in ("frozen", "puma")]
    assert "birds" in rendered(rows, 100)[1]
    assert "birds" not in rendered(rows, 80)[1]
    assert max(map(len, rendered(rows, 80)[:16])) <= 80


def test_what_the_packaged_backbone_is() -> None:
    note = "dinov2-small is a DINOv2 that was fine-tuned for saliency"
    for backbone, count in (("dinov2-small", 1), ("vit_tiny_patch16_224", 0)):
        model = {"trainable_parameters": 0, "backbone": backbone}
        rows = [(name, metrics({"a": 0.5}, 0.5, 0.5, model=model)) for name in ("frozen", "puma")]
        assert "\n".join(rendered(rows, 80)).count(note) == count


def test_a_run_that_was_not_measured_has_dashes() -> None:
    rows = [("puma", metrics({}, 0, 0) | {"harmonic": None, "unified": None})]
    assert cells(rendered(rows, 80)[3])[1:3] == ["–", "–"]


def with_intervals(separate: dict[str, float]) -> dict[str, Any]:
    ends = {"recall@1": [0.401, 0.4459]}
    return metrics(
        separate,
        0.424,
        0.41,
        intervals={
            "separate": dict.fromkeys(separate, ends),
            "harmonic": ends,
            "unified": {"recall@1": [0.0, 1.0]},
            "unified_gap": dict.fromkeys(separate, (-0.0004, 0.0123)),
        },
        unified_gap=dict.fromkeys(separate, 0.0051),
    )


def test_one_model_has_intervals_and_what_it_loses_in_the_union() -> None:
    lines = rendered([("puma", with_intervals({"birds": 0.4237, "cars": 1.0}))], 80)
    assert lines[0].strip() == "Recall@1, % [95 % interval]"
    assert [cells(line) for line in lines[1:2] + lines[3:9]] == [
        ["puma", "lost in the union"],
        ["birds", "42.4 [40.1, 44.6]", "0.5 [0.0, 1.2]"],
        ["cars", "100.0 [40.1, 44.6]", "0.5 [0.0, 1.2]"],
        ["harmonic", "42.4 [40.1, 44.6]"],
        ["unified", "41.0 [0.0, 100.0]"],
        ["trained", "2.49 M"],
        ["time", "0:05"],
    ]


def test_intervals_go_where_there_is_no_room_for_them() -> None:
    rows = [("puma", with_intervals(dict.fromkeys(("birds", "cars"), 0.4)))]
    width = max(map(len, rendered(rows, 200)[:9]))
    assert "[40.1, 44.6]" in rendered(rows, width)[3]
    assert cells(rendered(rows, width - 1)[3]) == ["birds", "40.0", "0.5"]


def test_several_models_have_rows_columns_and_at_last_no_intervals() -> None:
    rows = [(name, with_intervals(dict.fromkeys(("birds", "cars"), 0.4))) for name in ("frozen", "puma")]
    assert cells(rendered(rows, 120)[3])[:2] == ["frozen", "40.0 [40.1, 44.6]"]
    assert cells(rendered(rows, 60)[3]) == ["birds", "40.0 [40.1, 44.6]", "40.0 [40.1, 44.6]"]
    assert cells(rendered(rows, 30)[3]) == ["birds", "40.0", "40.0"]


@pytest.mark.parametrize("width", [40, 80, 100, 200])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_no_line_of_eight_domains_is_wider_than_the_terminal(count: int, width: int) -> None:
    names = ("birds", "cars", "products", "clothes", "food", "signs", "art", "plants")
    rows = [(f"m{number}", with_intervals(dict.fromkeys(names, 1.0))) for number in range(count)]
    lines = rendered(rows, width)[: -count or None]
    assert max(map(len, lines)) <= width
    starts = [line.split()[0] for line in lines if line.strip()]
    assert set(names) <= set(starts) or {"m0"} <= set(starts)
