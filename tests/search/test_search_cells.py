"""Values of Arrow columns, and searches of several threads in one run."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unimetric.search.memory.cells import Cells, column_of, packed
from unimetric.search.memory.combining import Combined

KINDS = {
    pa.string(): st.text(st.characters(codec="utf-8") | st.just("\x1f"), max_size=5),
    pa.large_string(): st.text(max_size=5),
    pa.float64(): st.floats(allow_nan=False),
    pa.bool_(): st.booleans(),
    pa.date32(): st.dates(min_value=date(1900, 1, 1)),
}


@given(st.data())
def test_values_are_those_of_arrow(data: st.DataObject) -> None:
    size = data.draw(st.integers(0, 20))
    columns = {}
    for name in ("one", "two", "three"):
        kind = data.draw(st.sampled_from(list(KINDS)))
        value = st.none() | KINDS[kind] if data.draw(st.booleans()) else KINDS[kind]
        columns[name] = pa.array(data.draw(st.lists(value, min_size=size, max_size=size)), kind)
    rows = pa.record_batch(columns).slice(data.draw(st.integers(0, size)))
    places = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)) if len(rows) else [], np.intp)
    expected = rows.take(pa.array(places)).to_pydict()
    for stored in (rows, packed(rows)):
        assert Cells(stored).values(places, ["two", "one", "none"]) == {
            "two": expected["two"],
            "one": expected["one"],
            "none": [None] * len(places),
        }
        assert column_of(stored, "three").to_pylist() == rows["three"].to_pylist()


def test_every_thread_gets_its_own_answers() -> None:
    runs: list[int] = []

    def run(key: int, vectors: np.ndarray) -> list[float]:
        runs.append(len(vectors))
        return (vectors[:, 0] * key).tolist()

    combined: Combined[int, float] = Combined(run)
    begin = threading.Barrier(8)
    wrong: list[tuple[int, list[float]]] = []

    def ask(number: int) -> None:
        begin.wait()
        for step in range(50):
            vectors = np.arange(number, number + 1 + step % 3, dtype=np.float32)[:, None]
            answers = combined(1 + number % 2, vectors)
            if answers != (vectors[:, 0] * (1 + number % 2)).tolist():
                wrong.append((number, answers))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert sum(runs) == 8 * sum(1 + step % 3 for step in range(50))


def test_an_error_reaches_the_thread_that_asked_and_no_later_one() -> None:
    def run(key: str, vectors: np.ndarray) -> list[float]:
        return [1 / float(value) for value in vectors[:, 0]]

    combined: Combined[str, float] = Combined(run)
    with pytest.raises(ZeroDivisionError):
        combined("all", np.zeros((1, 1), np.float32))
    assert combined("all", np.full((2, 1), 2, np.float32)) == [0.5, 0.5]


class _Arriving(np.ndarray):
    """Vectors that tell when they are counted: from then on, the next run has them."""

    arrived: threading.Semaphore

    def __len__(self) -> int:
        self.arrived.release()
        return super().__len__()


def _asked_during_a_run(run: Callable[[np.ndarray], list[float]], calls: list[np.ndarray]) -> list[Any]:
    """Make calls one after the other while another one runs; return the answer or the error of each."""
    begun, go_on = threading.Event(), threading.Event()

    def held(key: str, vectors: np.ndarray) -> list[float]:
        if begun.is_set():
            return run(vectors)
        begun.set()
        assert go_on.wait(60)
        return []

    combined: Combined[str, float] = Combined(held)
    found: list[Any] = [None] * len(calls)

    def ask(number: int, vectors: np.ndarray) -> None:
        try:
            found[number] = combined("all", vectors)
        except ValueError as error:
            found[number] = error

    threads = [threading.Thread(target=combined, args=("all", np.zeros((1, 1), np.float32)))]
    threads[0].start()
    assert begun.wait(60)
    for number, vectors in enumerate(calls):
        arriving = vectors.view(_Arriving)
        arriving.arrived = threading.Semaphore(0)
        threads.append(threading.Thread(target=ask, args=(number, arriving)))
        threads[-1].start()
        assert arriving.arrived.acquire(timeout=60)
    go_on.set()
    for thread in threads:
        thread.join(60)
    return found


def test_calls_that_arrive_during_a_run_share_the_next_ones() -> None:
    sizes = []

    def run(vectors: np.ndarray) -> list[float]:
        sizes.append(np.shape(vectors)[0])
        return vectors[:, 0].tolist()

    calls = [np.full((20, 1), number, np.float32) for number in range(5)]
    assert _asked_during_a_run(run, calls) == [[float(number)] * 20 for number in range(5)]
    # 64 queries a run at most.
    assert sizes == [60, 40]


def test_calls_whose_shared_run_failed_are_made_alone() -> None:
    def run(vectors: np.ndarray) -> list[float]:
        if 0 in vectors:
            raise ValueError("zero")
        return vectors[:, 0].tolist()

    first, *others = _asked_during_a_run(run, [np.full((1, 1), number, np.float32) for number in (0, 1, 2)])
    assert isinstance(first, ValueError)
    assert others == [[1.0], [2.0]]
