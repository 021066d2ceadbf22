"""`unimetric upgrade`, killed with SIGKILL at random moments while it is searched: no row and no query is lost."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import pytest
import search_child
from search_toys import FP32, dump, make_model

from forked import FORKED
from toy_runs import make_images
from unimetric.commands.index import index_sources
from unimetric.models.embedder import Embedder
from unimetric.search import SearchIndex
from unimetric.search.upgrade.state import upgrade_state

IMAGES = 40
KILLS = 2  # of each database
QUERIES = 300


class Gallery:
    """A database by one model, to be upgraded to another one, of another embedding size."""

    def __init__(self, root: Path, old: Path) -> None:
        self.root, self.log = root, root / "log"
        self.images = make_images(root / "images", classes=8, images=5)
        self.models = (old, make_model(root / "model", seed=1, size=24))
        self.embedders = {index: Embedder.from_pretrained(model) for index, model in enumerate(self.models)}
        index_sources(old, [str(self.images)], str(root / "before"), device=FP32)
        index_sources(self.models[1], [str(self.images)], str(root / "whole"), device=FP32)
        self.whole = dump(root / "whole")
        self.ids = {str(row["id"]) for row in self.whole}
        files = sorted(self.images.glob("*/*.png"))
        self.queries = {e.embedding_size: e.encode(files, precision="fp32") for e in self.embedders.values()}

    def copy(self) -> Path:
        shutil.rmtree(self.root / "db", ignore_errors=True)
        return Path(shutil.copytree(self.root / "before", self.root / "db"))

    def start(self, db: Path, *options: str) -> BaseProcess:
        self.log.unlink(missing_ok=True)
        process = FORKED.Process(target=search_child.upgrade, args=(self.models[1], db, self.log, options))
        process.start()
        return process

    def search(self, index: SearchIndex, number: int) -> None:
        """A query by the model of the index; its own image is found, with as many others as were asked for."""
        (matches,) = index.search_vectors(self.queries[index.embedding_size][number % IMAGES], k=10)
        assert len({match.id for match in matches}) == 10
        assert all(np.isfinite(match.score) for match in matches)

    def check(self, db: Path) -> None:
        rows = dump(db)
        assert {str(row["id"]) for row in rows} == self.ids
        assert len(rows) == IMAGES
        size = len(rows[0]["vector"])
        assert all(len(row["vector"]) == size and np.isfinite(row["vector"]).all() for row in rows)


@pytest.fixture(scope="module")
def gallery(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return Gallery(tmp_path_factory.mktemp("gallery"), model)


def embedded(log: Path) -> int:
    """The last number of rows that a run reported as embedded."""
    found = re.findall(r"(\d+) of \d+ rows are embedded", log.read_text()) if log.is_file() else []
    return int(found[-1]) if found else 0


def killed_at_random(gallery: Gallery, moments: random.Random, kills: int) -> None:
    db = gallery.copy()
    reported = 0
    for _ in range(kills):
        process = gallery.start(db)
        goal = 4 * moments.randint(reported // 4, IMAGES // 4)
        while process.is_alive() and embedded(gallery.log) < goal:
            time.sleep(0.001)
        process.join(moments.uniform(0, 1.5 if goal <= reported else 0.1))
        process.kill()
        process.join()
        assert process.exitcode in (0, -9), gallery.log.read_text()
        gallery.check(db)
        reported = max(reported, embedded(gallery.log))
        state = upgrade_state(db)
        assert state is None or state.embedded >= reported
        with SearchIndex.open(db) as index:
            gallery.search(index, moments.randrange(IMAGES))
        if state is None and process.exitcode == 0:
            break
    while upgrade_state(db) is not None or len(dump(db)[0]["vector"]) != 24:
        last = gallery.start(db)
        last.join()
        assert last.exitcode == 0, gallery.log.read_text()
    assert dump(db) == gallery.whole


def queried_meanwhile(gallery: Gallery, queries: int) -> None:
    """Readers that were open before, and such as open the database anew, get an answer to every query."""
    asked = 0
    while asked < queries:
        db = gallery.copy()
        with SearchIndex.open(db) as before:
            process = gallery.start(db)
            spaces = set()
            while process.is_alive() or len(spaces) < 2:
                with SearchIndex.open(db) as index:
                    spaces.add(index.embedding_size)
                    for _ in range(5):
                        gallery.search(index, asked)
                        gallery.search(before, asked)
                        asked += 2
            process.join()
            assert process.exitcode == 0, gallery.log.read_text()
            assert spaces == {16, 24}
        assert dump(db) == gallery.whole


def test_no_row_is_lost(gallery: Gallery, seeds: Iterator[int]) -> None:
    for moments in map(random.Random, seeds):
        killed_at_random(gallery, moments, KILLS)


@pytest.mark.soak
def test_no_row_is_lost_at_fifty_moments(gallery: Gallery) -> None:
    for seed in range(10):
        killed_at_random(gallery, random.Random(seed), 5)


def test_no_query_fails(gallery: Gallery) -> None:
    queried_meanwhile(gallery, QUERIES)


@pytest.mark.soak
def test_no_query_of_ten_thousand_fails(gallery: Gallery) -> None:
    queried_meanwhile(gallery, 10_000)


def test_rolled_back_after_a_kill(gallery: Gallery) -> None:
    before = dump(gallery.copy())
    db = gallery.copy()
    process = gallery.start(db)
    while process.is_alive() and embedded(gallery.log) < 12:
        time.sleep(0.001)
    process.kill()
    process.join()
    undone = gallery.start(db, "--rollback")
    undone.join()
    assert undone.exitcode == 0, gallery.log.read_text()
    assert dump(db) == before
