"""Work in threads: results in order, a bounded number under way, and no waiting for what hangs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forked import ForkedCommand
from unimetric.data.pool import in_order


@given(count=st.integers(0, 60), threads=st.integers(1, 5), ahead=st.integers(1, 9))
def test_results_come_in_the_order_of_the_tasks(count: int, threads: int, ahead: int) -> None:
    taken: list[int] = []

    def tasks() -> Iterator[int]:
        for task in range(1, count + 1):
            taken.append(task)
            yield task

    for done, result in enumerate(in_order(lambda task: -task, tasks(), threads=threads, ahead=ahead), 1):
        assert result == -done
        assert len(taken) <= done - 1 + ahead
    assert len(taken) == count


def test_an_error_is_raised_at_its_place_and_ends_the_threads() -> None:
    before = threading.active_count()
    results = in_order(lambda task: 1 / task, [1, 2, 0, 4], threads=2, ahead=4)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert threading.active_count() == before


def test_whoever_stops_early_leaves_no_work_behind() -> None:
    before, begun, go_on = threading.active_count(), [], threading.Event()

    def work(task: int) -> int:
        begun.append(task)
        if task:
            go_on.wait()
        return task

    results = in_order(work, range(100), threads=1, ahead=50)
    assert next(results) == 0
    go_on.set()
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
    assert len(begun) < 100


HANGING = """
import os, signal, threading
from unimetric.data.batches import prepared_batches
from unimetric.training.interrupt import sigterm_as_keyboard_interrupt

def hang():
    os.write(2, b"hangs\\n")
    threading.Event().wait()

signal.signal(signal.SIGINT, signal.default_int_handler)  # also where a shell in the background has it ignored
with sigterm_as_keyboard_interrupt():
    for batch in prepared_batches([hang, hang, hang], lambda image: image, batch_size=2, threads=2):
        raise AssertionError
"""


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.soak), signal.SIGTERM])
def test_a_signal_ends_the_wait_for_a_file_system_that_hangs(number: signal.Signals, tmp_path: Path) -> None:
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    process = ForkedCommand([], tmp_path / "log", str(script))
    while not process.log.exists() or "hangs" not in process.log.read_text():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(number)
    try:
        process.wait(timeout=60)  # for ever with threads that are waited for
    finally:
        process.kill()
    assert "KeyboardInterrupt" in process.log.read_text()
