"""From files to batches: the same with any number of workers, and bad files are named."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from toy_runs import make_images
from unimetric.data.catalog import Item
from unimetric.data.loading import Batch, training_loader
from unimetric.data.sampling import make_sampler
from unimetric.data.transforms import TrainingTransform
from unimetric.data.workers import WorkerLoader

TRANSFORM = TrainingTransform(16)


@pytest.fixture(scope="module")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[Item]:
    root = make_images(tmp_path_factory.mktemp("images") / "a", classes=3, images=4)
    (root / "c1/2.png").write_bytes(b"")
    (root / "c2/0.png").write_bytes((root / "c2/0.png").read_bytes()[:80])
    return items_in(root)


def items_in(root: Path) -> list[Item]:
    return [Item(path, path.parent.name, "a") for path in sorted(root.glob("*/*.png"))]


def loader(items: list[Item], *, workers: int, seed: int = 0, epoch: int = 0) -> WorkerLoader[Batch]:
    numbers = [int(item.label[1:]) for item in items]
    sampler = make_sampler("natural", {}, numbers, None, 4, seed=seed)
    sampler.start(epoch)
    return training_loader(items, numbers, TRANSFORM, sampler, seed=seed, workers=workers)


def load(items: list[Item], *, workers: int, seed: int = 0, epoch: int = 0) -> list[Batch]:
    with loader(items, workers=workers, seed=seed, epoch=epoch) as batches:
        return list(batches)


def same(one: list[Batch], other: list[Batch]) -> bool:
    return len(one) == len(other) and all(
        a.images.equal(b.images) and a.class_numbers.equal(b.class_numbers) and a.skipped == b.skipped
        for a, b in zip(one, other, strict=True)
    )


def test_batches_do_not_depend_on_the_workers(items: list[Item]) -> None:
    torch.manual_seed(1)
    expected = load(items, workers=0)
    torch.manual_seed(2)  # nor on what else draws random numbers
    assert same(load(items, workers=2), expected)
    assert same(load(items, workers=1), expected)
    assert not same(load(items, workers=0, seed=1), expected)


def test_labels_go_with_their_images(items: list[Item]) -> None:
    sampler = make_sampler("natural", {}, [int(item.label[1:]) for item in items], None, 4)
    sampler.start(0)
    order = [number for batch in sampler for _, number in batch]
    batches = load(items, workers=0)
    skipped = [number for batch in batches for number, _ in batch.skipped]
    kept = [number for number in order if number not in skipped]
    assert torch.cat([batch.class_numbers for batch in batches]).tolist() == [int(items[n].label[1:]) for n in kept]
    assert {str(items[number].path.relative_to(items[0].path.parents[1])) for number in skipped} == {
        "c1/2.png",
        "c2/0.png",
    }
    reasons = dict(entry for batch in batches for entry in batch.skipped)
    assert all(reasons.values())
    assert len(set(reasons.values())) == 2  # empty and cut off are different things


def test_augmentation_is_new_in_every_epoch(items: list[Item]) -> None:
    def first_image(epoch: int) -> torch.Tensor:
        sampler = make_sampler("natural", {}, [0], None, 1)
        sampler.start(epoch)
        (batch,) = training_loader(items[:1], [0], TRANSFORM, sampler, seed=0, workers=0)
        return batch.images

    assert not first_image(0).equal(first_image(1))
    assert first_image(1).equal(first_image(1))


def test_augmentation_is_new_where_an_image_comes_back_within_an_epoch(items: list[Item]) -> None:
    """One image in one dataset, eleven in the other: half of every batch is the same image."""
    sampler = make_sampler("dataset-balanced", {}, [0] + [1] * 11, ["small", "large"], 2)
    images = [items[0], *[items[1]] * 11]
    batches = list(training_loader(images, [0] + [1] * 11, TRANSFORM, sampler, seed=0, workers=0))
    small = [batch.images[batch.class_numbers == 0] for batch in batches]
    assert all(len(part) == 1 for part in small)
    assert not any(small[0].equal(part) for part in small[1:])


def test_a_batch_of_bad_files_is_empty(items: list[Item]) -> None:
    bad = [item for item in items if item.path.stat().st_size < 100]
    sampler = make_sampler("natural", {}, [0, 0], None, 2)
    (batch,) = training_loader(bad, [0, 0], TRANSFORM, sampler, seed=0, workers=0)
    assert len(batch.images) == len(batch.class_numbers) == 0
    assert sorted(number for number, _ in batch.skipped) == [0, 1]


def test_a_file_that_vanished_is_skipped(items: list[Item], tmp_path: Path) -> None:
    gone = Item(tmp_path / "gone.png", "c0", "a")
    sampler = make_sampler("natural", {}, [0, 0], None, 2)
    (batch,) = training_loader([items[0], gone], [0, 0], TRANSFORM, sampler, seed=0, workers=0)
    assert len(batch.images) == 1
    assert batch.skipped == ((1, "file not found"),)


def test_no_more_workers_than_processors_that_may_be_used(items: list[Item], monkeypatch: pytest.MonkeyPatch) -> None:
    """A job with two of a machine's 64 cores wants two."""
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: {3, 5}, raising=False)

    def workers() -> int:
        sampler = make_sampler("natural", {}, [0], None, 1)
        return training_loader(items, [0] * len(items), TRANSFORM, sampler, seed=0).num_workers

    assert workers() == 2
    monkeypatch.delattr("os.sched_getaffinity")  # as on macOS
    assert workers() == 8


FAILING = """
import sys
sys.path.insert(0, sys.argv[1])
from test_loading import Path, items_in, loader
for batch in loader(items_in(Path(sys.argv[2])), workers=1):
    raise RuntimeError("while the worker waits for work")
"""


def test_a_failure_in_the_main_process_ends_it_and_its_workers(items: list[Item]) -> None:
    root = items[0].path.parents[1]
    command = [sys.executable, "-c", FAILING, str(Path(__file__).parent), str(root)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert process.returncode == 1
    assert process.stderr.endswith("RuntimeError: while the worker waits for work\n")
