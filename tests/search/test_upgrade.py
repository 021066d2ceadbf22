from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from search_toys import FP32, dump, make_model, new_picture

from unimetric.commands.index import RowOptions, index_sources
from unimetric.commands.rotate import rotate
from unimetric.commands.upgrade import upgrade
from unimetric.data.sources import read_sources
from unimetric.errors import UserError
from unimetric.models.source import ModelSource
from unimetric.search import ModelMismatchError, SearchIndex
from unimetric.search.calibrating import calibrate_database
from unimetric.search.errors import ReplacedError
from unimetric.search.upgrade.embedding import UpgradeOptions
from unimetric.search.upgrade.run import start_upgrade
from unimetric.search.upgrade.state import upgrade_state

ROWS = 24
OPTIONS = UpgradeOptions(sample=8, live="now", batch_size=2, commit_rows=4, precision="fp32")


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another model, of another embedding size."""
    return make_model(tmp_path_factory.mktemp("other"), seed=1, size=24)


@pytest.fixture
def db(own: Path, model: Path, tmp_path: Path) -> Path:
    """A database of 24 images by the old model."""
    index_sources(model, [str(own / "hats"), str(own / "shoes")], str(tmp_path / "db"), device=FP32)
    return tmp_path / "db"


def run(db: Path, model: Path, **options: object) -> int:
    keywords = {"sample": 8, "live": "now", "batch_size": 2, "commit_rows": 4, "device": FP32, **options}
    return upgrade(str(db), model=model, **keywords)


class StoppedError(Exception):
    pass


def stopped_after(db: Path, model: Path, rows: int, options: UpgradeOptions = OPTIONS, size: int | None = None) -> None:
    """An upgrade that is cut off once so many rows are embedded."""
    from unimetric.models.embedder import Embedder

    def progressed(done: int, total: int) -> None:
        if done >= rows:
            raise StoppedError

    started = start_upgrade(db, ModelSource(model), options=options, on_progress=progressed)
    with pytest.raises(StoppedError):
        started.run(Embedder.from_pretrained(model, size=size))


def test_the_finished_table_is_that_of_a_new_database(db: Path, own: Path, other: Path, tmp_path: Path) -> None:
    assert run(db, other) == 0
    index_sources(other, [str(own / "hats"), str(own / "shoes")], str(tmp_path / "new"), device=FP32)
    assert dump(db) == dump(tmp_path / "new")
    with SearchIndex.open(db, device=FP32) as index:
        assert index.embedding_size == 24
        picture = sorted(own.glob("hats/*/*.png"))[0]
        (matches,) = index.search(str(picture), k=3)
        assert matches[0].path == str(picture) and matches[0].score == pytest.approx(1, abs=1e-5)
    assert upgrade_state(db) is None
    with pytest.raises(UserError, match="nothing to upgrade"):
        run(db, other)


@pytest.mark.parametrize("live", ["now", "both"])
def test_a_database_of_short_vectors_keeps_its_size(
    live: str, model: Path, other: Path, own: Path, tmp_path: Path
) -> None:
    sources = [str(own / "hats"), str(own / "shoes")]
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, copy in ((model, old), (other, new)):
        shutil.copytree(folder, copy)
        rotate(copy, sources, device=FP32)
    for folder, name in ((old, "db"), (new, "expected")):
        index_sources(folder, sources, str(tmp_path / name), device=FP32, rows=RowOptions(size=5))
    db = tmp_path / "db"
    stopped_after(db, new, 12, replace(OPTIONS, live=live), size=5)
    assert run(db, new, live=live) == 0
    assert dump(db) == dump(tmp_path / "expected")
    with pytest.raises(UserError, match=r"--size is 25: the vectors of .* have 16 numbers"):
        run(db, old, size=25)
    assert run(db, old, size=16) == 0
    with SearchIndex.open(db, device=FP32) as index:
        assert (index.embedding_size, index.shortened_to) == (16, None)


def test_every_row_is_found_while_a_part_is_embedded(db: Path, own: Path, other: Path) -> None:
    stopped_after(db, other, 12)
    state = upgrade_state(db)
    assert state is not None and state.answers == "new" and 8 < state.embedded < state.rows == ROWS
    with SearchIndex.open(db, device=FP32) as index:
        assert index.embedding_size == 24 and index.count() == ROWS
        assert index.datasets() == {"hats": 12, "shoes": 12}
        (matches,) = index.search(str(sorted(own.glob("hats/*/*.png"))[0]), k=ROWS)
        assert len({match.id for match in matches}) == ROWS
        assert all(-1 <= match.score <= 1 for match in matches)
        for match in matches:
            assert index.thumbnail(match.id)
            assert index.search_item(match.id, k=3)
    assert run(db, other) == 0
    assert {row["fingerprint"] for row in dump(db)} == {dump(db)[0]["fingerprint"]}


def test_before_the_new_model_is_better_the_old_one_answers(db: Path, own: Path, other: Path, model: Path) -> None:
    before = dump(db)
    stopped_after(db, other, 4, replace(OPTIONS, sample=16))
    assert dump(db) == before
    with SearchIndex.open(db, device=FP32) as index:
        assert index.embedding_size == 16
    state = upgrade_state(db)
    assert state is not None and state.answers == "old" and state.embedded == 4
    # The old model may still write.
    new_picture(own / "hats" / "new" / "late.png")
    index_sources(model, [str(own / "hats")], str(db), device=FP32)
    assert run(db, other) == 0
    assert len(dump(db)) == ROWS + 1


def test_rolled_back_it_is_what_it_was(db: Path, other: Path, model: Path) -> None:
    before = dump(db)
    stopped_after(db, other, 12)
    assert dump(db) != before
    assert upgrade(str(db), rollback=True, device=FP32) == 0
    assert dump(db) == before
    with pytest.raises(UserError, match="no upgrade is under way"):
        upgrade(str(db), rollback=True, device=FP32)
    assert run(db, other) == 0


def test_rolled_back_it_keeps_what_was_written_meanwhile(db: Path, own: Path, other: Path, model: Path) -> None:
    stopped_after(db, other, 12)
    gone, added = sorted(own.glob("shoes/*/*.png"))[:2], new_picture(own / "hats" / "new" / "late.png")
    with SearchIndex.open(db, device=FP32) as index:
        assert index.delete(path=str(gone[0])) == 1
    gone[0].unlink()
    index_sources(other, [str(own / "hats")], str(db), device=FP32)
    assert upgrade(str(db), rollback=True, device=FP32) == 0
    paths = {row["path"] for row in dump(db)}
    assert str(added) in paths and str(gone[0]) not in paths and len(paths) == ROWS
    # As if the old model had indexed it.
    with SearchIndex.open(db, device=FP32) as index:
        (matches,) = index.search(str(added), k=1)
        assert matches[0].path == str(added) and matches[0].score == pytest.approx(1, abs=1e-5)


def test_what_is_deleted_meanwhile_stays_deleted(db: Path, own: Path, other: Path) -> None:
    stopped_after(db, other, 12)
    with SearchIndex.open(db, device=FP32) as index:
        assert index.delete(dataset="hats") == 12
    assert run(db, other) == 0
    assert {row["dataset"] for row in dump(db)} == {"shoes"} and len(dump(db)) == 12


def test_the_old_model_may_not_write_once_the_new_one_answers(db: Path, own: Path, other: Path, model: Path) -> None:
    with SearchIndex.open(db, device=FP32) as stale:
        stopped_after(db, other, 12)
        with pytest.raises(ReplacedError, match="open it again"):
            stale.delete(dataset="hats")
        # It still answers from the vectors that it was opened with.
        assert stale.count() == ROWS
    with pytest.raises(ModelMismatchError):
        index_sources(model, [str(own / "hats")], str(db), device=FP32)
    assert len(dump(db)) == ROWS


def test_indexing_with_the_new_model_embeds_moved_rows(db: Path, own: Path, other: Path) -> None:
    stopped_after(db, other, 12)
    index_sources(other, [str(own / "hats"), str(own / "shoes")], str(db), device=FP32)
    assert upgrade_state(db).embedded == ROWS
    assert run(db, other) == 0


@pytest.mark.parametrize("missing", ["map", "thumbnail", "delete"])
def test_rows_without_an_image_are_named_and_stay_until_decided(
    db: Path, own: Path, other: Path, missing: str, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = sorted(own.glob("shoes/*/*.png"))[3]
    gone.unlink()
    assert run(db, other) == 1
    printed = capsys.readouterr().err
    assert f"skipped {gone}: file not found" in printed
    assert "1 of 24 rows have no readable image" in printed and "--missing map, thumbnail or delete" in printed
    with SearchIndex.open(db, device=FP32) as index:
        assert str(gone) in {match.path for match in index.search(str(sorted(own.glob("*/*/*.png"))[0]), k=ROWS)[0]}
    assert run(db, other, missing=missing) == 0
    rows = {row["path"]: row for row in dump(db)}
    assert (str(gone) in rows) == (missing != "delete")
    if missing != "delete":
        assert rows[str(gone)]["thumbnail"]
        # Once the image is back, the next indexing embeds it.
        new_picture(gone)
        index_sources(other, [str(own / "shoes")], str(db), device=FP32)
        assert {row["fingerprint"] for row in dump(db)} == {rows[str(gone)]["fingerprint"]} or missing == "map"
        assert len({row["fingerprint"] for row in dump(db)}) == 1


def test_it_is_not_calibrated_meanwhile(db: Path, own: Path, other: Path) -> None:
    stopped_after(db, other, 12)
    queries = [item for dataset in read_sources([f"hats={own / 'hats'}"]) for item in dataset.items]
    with pytest.raises(UserError, match="is being upgraded: finish that with unimetric upgrade"):
        calibrate_database(db, queries, source=ModelSource(device=FP32))


def test_a_second_upgrade_and_one_back(db: Path, own: Path, other: Path, model: Path, tmp_path: Path) -> None:
    before = dump(db)
    third = make_model(tmp_path / "third", seed=2)
    for target in (other, third, model):
        assert run(db, target) == 0
    assert dump(db) == before
    with SearchIndex.open(db, device=FP32) as index:
        assert index.search(str(sorted(own.glob("*/*/*.png"))[0]), k=1)[0][0].score == pytest.approx(1, abs=1e-5)


def test_two_models_at_once_are_refused(db: Path, other: Path, tmp_path: Path) -> None:
    stopped_after(db, other, 12)
    with pytest.raises(UserError, match="is being upgraded to"):
        run(db, make_model(tmp_path / "third", seed=2))


def test_a_moved_database_is_taken_along(db: Path, other: Path, tmp_path: Path) -> None:
    stopped_after(db, other, 12)
    moved = Path(shutil.move(db, tmp_path / "elsewhere"))
    assert len(dump(moved)) == ROWS
    assert run(moved, other) == 0


def test_options_that_contradict(db: Path, other: Path) -> None:
    with pytest.raises(UserError, match="--model is missing"):
        upgrade(str(db), device=FP32)
    with pytest.raises(UserError, match="takes no --model"):
        upgrade(str(db), model=other, rollback=True, device=FP32)
