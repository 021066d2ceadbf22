"""Training images from disk to batch, in worker processes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unimetric.cpu import available_cores
from unimetric.data.catalog import Item
from unimetric.data.images import ImageError, decode_image
from unimetric.data.sampling import BatchSampler
from unimetric.data.transforms import TrainingTransform
from unimetric.data.workers import PREFETCH, WorkerLoader, start_worker


@dataclass(frozen=True)
class Batch:
    """Images and class numbers of one step, and the images that could not be read.

    Attributes:
        images: uint8 [B, 3, S, S]; normalised on the model's device, which saves three quarters of the bytes sent.
        class_numbers: int64 [B].
        numbers: The number of each row's train image, [B].
        skipped: The number and the error of each image that is not in ``images``.
        places: int64 [B], the position of each image among all drawn ones, including those that could not be read.
    """

    images: Tensor
    class_numbers: Tensor
    numbers: tuple[int, ...]
    skipped: tuple[tuple[int, str], ...]
    places: Tensor


@dataclass(frozen=True)
class _TrainingImages(TorchDataset[Any]):
    paths: Sequence[Path]
    class_numbers: Sequence[int]
    transform: TrainingTransform
    seed: int
    read: Callable[[Path], Image.Image]

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor | str, int, int]:
        augmentation_epoch, number = key
        # Seeded by the image and not by the worker, for the same augmentation with any number of workers.
        seed = int(np.random.SeedSequence((self.seed, augmentation_epoch, number)).generate_state(1, np.uint64)[0]) >> 1
        try:
            image: Tensor | str = self.transform(self.read(self.paths[number]), seed)
        except ImageError as error:
            image = error.reason
        return image, self.class_numbers[number], number


def _collate(samples: list[tuple[Tensor | str, int, int]]) -> Batch:
    images = [image for image, _, _ in samples if isinstance(image, Tensor)]
    labels = [label for image, label, _ in samples if isinstance(image, Tensor)]
    places = [place for place, (image, _, _) in enumerate(samples) if isinstance(image, Tensor)]
    return Batch(
        images=torch.stack(images) if images else torch.empty(0, dtype=torch.uint8),
        class_numbers=torch.tensor(labels, dtype=torch.int64),
        numbers=tuple(number for image, _, number in samples if isinstance(image, Tensor)),
        skipped=tuple((number, image) for image, _, number in samples if isinstance(image, str)),
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
) -> WorkerLoader[Batch]:
    """Batches in the sampler's order; they do not depend on the number of workers."""
    count = worker_count(workers)
    loader: DataLoader[Batch] = DataLoader(
        _TrainingImages([item.path for item in items], class_numbers, transform, seed, read),
        batch_sampler=sampler,
        collate_fn=_collate,
        num_workers=count,
        persistent_workers=count > 0,
        prefetch_factor=PREFETCH if count else None,
        worker_init_fn=start_worker if count else None,
    )
    return WorkerLoader(loader)


def worker_count(workers: int | Literal["auto"]) -> int:
    """Number of workers for an option; ``auto`` is one per available core, at most 8."""
    return min(available_cores(), 8) if workers == "auto" else workers
