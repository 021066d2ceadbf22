"""`unimetric index`, killed with SIGKILL at random moments: nothing that was reported as written is lost."""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import search_child
from search_toys import dump

from forked import FORKED
from toy_runs import make_images
from unimetric.search.errors import DatabaseMissingError

KILLS = 3  # of each database
IMAGES = 40


def written(log: Path) -> int:
    """The last number of rows that a run reported as written."""
    said = re.findall(r"(\d+) rows written;", log.read_text()) if log.is_file() else []
    return int(said[-1]) if said else 0


def rows(db: Path) -> list[dict[str, object]]:
    """All rows, also of a database that was killed before it was made."""
    try:
        return dump(db)
    except DatabaseMissingError:
        return []


def test_nothing_reported_as_written_is_lost(model: Path, seeds: Iterator[int], tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", classes=8, images=5)
    log, db = tmp_path / "log", tmp_path / "db"
    start(model, images, tmp_path / "whole", log).join()
    whole = dump(tmp_path / "whole")
    assert len(whole) == IMAGES == written(log)

    for moments in map(random.Random, seeds):
        for _ in range(KILLS):
            before = rows(db)
            log.unlink(missing_ok=True)
            process = start(model, images, db, log)
            commits = (IMAGES - len(before)) // 4
            goal = 4 * moments.randint(0, commits)
            while process.is_alive() and written(log) < goal:
                time.sleep(0.001)
            process.join(moments.uniform(0, 1.5 if goal == 0 else 0.1))
            process.kill()
            process.join()
            assert process.exitcode in (0, -9), log.read_text()
            after = rows(db)
            assert len(after) >= len(before) + written(log)
            found = {row["id"]: row for row in after}
            assert all(found[row["id"]] == row for row in before)
        last = start(model, images, db, log)
        last.join()
        assert last.exitcode == 0
        assert rows(db) == whole
        shutil.rmtree(db)


def start(model: Path, images: Path, db: Path, log: Path) -> BaseProcess:
    process = FORKED.Process(target=search_child.index, args=(model, images, db, log))
    process.start()
    return process
