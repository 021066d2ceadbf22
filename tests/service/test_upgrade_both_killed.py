"""SIGKILL over ``unimetric upgrade --live both``, locally and on S3, while a service searches: no row is lost."""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from stubs import served
from test_served_upgrade import FP32, make_model

from fork_server import Commands
from s3_server import Bucket, bucket, s3_server
from toy_runs import make_images
from unimetric.commands.index import index_sources
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.stores import open_store
from unimetric.search.upgrade.state import upgrade_state
from unimetric.service.upgrading import Follower

__all__ = ["bucket", "s3_server"]

SEED = int(os.environ.get("SOAK_SEED", "0"))
KILLS = int(os.environ.get("SOAK_KILLS", "50"))
CPU = ("--device.accelerator", "cpu", "--device.precision", "fp32")
OPTIONS = ("--live", "both", "--sample", 4, "--batch_size", 1, "--commit_rows", 1, *CPU)
ROWS = 24


def vectors(db: str) -> dict[str, list[float]]:
    rows = open_store(db).rows(["id", "vector"]).to_pylist()
    found = {row["id"]: row["vector"] for row in rows}
    assert len(found) == len(rows), "a row is there twice"
    return found


class Searcher:
    """Asks a service for all rows again and again; each is in every answer, once."""

    def __init__(self, client: httpx.Client, images: list[Path]) -> None:
        self.asked, self.wrong = 0, list[str]()
        self._client, self._images, self._stop = client, images, threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self) -> None:
        every = sorted(map(str, self._images))
        for picture in itertools.cycle(self._images):
            if self._stop.wait(0.05) or self.wrong:
                return
            try:
                answer = self._client.post(
                    "/v1/search", files={"image": picture.read_bytes()}, data={"k": str(ROWS + 1)}
                )
            except httpx.HTTPError as error:
                self.wrong.append(repr(error))
                return
            if answer.status_code != 200 or sorted(match["path"] for match in answer.json()["matches"]) != every:
                self.wrong.append(answer.text)
            self.asked += 1

    def __enter__(self) -> Searcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


@contextmanager
def serving(db: str) -> Iterator[httpx.Client]:
    def open_index(embedder: Embedder | None) -> SearchIndex:
        return SearchIndex.open(db, embedder=embedder, device=FP32)

    def follow(make_batcher: Callable[..., object]) -> Follower:
        return Follower(db, open_index, make_batcher, keep_seconds=60, every_seconds=0.02)  # type: ignore[arg-type]

    with (
        SearchIndex.open(db, device=FP32) as index,
        served(index, follow=follow) as running,
        httpx.Client(base_url=running.url, timeout=300) as client,
    ):
        yield client


def killed_again_and_again(db: str, folder: Path, kills: int) -> None:
    """From one model to another and back, until so many upgrades were killed."""
    moments = random.Random(SEED)
    root = make_images(folder / "images", classes=4, images=6)
    models = [make_model(folder / name, seed, size) for name, seed, size in (("old", 0, 16), ("new", 1, 24))]
    whole = []
    for model in models:
        index_sources(model, [str(root)], f"{model}.db", device=FP32)
        whole.append(vectors(f"{model}.db"))
    index_sources(models[0], [str(root)], db, device=FP32)
    with (
        Commands(folder / "log") as commands,
        serving(db) as client,
        Searcher(client, sorted(root.glob("*/*.png"))) as searcher,
    ):
        seconds, killed, finished, code = 0.0, Counter[str](), 0, 0
        while killed.total() < kills or code:
            # The first one is not killed, to learn how long one takes.
            moment = moments.uniform(0, 1.2 * seconds) if seconds and killed.total() < kills else None
            goal = 1 - finished % 2
            ended = commands.run("upgrade", db, "--model", models[goal], *OPTIONS, kill_after=moment)
            code, said = ended["code"], commands.log.read_text()
            assert code in (-9, 0), said
            assert "Traceback" not in said
            assert vectors(db).keys() == whole[0].keys()
            assert not searcher.wrong
            if code == 0:
                seconds = ended["seconds"]
            else:
                state = upgrade_state(db)
                killed[f"{state.embedded} rows, {state.answers} answers" if state else "not begun, or at its end"] += 1
            if upgrade_state(db) is None:
                there = whole.index(vectors(db))
                assert code or there == goal
                finished += there == goal
        print(f"seed {SEED}: {finished} upgrades finished, {searcher.asked} searches, killed {dict(killed)}")
    assert not searcher.wrong
    assert searcher.asked


@pytest.mark.soak
@pytest.mark.timeout(600 + 20 * KILLS)
def test_nothing_is_lost_locally(tmp_path: Path) -> None:
    killed_again_and_again(str(tmp_path / "db"), tmp_path, KILLS)


@pytest.mark.soak
@pytest.mark.timeout(600 + 20 * KILLS)
def test_nothing_is_lost_on_s3(bucket: Bucket, tmp_path: Path) -> None:
    killed_again_and_again(f"{bucket.uri}/db", tmp_path, -(-KILLS // 5))
