"""SIGKILL, a thousand times, over ``unimetric index`` and a service that is written, while a reader searches beside."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from request_parts import TOKEN, picture

from fork_server import Commands
from ports import reserved_port
from unimetric.search import SearchIndex
from unimetric.search.stores import open_store

SEED = int(os.environ.get("SOAK_SEED", "0"))
KILLS = int(os.environ.get("SOAK_KILLS", "1000"))
MOST_ROWS = 200
SEEN_AFTER = 5.0
"""Seconds after which every reader sees a row; two are promised."""
FP32 = ("--device.accelerator", "cpu", "--device.precision", "fp32")


class World:
    """A database, and what has been acknowledged about it.

    Attributes:
        there: Vector of every row that was acknowledged, None before it was read, and the time since when, by id.
        gone: Ids of rows whose deletion was acknowledged.
        unsure: Ids of rows of which a deletion was not answered.
    """

    def __init__(self, db: Path, run: Path, folder: Path, commands: Commands, moments: random.Random) -> None:
        self.db, self._model, self._folder, self._commands, self._moments = db, run, folder, commands, moments
        self.there: dict[str, tuple[Any, float]] = {}
        self.gone: set[str] = set()
        self.unsure: set[str] = set()
        self._seconds = 1.0
        self._reader = SearchIndex.open(db)
        self.settle()

    def close(self) -> None:
        self._reader.close()

    def settle(self) -> None:
        """Check all rows after a kill; what is there now stays."""
        rows = open_store(self.db).rows(["id", "vector"]).to_pylist()
        found = {row["id"]: row["vector"] for row in rows}
        assert len(found) == len(rows), "a row is there twice"
        lost = self.there.keys() - found.keys() - self.unsure
        assert not lost, f"{len(lost)} acknowledged rows are lost"
        assert not self.gone & found.keys(), "deleted rows are back"
        assert all(vector in (None, found[id]) for id, (vector, _) in self.there.items() if id in found)
        now = time.monotonic()
        self.there = {id: (vector, self.there.get(id, (vector, now))[1]) for id, vector in found.items()}
        self.gone |= self.unsure - found.keys()
        self.unsure = set()

    def read(self) -> None:
        """One search by a row that has been there for long."""
        limit = time.monotonic() - SEEN_AFTER
        known = [id for id, (vector, since) in self.there.items() if vector and since < limit and id not in self.unsure]
        if not known:
            return
        id = self._moments.choice(known)
        (found,) = self._reader.search_vectors(np.array(self.there[id][0], np.float32), 3)
        assert found[0].score == pytest.approx(1, abs=1e-4)
        assert id in {match.id for match in found if match.score > found[0].score - 1e-4}
        assert len({match.id for match in found}) == len(found)

    def _run(self, work: Callable[[], object], *arguments: object, **options: Any) -> dict[str, Any]:
        """Run a command, and ``work`` again and again until it ended."""
        results: list[dict[str, Any]] = []
        running = threading.Thread(
            target=lambda: results.append(self._commands.run(*arguments, *FP32, **options)), daemon=True
        )
        running.start()
        while running.is_alive():
            work()
        assert results[0]["code"] in (-9, 0), self._commands.log.read_text()
        assert "Traceback" not in self._commands.log.read_text(), self._commands.log.read_text()
        return results[0]

    def kill_indexing(self) -> None:
        number = self._moments.randrange(2**31)
        folder = self._folder / str(number)
        folder.mkdir()
        with (folder / "new.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(("path", "label", "dataset"))
            for place in range(6):
                (folder / f"{place}.png").write_bytes(picture(seed=number + place))
                rows.writerow((folder / f"{place}.png", "indexed", "new"))
        before = len(self.there)
        ended = self._run(
            self.read,
            *("index", self._model, folder / "new.csv", "--db", self.db, "--commit_rows", 2, "--batch_size", 2),
            kill_after=self._moments.uniform(0, 1.2 * self._seconds),
        )
        # A run's length, also where it changes with what else the machine does.
        self._seconds = ended["seconds"] if ended["code"] == 0 else self._seconds * 1.05
        said = re.findall(r"(\d+) rows written;", self._commands.log.read_text())
        self.settle()
        assert len(self.there) - before >= (int(said[-1]) if said else 0), "acknowledged rows are lost"
        shutil.rmtree(folder)

    def kill_service(self) -> None:
        with reserved_port() as port:
            self._kill_service_at(port)
        self.settle()

    def _kill_service_at(self, port: int) -> None:
        pids: list[int] = []
        changes = self._moments.randint(0, 8)
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=60) as client:

            def work() -> None:
                nonlocal changes
                self.read()
                try:
                    changes -= self._change(client)
                except httpx.TransportError:
                    return  # not listening yet, or killed
                if changes <= 0 and pids:
                    threading.Timer(self._moments.uniform(0, 0.1), os.kill, (pids.pop(), signal.SIGKILL)).start()

            arguments = ("serve", self.db, "--writable", "--port", port)
            assert self._run(work, *arguments, on_start=pids.append)["code"] == -9

    def _change(self, client: httpx.Client) -> bool:
        """Add or delete a row; True if it was acknowledged."""
        known = sorted(self.there.keys() - self.unsure)
        if len(known) < self._moments.randint(20, MOST_ROWS):
            path = f"added/{self._moments.randrange(2**31)}.png"
            image = picture(seed=self._moments.randrange(2**31))
            fields = {"dataset": "added", "label": "new", "path": path}
            answer = client.post("/v1/items", files={"image": image}, data=fields)
            if answer.status_code == 201:
                self.there[answer.json()["id"]] = None, time.monotonic()
        else:
            id = self._moments.choice(known)
            self.unsure.add(id)
            answer = client.delete(f"/v1/items/{id}")  # without an answer it stays unsure
            self.unsure.discard(id)
            if answer.status_code == 204:
                self.gone.add(id)
                del self.there[id]
        # 503 while the model is being loaded.
        assert answer.status_code in (201, 204, 503), answer.text
        return answer.status_code != 503


@pytest.mark.soak
@pytest.mark.timeout(600 + 20 * KILLS)
def test_nothing_acknowledged_is_lost(
    make_database: Callable[[], Path], toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNIMETRIC_TOKEN", TOKEN)
    moments = random.Random(SEED)
    with Commands(tmp_path / "log") as commands:
        world = World(make_database(), toy_run, tmp_path, commands, moments)
        for number in range(KILLS):
            print(f"seed {SEED}, kill {number}")
            moments.choice((world.kill_indexing, world.kill_service))()
        world.close()
