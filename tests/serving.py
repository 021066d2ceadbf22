"""Services in processes of their own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from forked import ForkedCommand


@dataclass
class Server:
    """A service in a process of its own."""

    process: ForkedCommand | subprocess.Popen[bytes]
    url: str
    log: Path

    def client(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """The exit code, and what was said since it was started."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            code = self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise
        said = self.log.read_text()
        self.log.unlink()
        return code, said


def start_server(
    *arguments: object, ready: bool = True, script: str | None = None, program: Sequence[str] = (), **environment: str
) -> Server:
    """Start ``unimetric serve`` on a free port, and wait until it answers searches.

    Args:
        arguments: Of the command.
        ready: Wait for the model.
        script: Python file that stands in for ``unimetric serve``.
        program: Arguments of a new Python, instead of a process forked from one that has the slow imports behind it.
        environment: Variables besides those of this process.
    """
    handle, name = tempfile.mkstemp(prefix="serve-", suffix=".log")
    variables = {"OMP_NUM_THREADS": "1", "COLUMNS": "500", "UNIMETRIC_TOKEN": "", "UNIMETRIC_READ_TOKEN": ""}
    variables = {**os.environ, **variables, **environment}
    given = [*map(str, arguments), "--port", "0"]
    process: ForkedCommand | subprocess.Popen[bytes]
    if program:
        command = [sys.executable, *program, *given]
        process = subprocess.Popen(command, env=variables, stdout=subprocess.DEVNULL, stderr=handle)
    else:
        process = ForkedCommand(given if script else ["serve", *given], Path(name), script, variables)
    os.close(handle)
    while True:
        ended = process.poll() is not None
        said = Path(name).read_text()
        if found := re.search(r"served on (http://\S+?);", said):
            break
        assert not ended, f"no server: {said}"
        time.sleep(0.01)
    server = Server(process, found[1], Path(name))
    if ready:
        with server.client() as client:
            until = time.monotonic() + 60
            while client.get("/readyz").status_code != 200:
                assert time.monotonic() < until
                time.sleep(0.05)
    return server
