"""Similarities of images to the prompts of a model's pool, by dataset."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from unimetric.errors import UserError
from unimetric.models.embedder import Embedder
from unimetric.models.encoding import decoded_batches


def prompt_weights(embedder: Embedder, paths: Sequence[Path], batch_size: int = 32) -> NDArray[np.float32] | None:
    """Return the prompts' weights for every readable image, float32 [N, M]; None for a model without a pool."""
    rows = []
    for pixels, _ in decoded_batches(paths, embedder.transform, batch_size, skip_unreadable=True):
        if not pixels:
            continue
        images = embedder.transform.normalise(torch.stack(pixels).to(embedder.device))
        weights = embedder.prompt_weights(images)
        if weights is None:
            return None
        rows.append(weights.float().cpu().numpy())
    if not rows:
        raise UserError(f"none of {len(paths)} images can be read; the first is {paths[0]}")
    return np.concatenate(rows)


def average_prompt_weights(
    embedder: Embedder, images: Mapping[str, Sequence[Path]], per_dataset: int = 200
) -> dict[str, NDArray[np.float32]] | None:
    """Return each dataset's average weight of every prompt, float32 [M]; None for a model without a pool.

    Of each dataset, at most ``per_dataset`` images are taken, evenly spaced.
    """
    averages = {}
    for dataset, paths in images.items():
        step = np.linspace(0, len(paths) - 1, min(per_dataset, len(paths))).round().astype(int)
        weights = prompt_weights(embedder, [paths[number] for number in step])
        if weights is None:
            return None
        averages[dataset] = weights.mean(axis=0)
    return averages
