"""Two and three processes of a part of the batch each train as one process with all of it, whatever the loss."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch.distributed import TCPStore

import training.global_batch_child as global_batch_child
from forked import ForkedCommand
from toy_runs import make_images, options_file, read_json, tensors
from unimetric.losses import LOSSES

WORLDS = (1, 2, 3)
GRADIENTS, WEIGHTS = 1e-4, 1e-2
"""Relative differences of a tensor's norm. Adam divides a gradient by itself: where it is nothing but rounding, single
weights go another way. Its averages after one step are the gradients, and their squares."""
BATCH = 8  # 3, 3 and 2 images for three processes
DIVIDED = "curricularface-divided"
"""Proxies divided among the processes, and drawn: four classes of the eight are not in the batch."""


def meeting_place() -> TCPStore:
    """A store that listens on a free port already: another process cannot take the port before the training begins."""
    return TCPStore("127.0.0.1", 0, None, True, wait_for_workers=False)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of run folders LOSS-WORLD: a step with dropped adapters and images that cannot be read."""
    folder = tmp_path_factory.mktemp("joint")
    images = make_images(folder / "images", classes=8)
    for number in range(8):
        # Every four of the five images of a class hold one of these.
        (images / f"c{number}/1.png").write_bytes(b"no image")
        (images / f"c{number}/3.png").write_bytes(b"no image")
    options = {name: ({}, {"name": name}) for name in LOSSES}
    options[DIVIDED] = {"shard_proxies": True}, {"name": "curricularface", "options": {"sampled_classes": 2}}
    for name, (training, loss) in options.items():
        options_file(
            folder / f"{name}.yaml",
            data={"sources": [str(images)], "split": "train-only", "workers": 0},
            training={"steps": 1, "batch_size": BATCH, **training},
            loss=loss,
        )
    stores = {world: [meeting_place() for _ in options] for world in WORLDS}
    environment = {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    processes = [
        ForkedCommand(
            [folder, world, *(store.port for store in stores[world])],
            folder / f"log-{world}-{rank}",
            script=global_batch_child.__file__,
            environment={**os.environ, **environment, "LOCAL_RANK": str(rank), "NODE_RANK": "0"},
        )
        for world in WORLDS
        for rank in range(world)
    ]
    for process in processes:
        _, error = process.communicate(timeout=400)
        assert process.returncode == 0, error
    return folder


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("name", [*sorted(LOSSES), DIVIDED])
def test_the_same_training_for_every_loss(name: str, world: int, runs: Path) -> None:
    one, several = (runs / f"{name}-{count}" for count in (1, world))
    expected, found = (tensors(run / "checkpoint.safetensors") for run in (one, several))
    assert expected.keys() == found.keys()
    for key, value in expected.items():
        difference = (found[key] - value).norm() / value.norm().clamp_min(1e-12)
        assert difference < (WEIGHTS if key.startswith("model.") else GRADIENTS), f"{key}: {difference}"
    counts = [read_json(run / "metrics.json")["counts"] for run in (one, several)]
    assert counts[0] == counts[1]
    assert counts[0]["skipped_train_files"] > 0
