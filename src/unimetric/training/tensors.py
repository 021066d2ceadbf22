"""Safetensors files, written so that a full disk is reported as such."""

import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from unimetric.files import write_atomically

_CHUNK = 2**20


def independent(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies on the CPU; tensors may share memory, and a file holds each by itself."""
    return {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}


def part_of(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors whose names begin with a prefix and a dot, by the rest of their names."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in tensors.items() if name.startswith(start)}


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file atomically."""
    write_atomically(path, lambda temporary: save_tensors(temporary, tensors, metadata))


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file; an `OSError` if the operating system refuses."""
    described = None if metadata is None else dict(metadata)
    try:
        save_file(dict(tensors), path, metadata=described)
    except SafetensorError:
        # It has no type for the operating system's errors. Writing as many bytes raises the error itself, unless there
        # is space again.
        _write_zeros(path, sum(value.nbytes for value in tensors.values()))
        save_file(dict(tensors), path, metadata=described)


def _write_zeros(path: Path, size: int) -> None:
    with path.open("wb") as file:
        for start in range(0, size, _CHUNK):
            file.write(bytes(min(_CHUNK, size - start)))
        file.flush()
        os.fsync(file.fileno())
