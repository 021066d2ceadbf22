"""Checks of a loss's constants and batch, and its precision."""

import torch
from torch import Tensor


def check_constant(ok: bool, requirement: str, value: object) -> None:
    """Raise a ``ValueError`` with the requirement on a constant and its value, unless ``ok``.

    >>> check_constant(-1.0 > 0, "scale must be positive", -1.0)
    Traceback (most recent call last):
    ValueError: scale must be positive, got -1.0
    """
    if not ok:
        raise ValueError(f"{requirement}, got {value!r}")


def check_batch(embeddings: Tensor, labels: Tensor, embedding_size: int, num_classes: int | None) -> None:
    """Check a batch: embeddings [B, E], floating point, B >= 1, and labels [B], int64, in ``[0, num_classes)``.

    Losses without class proxies, which only compare labels with each other, have None for the number of classes. The
    range check reads two numbers back to the host, one short synchronisation per step on an accelerator. Without it, a
    label out of range would end the process with a device-side assertion that names no label.

    Raises:
        ValueError: a wrong shape or type, or a label out of range.
    """
    if embeddings.ndim != 2 or embeddings.shape[1] != embedding_size or len(embeddings) == 0:
        raise ValueError(f"embeddings must have shape [B >= 1, {embedding_size}], got {list(embeddings.shape)}")
    if labels.shape != embeddings.shape[:1]:
        raise ValueError(f"labels must have shape [{len(embeddings)}], got {list(labels.shape)}")
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, got {labels.dtype}")
    if num_classes is None:
        return
    low, high = torch.stack(torch.aminmax(labels)).tolist()
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(f"label {wrong} is outside [0, {num_classes}), the classes this loss was made for")


def no_autocast(embeddings: Tensor) -> torch.autocast:
    """Disable autocast, so that operations keep their operands' precision.

    Losses multiply cosines by up to 64 before an exponential, so bfloat16's steps of 1/256 near cosine 1 would become
    steps of 1/4 in the logits.
    """
    return torch.autocast(device_type=embeddings.device.type, enabled=False)
