"""Searches of several threads in one run: those that arrive during a run are answered together by the next one."""

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")

_MOST = 64
"""Queries of one run; one call may have more."""


class _Run(Generic[Answer]):
    """The calls of one run, which the thread of the first makes; it holds `running` from the beginning."""

    def __init__(self, is_open: bool) -> None:
        self.is_open = is_open
        self.calls: list[NDArray[np.float32]] = []
        self.size = 0
        self.answers: list[Answer] | None = None
        self.running = threading.Lock()
        self.running.acquire()
        self.joined: list[threading.Lock] = []


class Combined(Generic[Key, Answer]):
    """A function of queries whose calls by several threads at once share runs.

    Calls of different keys do not wait for each other. ``run`` returns the answer to each of some vectors [N, E], which
    depends on the key and that vector alone.
    """

    def __init__(self, run: Callable[[Key, NDArray[np.float32]], list[Answer]]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._newest: dict[Key, _Run[Answer]] = {}

    def __call__(self, key: Key, vectors: NDArray[np.float32]) -> list[Answer]:
        """Return the answer to each vector [N, E]; an error is raised for each call of the run that failed."""
        made: _Run[Answer] | None = None
        done = threading.Lock()
        done.acquire()
        # An interrupt at any moment releases those that wait for this run.
        try:
            with self._lock:
                run = before = self._newest.get(key)
                if run is None or not run.is_open or run.size + len(vectors) > _MOST:
                    run = made = _Run(is_open=before is not None)
                    self._newest[key] = run
                else:
                    run.joined.append(done)
                start = sum(map(len, run.calls))
                run.calls.append(vectors)
                run.size += len(vectors)
            if made:
                self._make(key, made, before)
            else:
                done.acquire()
        finally:
            if made:
                self._end(key, made)
        # Where the run failed, this call is made alone.
        answers = run.answers
        return self._run(key, vectors) if answers is None else answers[start : start + len(vectors)]

    def _make(self, key: Key, run: _Run[Answer], before: _Run[Answer] | None) -> None:
        if before is not None:
            with before.running, self._lock:
                run.is_open = False
        run.answers = self._run(key, run.calls[0] if len(run.calls) == 1 else np.concatenate(run.calls))

    def _end(self, key: Key, run: _Run[Answer]) -> None:
        with self._lock:
            if self._newest.get(key) is run:
                del self._newest[key]
            run.is_open = False
        # All at once: if they took turns with one lock, each would wait for the one before to wake up.
        for done in run.joined:
            done.release()
        run.running.release()
