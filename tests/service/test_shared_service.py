"""A service that searches, adds and deletes while ``unimetric index`` writes its database; every answer is checked."""

from __future__ import annotations

import csv
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from request_parts import TOKEN, picture

from fork_server import Commands
from serving import start_server
from unimetric.search.stores import open_store
from unimetric.search.stores.lancedb_tables import READERS_SEE_WRITES_WITHIN

NEW = 24
"""Images that are indexed in every round."""


class Client:
    """Knows what has to be in the database, and checks every answer against it."""

    def __init__(self, client: httpx.Client, items: dict[str, bytes], moments: random.Random) -> None:
        self._client, self._moments = client, moments
        self.items = items
        self.deleted: set[str] = set()
        self.added = 0

    def act(self) -> None:
        """One random request."""
        self._moments.choice((self.search, self.search, self.search, self.add, self.delete))()

    def search(self, id: str | None = None) -> None:
        id = id or self._moments.choice(sorted(self.items))
        k = self._moments.randint(1, 9)
        answer = self._client.post("/v1/search", files={"image": self.items[id]}, data={"k": str(k)})
        assert answer.status_code == 200, answer.text
        found = answer.json()["matches"]
        assert 1 <= len(found) <= k
        assert len({match["id"] for match in found}) == len(found)
        assert [match["score"] for match in found] == sorted((match["score"] for match in found), reverse=True)
        assert not self.deleted & {match["id"] for match in found}, "it was deleted"
        assert found[0]["score"] == pytest.approx(1, abs=1e-3)
        assert id in {match["id"] for match in found if match["score"] > found[0]["score"] - 1e-3} or k == 1

    def finds(self, ids: set[str]) -> bool:
        """True if a search for each of these items finds its picture."""
        answers = (self._client.post("/v1/search", files={"image": self.items[id]}, data={"k": "1"}) for id in ids)
        return all(answer.json()["matches"][0]["score"] > 1 - 1e-3 for answer in answers)

    def add(self) -> None:
        self.added += 1
        image = picture(seed=self._moments.randrange(2**31))
        fields = {"dataset": "added", "label": "new", "path": f"added/{self._moments.randrange(2**31)}.png"}
        answer = self._client.post("/v1/items", files={"image": image}, data=fields)
        assert answer.status_code == 201, answer.text
        id = answer.json()["id"]
        self.items[id] = image
        self.search(id)

    def delete(self) -> None:
        id = self._moments.choice(sorted(self.items))
        if len(self.items) < 10:
            return
        answer = self._client.delete(f"/v1/items/{id}")
        assert answer.status_code == 204, answer.text
        self.deleted.add(id)
        image = self.items.pop(id)
        assert self._client.get(f"/v1/items/{id}").status_code == 404
        found = self._client.post("/v1/search", files={"image": image}, data={"k": "5"}).json()["matches"]
        assert id not in {match["id"] for match in found}


def stored(db: Path) -> dict[str, dict[str, Any]]:
    rows = open_store(db).rows(["id", "path", "vector"]).to_pylist()
    return {row["id"]: row for row in rows}


@pytest.mark.soak
def test_indexing_while_a_service_adds_and_deletes(
    make_database: Callable[[], Path], toy_run: Path, seeds: Iterator[int], tmp_path: Path
) -> None:
    with Commands(tmp_path / "log") as commands:
        for seed in seeds:
            folder = tmp_path / str(seed)
            folder.mkdir()
            _round(make_database(), toy_run, folder, commands, random.Random(seed))


def _round(db: Path, run: Path, folder: Path, commands: Commands, moments: random.Random) -> None:
    server = start_server(db, "--writable", "--device.precision", "fp32", UNIMETRIC_TOKEN=TOKEN)
    with (folder / "new.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "dataset"))
        for number in range(NEW):
            path = folder / f"{number}.png"
            path.write_bytes(picture(seed=moments.randrange(2**31)))
            writer.writerow((path, "indexed", "new"))
    before = stored(db)
    results: list[Any] = []

    def index() -> None:
        small = ("--commit_rows", 4, "--batch_size", 2, "--device.accelerator", "cpu", "--device.precision", "fp32")
        results.append(commands.run("index", run, folder / "new.csv", "--db", db, *small))

    indexing = threading.Thread(target=index)
    with server.client(headers={"Authorization": f"Bearer {TOKEN}"}) as client:
        user = Client(client, {id: Path(row["path"]).read_bytes() for id, row in before.items()}, moments)
        indexing.start()
        while indexing.is_alive() or not (user.added and user.deleted):
            user.act()
        indexing.join()
        assert results[0]["code"] == 0, commands.log.read_text()
        after = stored(db)
        indexed = {id for id, row in after.items() if Path(row["path"]).parent == folder}
        assert len(indexed) == NEW
        assert set(after) == set(user.items) | indexed
        for id, row in before.items():
            assert id not in after or after[id]["vector"] == row["vector"]
        user.items |= {id: Path(after[id]["path"]).read_bytes() for id in indexed}
        # A service sees the writes of another process within two seconds.
        seen = time.monotonic() + 2 * READERS_SEE_WRITES_WITHIN.total_seconds()
        while not user.finds(indexed) and time.monotonic() < seen:
            pass
        for _ in range(30):
            user.search()
    code, said = server.stop()
    assert code == 0
    assert "Traceback" not in said, said
