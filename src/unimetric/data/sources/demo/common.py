"""What the demo's domains share: a picture with a class, randomness by name, colours, and finding packaged files."""

from __future__ import annotations

import hashlib
import importlib.metadata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from unimetric.errors import UserError

SIDE = 128
"""Side of every demo picture in pixels."""

REMEDY = "pip install 'unimetric[demo]'"


@dataclass(frozen=True)
class Picture:
    """One picture of a class, 8-bit RGB, ``SIDE`` by ``SIDE`` pixels."""

    label: str
    image: Image.Image


def random_for(*names: object) -> np.random.Generator:
    """A random generator that depends on the given names alone: a picture's randomness knows nothing of the others."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def two_colours(random: np.random.Generator) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    """Foreground and background, one dark and one light, either way round."""
    dark = tuple(int(value) for value in random.integers(0, 90, 3))
    light = tuple(int(value) for value in random.integers(175, 256, 3))
    first, second = (dark, light) if random.random() < 0.7 else (light, dark)
    return (first[0], first[1], first[2]), (second[0], second[1], second[2])


@lru_cache
def packaged_file(package: str, name: str) -> Path:
    """The path of a file that an installed package ships; the package is not imported.

    Raises:
        UserError: the package or the file is missing.
    """
    try:
        distribution = importlib.metadata.distribution(package)
    except importlib.metadata.PackageNotFoundError:
        raise UserError(f"the demo data needs the package {package}: {REMEDY}") from None
    for file in distribution.files or []:
        if file.as_posix().endswith(name):
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise UserError(f"the package {package} {distribution.version} lacks {name}: {REMEDY} --force-reinstall")
