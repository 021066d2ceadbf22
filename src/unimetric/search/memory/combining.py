"""Searches of several threads in one run: those that arrive during a run are answered together by the next one."""

import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

Key = TypeVar("Key", bound=Hashable)
Answer = TypeVar("Answer")

_MOST = 64
"""Queries of one run; one call may have more."""


@dataclass(eq=False)
class _Call(Generic[Answer]):
    vectors: NDArray[np.float32]
    answers: list[Answer] | None = None


@dataclass(eq=False)
class _Group(Generic[Answer]):
    """The calls of one key, of which one runs at a time."""

    running: threading.Lock = field(default_factory=threading.Lock)
    waiting: list[_Call[Answer]] = field(default_factory=list)
    users: int = 0


class Combined(Generic[Key, Answer]):
    """A function of queries whose calls by several threads at once share runs.

    Calls of different keys do not wait for each other.

    Args:
        run: Returns the answer to each of some vectors [N, E], which depends on the key and that vector alone.
    """

    def __init__(self, run: Callable[[Key, NDArray[np.float32]], list[Answer]]) -> None:
        self._run = run
        self._lock = threading.Lock()
        self._groups: dict[Key, _Group[Answer]] = {}

    def __call__(self, key: Key, vectors: NDArray[np.float32]) -> list[Answer]:
        """Return the answer to each vector [N, E]; an error is raised for each call of the run that failed."""
        call: _Call[Answer] = _Call(vectors)
        with self._lock:
            group = self._groups.setdefault(key, _Group())
            group.users += 1
            group.waiting.append(call)
        try:
            with group.running:
                # Another thread may have answered meanwhile; where its run failed, this call is made alone.
                return self._answered(key, group, call) if call.answers is None else call.answers
        finally:
            with self._lock:
                group.users -= 1
                if call in group.waiting:
                    group.waiting.remove(call)
                if not group.users:
                    del self._groups[key]

    def _answered(self, key: Key, group: _Group[Answer], call: _Call[Answer]) -> list[Answer]:
        calls, queries = [call], len(call.vectors)
        with self._lock:
            for other in group.waiting:
                if other is not call and queries + len(other.vectors) <= _MOST:
                    calls.append(other)
                    queries += len(other.vectors)
            group.waiting = [other for other in group.waiting if other not in calls]
        if len(calls) == 1:
            return self._run(key, call.vectors)
        answers = iter(self._run(key, np.concatenate([one.vectors for one in calls])))
        for one in calls:
            one.answers = [next(answers) for _ in range(len(one.vectors))]
        return call.answers or []
