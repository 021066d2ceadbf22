"""Detection of a dead process among several, so that the others do not wait for it for ever."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass

from torch.distributed import TCPStore  # type: ignore[attr-defined]

from unimetric.data.workers import describe_end
from unimetric.errors import UserError, WorkerError, cause

_PERIOD = 1.0
"""Seconds between two checks."""
_SILENCE = 45
"""Checks without a heartbeat after which a process counts as lost."""
_GRACE = 5.0
"""Seconds for the main thread to end by itself, which it cannot while it waits on a GPU for the lost process."""


KINDS: dict[str, type[UserError]] = {kind.__name__: kind for kind in (WorkerError, UserError)}
"""Errors of one process that rank 0 raises in its place, by name; the more special ones first."""


@dataclass(frozen=True)
class Verdict:
    """Reason for the end of a run.

    Args:
        text: One line.
        kind: Name of the class of `KINDS` that a process raised; empty for a process that died.
        from_first: True if rank 0 reports it, else rank 1.
    """

    text: str
    kind: str = ""
    from_first: bool = True

    @property
    def exit_code(self) -> int:
        """That of the error which a process raised, else 1."""
        return KINDS[self.kind].exit_code if self.kind else 1


class Watch:
    """A thread in each process that sends heartbeats; rank 0 checks all others, the others check rank 0.

    Args:
        rank: Number of this process.
        count: Number of processes.
        children: Processes that this one has started, by rank.
        leave: Ends this process from the thread when the main thread cannot.
    """

    def __init__(
        self, rank: int, count: int, children: Mapping[int, subprocess.Popen[bytes]], leave: Callable[[Verdict], None]
    ) -> None:
        self.rank, self.count, self.children = rank, count, children
        self._leave = leave
        self._store: TCPStore | None = None
        self._stopped, self._found = threading.Event(), threading.Event()
        self._verdict: Verdict | None = None
        self._beats = dict.fromkeys(range(count) if rank == 0 else [0], (0, 0))
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._thread.start()

    def connect(self, store: TCPStore) -> None:
        """Check heartbeats from now on; before, only the exit of children is noticed."""
        self._store = store

    def verdict(self, seconds: float) -> Verdict | None:
        """Return the reason for the end as soon as it is known; None after ``seconds``."""
        self._found.wait(seconds)
        return self._verdict

    def fail(self, verdict: Verdict) -> None:
        """Publish to the other processes that this one ends."""
        self._post(f"failed/{self.rank}" if self.rank else "verdict", verdict)

    def stop(self, *, wait_for_others: float = 0) -> None:
        """End the thread; rank 0, which holds the connections, may wait for the others to finish."""
        self._stopped.set()
        self._thread.join()
        if self._store is None:
            return
        try:
            self._store.add(f"done/{self.rank}", 1)
            deadline = time.monotonic() + wait_for_others
            while time.monotonic() < deadline and not all(map(self._has_ended, range(self.count))):
                time.sleep(0.05)
        except RuntimeError:
            # Rank 0 has ended already, which is expected at the end.
            return

    def kill_children(self) -> None:
        """End the started processes that are still alive."""
        for process in self.children.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def _run(self) -> None:
        while not self._stopped.wait(_PERIOD):
            verdict = self._look()
            if verdict is None:
                continue
            self._verdict = verdict
            self._found.set()
            if self.rank == 0:
                self._post("verdict", verdict)
            if not self._stopped.wait(_GRACE):
                self._leave(verdict)
            return

    def _look(self) -> Verdict | None:
        try:
            if self._store is not None:
                self._store.add(f"beat/{self.rank}", 1)
            if self.rank == 0:
                return self._look_for_all()
            return self._read("verdict") or (self._silent(0) if self._is_silent(0) else None)
        except RuntimeError as error:
            return Verdict(f"the first of {self.count} processes is gone ({cause(error)})", from_first=False)

    def _look_for_all(self) -> Verdict | None:
        # A published reason is more precise than an exit code.
        for rank in range(1, self.count):
            if published := self._read(f"failed/{rank}"):
                return published
        for rank, process in list(self.children.items()):
            if process.poll():
                return self._read(f"failed/{rank}") or Verdict(f"{self._name(rank)} {describe_end(process.returncode)}")
        return next((self._silent(rank) for rank in range(1, self.count) if self._is_silent(rank)), None)

    def _is_silent(self, rank: int) -> bool:
        if self._store is None:
            return False
        beat = self._store.add(f"beat/{rank}", 0)
        before, looks = self._beats[rank]
        # Checks are counted, not seconds, so that the time in which a machine was suspended does not count.
        looks = looks + 1 if beat == before else 0
        self._beats[rank] = beat, looks
        return looks >= _SILENCE and not self._is_done(rank)

    def _has_ended(self, rank: int) -> bool:
        child = self.children.get(rank)
        return self._is_done(rank) or (child is not None and child.poll() is not None)

    def _is_done(self, rank: int) -> bool:
        return self._store is not None and self._store.check([f"done/{rank}"])

    def _silent(self, rank: int) -> Verdict:
        text = f"{self._name(rank)} has given no sign of life for {_SILENCE * _PERIOD:.0f} s"
        return Verdict(text, from_first=rank != 0)

    def _name(self, rank: int) -> str:
        return f"process {rank + 1} of {self.count}"

    def _post(self, key: str, verdict: Verdict) -> None:
        if self._store is None:
            return
        try:
            self._store.set(key, json.dumps(asdict(verdict)))
        except RuntimeError as error:
            print(f"unimetric: cannot reach the other processes: {cause(error)}", file=sys.stderr)  # noqa: T201

    def _read(self, key: str) -> Verdict | None:
        if self._store is None or not self._store.check([key]):
            return None
        return Verdict(**json.loads(self._store.get(key)))
