"""Runs commands in processes that are forked from one that has loaded torch, and kills them: see `Commands`.

As a script it is the process that is forked: a JSON object a line comes in and goes out.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from failure_points import Failure, install


class Commands:
    """Starts `unimetric` commands in processes of their own, each leading a group, without their start-up time."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self._server = self._start()

    def run(
        self,
        *arguments: object,
        kill_after: float | None = None,
        failure: Failure | None = None,
        on_start: Callable[[int], object] = lambda pid: None,
    ) -> Any:
        """Run a command; after ``kill_after`` seconds it gets SIGKILL, or one of its failure points fails.

        Args:
            arguments: The command and its arguments.
            kill_after: Seconds.
            failure: The point that fails.
            on_start: Called with the process's id.

        Returns:
            ``code``, negative for a signal, and ``seconds``. What the command said is in ``log``.
        """
        request = {
            "arguments": [*map(str, arguments)],
            "kill_after": kill_after,
            "log": str(self.log),
            "failure": None if failure is None else asdict(failure),
        }
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        try:
            self._server.stdin.write(json.dumps(request) + "\n")
            self._server.stdin.flush()
            on_start(json.loads(self._server.stdout.readline())["pid"])
            return json.loads(self._server.stdout.readline())
        except BaseException:
            # A test that ran out of time would leave its answer to the next one.
            self._stop()
            self._server = self._start()
            raise

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, __file__],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _stop(self) -> None:
        self._server.kill()
        self._server.communicate()

    def __enter__(self) -> Commands:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()


def serve() -> None:
    """Answer requests until the input ends."""
    import lancedb  # noqa: F401 - what the commands would load, as below
    import torch

    import unimetric.commands.index
    import unimetric.commands.upgrade
    import unimetric.report.tables
    import unimetric.service
    import unimetric.training.loop  # noqa: F401 - what the commands would load
    from unimetric.cli import main

    torch.set_num_threads(1)
    # Its only threads are an idle event loop, which it starts anew in a child; the warning is about others.
    warnings.filterwarnings("ignore", message="lancedb fork support")
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        # A pipe, since the limit on the size of files would hold for a file as well.
        into, out = os.pipe()
        fcntl.fcntl(out, fcntl.F_SETPIPE_SZ, 1 << 20)
        child = os.fork()
        if child == 0:
            os.setsid()
            with Path(os.devnull).open("rb") as nothing:
                for ours, theirs in ((nothing.fileno(), 0), (out, 1), (out, 2)):
                    os.dup2(ours, theirs)
            finish = install(Failure(**request["failure"])) if request["failure"] else lambda: None
            code = main(request["arguments"])
            finish()
            sys.stdout.flush()
            sys.stderr.flush()
            # Without the destruction of all that was imported, which takes longer than most commands.
            os._exit(code)
        os.close(out)
        print(json.dumps({"pid": child}), flush=True)
        code = _wait(child, started, request["kill_after"])
        # The workers of one that was killed would find out by themselves only after seconds.
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        with open(into, "rb") as said:  # noqa: PTH123 - a descriptor
            Path(request["log"]).write_bytes(said.read())
        print(json.dumps({"code": code, "seconds": time.monotonic() - started}), flush=True)


def _wait(child: int, started: float, kill_after: float | None) -> int:
    while True:
        ended, status = os.waitpid(child, 0 if kill_after is None else os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if kill_after is not None and time.monotonic() - started >= kill_after:
            os.kill(child, signal.SIGKILL)
            kill_after = None
        else:
            time.sleep(0.001)


if __name__ == "__main__":
    serve()
