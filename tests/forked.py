"""Programs in processes of their own, forked from one that has imported torch: without their start-up time."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from torch.distributed import TCPStore

FORKED = multiprocessing.get_context("forkserver")
# No part of LanceDB, whose threads would not survive a fork.
FORKED.set_forkserver_preload(
    [
        *("torch", "timm", "jsonargparse", "uvicorn", "lance_namespace", "pyarrow.dataset"),
        *("unimetric.training.loop", "unimetric.service.app"),
    ]
)


class ForkedCommand:
    """A ``unimetric`` command, the leader of a process group of its own, used like `subprocess.Popen`.

    Args:
        arguments: The command and its arguments; those of the script, if there is one.
        log: File for its standard error.
        script: Python file to run instead of ``unimetric``.
        environment: All its variables; by default those of this process.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        log: Path,
        script: str | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.log = log
        given = [str(argument) for argument in arguments]
        method = multiprocessing.get_start_method()
        self._process = FORKED.Process(target=_run, args=(given, log, script, environment or {**os.environ}, method))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("unimetric", timeout or 0)
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def communicate(self, timeout: float | None = None) -> tuple[None, str]:
        """Wait for its end; what was written to standard error."""
        self.wait(timeout)
        return None, self.log.read_text()

    def kill(self) -> None:
        self._process.kill()


@contextmanager
def forked_ranks(arguments: Sequence[object], folder: Path, script: str | None = None) -> Iterator[list[ForkedCommand]]:
    """Two processes that train together, by rank, as a launcher on one machine starts them; logs are in ``folder``."""
    # Listens on a free port already, which no other program can take before the training begins.
    store = TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    common = {**os.environ, **meeting, "COLUMNS": "500", "NODE_RANK": "0"}
    yield [
        ForkedCommand(arguments, folder / f"log-{rank}", script, {**common, "LOCAL_RANK": str(rank)})
        for rank in range(2)
    ]


def _run(arguments: list[str], log: Path, script: str | None, environment: dict[str, str], method: str) -> None:
    os.setsid()
    # Without this, its own processes would come from another server, which imports torch first.
    multiprocessing.set_start_method(method, force=True)
    # As found by a new process, from the variables below.
    tempfile.tempdir = None
    multiprocessing.current_process()._config.pop("tempdir", None)  # type: ignore[attr-defined]
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.environ.clear()
    os.environ.update(environment)
    if script is not None:
        sys.argv = [script, *arguments]
        sys.path.insert(0, str(Path(script).parent))  # as Python does for a script
        runpy.run_path(script, run_name="__main__")
        return
    import torch

    from unimetric.cli import main

    # A launcher starts the other processes with the same command.
    sys.argv = [str(Path(sys.executable).with_name("unimetric")), *arguments]
    torch.set_num_threads(1)
    sys.exit(main(arguments))
