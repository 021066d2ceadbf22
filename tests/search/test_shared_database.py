"""Two processes that write one database while a third reads, and a disk that fills; every answer is checked."""

from __future__ import annotations

import csv
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import search_child
from search_toys import dump
from test_index_killed import FORKED, rows, start, written

from toy_runs import make_images
from unimetric.search import DatabaseMissingError, SearchIndex

IMAGES = 40


def manifest(path: Path, images: list[Path]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("path", "label", "dataset"))
        writer.writerows((image, image.parent.name, "things") for image in images)
    return path


class Reader:
    """Searches a database by the vectors of its finished rows, and checks what it answers."""

    def __init__(self, db: Path, whole: list[dict[str, object]], moments: random.Random) -> None:
        self._db, self._moments = db, moments
        self._rows = {str(row["id"]): row for row in whole}
        self._vectors = {id: np.array(row["vector"], np.float32) for id, row in self._rows.items()}
        self._index: SearchIndex | None = None
        self.seen: set[str] = set()

    def check_one(self) -> None:
        """One search, if the database is there yet: right rows and scores, and nothing that was there is gone."""
        if self._index is None:
            try:
                self._index = SearchIndex.open(self._db)
            except DatabaseMissingError:
                return
        id = self._moments.choice(sorted(self._rows))
        known, k = id in self.seen, self._moments.randint(1, 7)
        (found,) = self._index.search_vectors(self._vectors[id], k)
        assert len({match.id for match in found}) == len(found)
        assert [match.score for match in found] == sorted((match.score for match in found), reverse=True)
        for match in found:
            row = self._rows[match.id]
            assert (match.label, match.path) == (row["label"], row["path"])
            assert match.score == pytest.approx(float(self._vectors[id] @ self._vectors[match.id]), abs=1e-5)
        if known:
            assert found[0].score == pytest.approx(1, abs=1e-5), f"{self._rows[id]['path']} was found before"
        self.seen |= {match.id for match in found}

    def close(self) -> None:
        if self._index is not None:
            self._index.close()


def test_two_writers_and_a_reader(model: Path, seeds: Iterator[int], tmp_path: Path) -> None:
    images = sorted(make_images(tmp_path / "images", classes=8, images=5).rglob("*.png"))
    start(model, manifest(tmp_path / "all.csv", images), tmp_path / "whole", tmp_path / "log").join()
    whole = dump(tmp_path / "whole")
    assert len(whole) == IMAGES
    db = tmp_path / "db"
    for moments in map(random.Random, seeds):
        orders = [moments.sample(images, IMAGES) for _ in range(2)]
        # Both have the middle, in orders of their own.
        parts = [[image for image in orders[0] if image in images[:28]], [i for i in orders[1] if i in images[12:]]]
        logs = [tmp_path / f"log{number}" for number in range(2)]
        for log in logs:
            log.unlink(missing_ok=True)
        writers = [
            FORKED.Process(
                target=search_child.index, args=(model, manifest(tmp_path / f"{number}.csv", part), db, logs[number])
            )
            for number, part in enumerate(parts)
        ]
        reader = Reader(db, whole, moments)
        writers[0].start()
        writers[0].join(moments.uniform(0, 2))
        writers[1].start()
        while any(writer.is_alive() for writer in writers):
            reader.check_one()
        for _ in range(20):
            reader.check_one()
        reader.close()
        assert [writer.exitcode for writer in writers] == [0, 0], [log.read_text() for log in logs]
        assert dump(db) == whole
        shutil.rmtree(db)


@pytest.mark.soak
def test_a_disk_that_fills(model: Path, seeds: Iterator[int], small_disk: Path, tmp_path: Path) -> None:
    images = make_images(tmp_path / "images", classes=8, images=5)
    log, db, filler = tmp_path / "log", small_disk / "db", small_disk / "filler"
    start(model, images, tmp_path / "whole", log).join()
    whole = dump(tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").rglob("*") if path.is_file())
    for moments in map(random.Random, seeds):
        codes = []
        for _ in range(3):
            before = rows(db)
            log.unlink(missing_ok=True)
            free = shutil.disk_usage(small_disk).free
            filler.write_bytes(bytes(max(0, free - moments.randint(0, size))))
            process = start(model, images, db, log)
            process.join()
            said = log.read_text()
            assert process.exitcode in (0, 2), said
            codes.append(process.exitcode)
            assert "Traceback" not in said
            if process.exitcode == 2:
                last = said.strip().splitlines()[-1]
                assert last.startswith("unimetric: error: ")
                assert "the disk is full" in last or "No space left on device" in last, last
            after = rows(db)
            assert len(after) >= len(before) + written(log)
            assert all(row in whole for row in after)
            reader = Reader(db, whole, moments)
            for _ in range(5 if after else 0):
                reader.check_one()
            reader.close()
            filler.unlink()
        last_run = start(model, images, db, log)
        last_run.join()
        assert last_run.exitcode == 0, log.read_text()
        assert dump(db) == whole
        assert 2 in codes or written(log) == 0
        shutil.rmtree(db)
