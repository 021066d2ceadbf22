"""Shorter vectors: the first numbers of a rotated embedding, or of one with nested sizes that has no rotation."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from unimetric.errors import UserError, cause
from unimetric.files import read_bytes

ROTATION = "rotation.safetensors"
"""The file of a model folder with its rotation."""

_ROWS = 4096


@dataclass(frozen=True, eq=False)
class Rotation:
    """Orthogonal change of axes that puts the most important directions of an embedding first.

    Args:
        matrix: float32 [E, E]; column j is the direction of the rotated vector's number j.
        images: Number of images that it was fitted on.
    """

    matrix: NDArray[np.float32]
    images: int

    def to_bytes(self) -> bytes:
        """Return the content of `ROTATION`."""
        return bytes(save({"rotation": np.ascontiguousarray(self.matrix)}))

    @property
    def sha256(self) -> str:
        """SHA-256 of the file's content, in hexadecimal."""
        return hashlib.sha256(self.to_bytes()).hexdigest()


def fit_rotation(vectors: NDArray[np.float32]) -> Rotation:
    """Return the principal directions of unit vectors [N, E], those with the largest sum of squares first.

    The vectors are not centred: of all maps to s numbers, the first s directions keep the inner products best. Each
    direction's sign is such that its largest entry is positive.
    """
    squares = np.zeros((vectors.shape[1],) * 2)
    for start in range(0, len(vectors), _ROWS):
        block = vectors[start : start + _ROWS].astype(np.float64)
        squares += block.T @ block
    _, directions = np.linalg.eigh(squares)
    directions = directions[:, ::-1]
    largest = directions[np.abs(directions).argmax(axis=0), np.arange(directions.shape[1])]
    return Rotation((directions * np.sign(largest)).astype(np.float32), len(vectors))


@dataclass(frozen=True)
class Sizes:
    """The means of a model to shorten its vectors.

    Args:
        nested: Lengths that were trained as embeddings beside the whole one, ascending.
        rotation: Applied before the first numbers are taken; None if none was fitted.
    """

    nested: tuple[int, ...] = ()
    rotation: Rotation | None = None

    def to_config(self) -> dict[str, Any]:
        """Return the entries of ``config.json``."""
        entries: dict[str, Any] = {"nested_sizes": list(self.nested)} if self.nested else {}
        if self.rotation is not None:
            entries["rotation"] = {"sha256": self.rotation.sha256, "images": self.rotation.images}
        return entries

    @classmethod
    def read(cls, folder: Path, config: Mapping[str, Any]) -> "Sizes":
        """Read the means of a model folder with a checked ``config.json``; a `UserError` for a damaged rotation."""
        return cls(tuple(config.get("nested_sizes", ())), _read_rotation(folder / ROTATION, config))

    def matrix(self, full: int, size: int) -> NDArray[np.float32]:
        """Return the linear map of whole vectors to shorter ones before they are normalised, float32 [E, s]."""
        matrix = np.eye(full, dtype=np.float32) if self.rotation is None else self.rotation.matrix
        return np.ascontiguousarray(matrix[:, :size])

    def shorten(self, vectors: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        """Return unit vectors [N, s] for unit vectors [N, E].

        A row depends on its vector alone, to the bit, on every machine: sums run in a fixed order, in double precision.
        """
        if size == vectors.shape[1]:
            return vectors
        parts = [self._shorten(vectors[start : start + _ROWS], size) for start in range(0, len(vectors), _ROWS)]
        return np.concatenate([*parts, np.empty((0, size), np.float32)])

    def _shorten(self, vectors: NDArray[np.float32], size: int) -> NDArray[np.float32]:
        if self.rotation is None:
            kept = vectors[:, :size].astype(np.float64)
        else:
            whole, matrix = vectors.astype(np.float64), self.rotation.matrix[:, :size].astype(np.float64)
            kept = np.zeros((len(vectors), size))
            # Not a matrix product, whose order of sums depends on the number of rows.
            for number in range(len(matrix)):
                kept += whole[:, number, None] * matrix[number]
        lengths = np.sqrt(np.add.accumulate(kept * kept, axis=1)[:, -1:])
        return (kept / np.maximum(lengths, np.finfo(np.float64).tiny)).astype(np.float32)


def sized_fingerprint(fingerprint: str, config: Mapping[str, Any], size: int | None) -> str:
    """Return the fingerprint of a model's vectors of a size, from its own and its ``config.json``.

    Whole vectors do not depend on the rotation, so they have the model's own.
    """
    if size is None or size == config["embedding_size"]:
        return fingerprint
    means = config["rotation"]["sha256"] if "rotation" in config else "nested"
    return hashlib.sha256(f"{fingerprint} {size} {means}".encode()).hexdigest()


def check_size(size: int, config: Mapping[str, Any], place: str) -> None:
    """Refuse a size to which a model, by the entries of its ``config.json``, cannot shorten its vectors."""
    full = config["embedding_size"]
    if not 1 <= size <= full:
        raise UserError(f"--size is {size}: the vectors of {place} have {full} numbers; use 1 to {full}")
    if size == full:
        return
    if config["geometry"]["name"] != "sphere":
        raise UserError(f"--size is {size}: {place} is a hyperbolic model, whose vectors cannot be shortened")
    if not config.get("nested_sizes") and "rotation" not in config:
        raise UserError(
            f"--size is {size}: {place} was trained without nested sizes and has no rotation; fit one with: "
            f"unimetric rotate {place}" + ("" if Path(place).is_dir() else " IMAGES --out FOLDER")
        )


def _read_rotation(path: Path, config: Mapping[str, Any]) -> Rotation | None:
    about = config.get("rotation")
    if about is None:
        return None
    again = "copy the whole model folder again, or fit another one with unimetric rotate"
    if not path.is_file():
        raise UserError(f"{path} is missing: {again}")
    content = read_bytes(path)
    try:
        matrix = load(content)["rotation"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise UserError(f"{path} is damaged ({cause(error)}): {again}") from error
    full = config["embedding_size"]
    if hashlib.sha256(content).hexdigest() != about["sha256"] or matrix.shape != (full, full):
        raise UserError(f"{path} is not the file that config.json was written with: {again}")
    return Rotation(matrix, about["images"])
