"""Training images from disk to batch, in worker processes."""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.synchronize import Event
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unimetric.data.catalog import Item
from unimetric.data.decoding import usable_cpus
from unimetric.data.images import ImageError, decode_image
from unimetric.data.sampling import BatchSampler
from unimetric.data.transforms import TrainingTransform


@dataclass(frozen=True)
class Batch:
    """Images and class numbers of one step, and what could not be read.

    Attributes:
        images: uint8 [B, 3, S, S], to be normalised where the model is: a quarter of the bytes between processes.
        class_numbers: int64 [B].
        numbers: Which of the train images each row is, [B].
        skipped: The image number and what is wrong with it, for each image that is not in ``images``.
        places: int64 [B], where each image stands among all that were drawn, those that could not be read included.
    """

    images: Tensor
    class_numbers: Tensor
    numbers: tuple[int, ...]
    skipped: tuple[tuple[int, str], ...]
    places: Tensor


class _TrainingImages(TorchDataset[Any]):
    def __init__(
        self,
        items: Sequence[Item],
        class_numbers: Sequence[int],
        transform: TrainingTransform,
        seed: int,
        read: Callable[[Path], Image.Image],
    ) -> None:
        self.paths = [item.path for item in items]
        self.class_numbers = class_numbers
        self.transform, self.seed, self.read = transform, seed, read

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | str, int, int]:
        occasion, number = key
        # Seeded by what it is, not by who makes it: the same augmentation with any number of workers.
        seed = int(np.random.SeedSequence((self.seed, occasion, number)).generate_state(1, np.uint64)[0] >> 1)
        try:
            image: Tensor | str = self.transform(self.read(self.paths[number]), seed)
        except ImageError as error:
            image = error.reason
        return image, self.class_numbers[number], number


def _collate(samples: list[tuple[Tensor | str, int, int]]) -> Batch:
    images = [image for image, _, _ in samples if isinstance(image, Tensor)]
    labels = [label for image, label, _ in samples if isinstance(image, Tensor)]
    skipped = tuple((number, image) for image, _, number in samples if isinstance(image, str))
    places = [place for place, (image, _, _) in enumerate(samples) if isinstance(image, Tensor)]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        class_numbers=torch.tensor(labels, dtype=torch.int64),
        numbers=tuple(number for image, _, number in samples if isinstance(image, Tensor)),
        skipped=skipped,
        places=torch.tensor(places, dtype=torch.int64),
    )


def training_loader(
    items: Sequence[Item],
    class_numbers: Sequence[int],
    transform: TrainingTransform,
    sampler: BatchSampler,
    *,
    seed: int,
    workers: int | Literal["auto"] = "auto",
    read: Callable[[Path], Image.Image] = decode_image,
) -> DataLoader[Batch]:
    """A loader of `Batch` in the sampler's order; the result does not depend on the number of workers."""
    count = worker_count(workers)
    return DataLoader(
        _TrainingImages(items, class_numbers, transform, seed, read),
        batch_sampler=sampler,
        collate_fn=_collate,
        num_workers=count,
        persistent_workers=count > 0,
        prefetch_factor=2 if count else None,
        worker_init_fn=partial(_leave_stopping_to_the_main_process, _main_process_leaves()) if count else None,
    )


@cache
def _main_process_leaves() -> Event:
    """Set when this process comes to its end, before it sends its workers the one SIGTERM that it then waits for."""
    leaves = multiprocessing.Event()
    # Registered after multiprocessing's own, which sends the signal, and so called before it.
    atexit.register(leaves.set)
    return leaves


def _leave_stopping_to_the_main_process(main_process_leaves: Event, worker: int) -> None:
    # Ctrl-C, and a cluster's SIGTERM, reach every process; the main one decides, after the step it is in.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, partial(_ignore_once, main_process_leaves))
    torch.set_num_threads(1)


def worker_count(workers: int | Literal["auto"]) -> int:
    """How many workers an option asks for; ``auto`` is one per core that may be used, at most 8."""
    return min(usable_cpus(), 8) if workers == "auto" else workers


def _ignore_once(main_process_leaves: Event, number: int, frame: FrameType | None) -> None:
    # The second one ends the worker, or it would outlive a main process that wants to be rid of it.
    signal.signal(number, signal.SIG_DFL)
    if main_process_leaves.is_set():
        # Not by the signal: torch would report a worker that was killed.
        os._exit(0)
