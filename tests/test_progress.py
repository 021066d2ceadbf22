"""Status lines: names as they are, and the time left by stages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from unimetric.progress import Stages, log_status


def test_a_line_is_not_wrapped_and_markup_is_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = "[bold]x[/bold] " * 30
    log_status(text)
    assert capsys.readouterr() == ("", text + "\n")


def test_stages_estimate_the_time_left_from_those_that_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    times: Iterator[float] = iter([100.0, 100.0, 110.0, 130.0])
    stages = Stages({"Measuring": 0.1, "Training": 0.2, "Indexing": 0.7}, clock=lambda: next(times))
    for _ in range(3):
        stages.begin()
    assert capsys.readouterr().err.splitlines() == [
        "Stage 1 of 3: Measuring",
        "Stage 2 of 3: Training, about 2 minutes left",
        "Stage 3 of 3: Indexing, about 70 s left",
    ]
