"""Vectors of photographs whose pixels are stored in another colour space, which decoding does not convert.

    python benchmarks/colour_profiles.py FOLDER

FOLDER has photographs in sRGB. Each is stored in the other spaces, read without its profile, and compared with itself.
"""

from __future__ import annotations

import io
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from machine import write_result
from unimetric import Embedder
from unimetric.data.images import decode_image

COUNT = 96
D65, D50 = (0.3127, 0.3290), (0.3457, 0.3585)
SPACES = {
    "Display P3": (((0.680, 0.320), (0.265, 0.690), (0.150, 0.060)), D65, None),
    "Adobe RGB": (((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)), D65, 563 / 256),
    "ProPhoto RGB": (((0.734699, 0.265301), (0.159597, 0.840403), (0.036598, 0.000105)), D50, 1.8),
}
"""Primaries and white in CIE xy, and the exponent of the curve; None is that of sRGB."""
SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def _xyz(place: tuple[float, float]) -> NDArray[np.float64]:
    x, y = place
    return np.array([x / y, 1, (1 - x - y) / y])


def to_xyz(primaries: tuple[tuple[float, float], ...], white: tuple[float, float]) -> NDArray[np.float64]:
    """Matrix [3, 3] from linear RGB to XYZ under D65."""
    columns = np.stack([_xyz(primary) for primary in primaries], axis=1)
    matrix = columns * np.linalg.solve(columns, _xyz(white))
    gains = (BRADFORD @ _xyz(D65)) / (BRADFORD @ _xyz(white))
    return np.linalg.inv(BRADFORD) @ np.diag(gains) @ BRADFORD @ matrix


def stored_in(name: str, image: Image.Image) -> Image.Image:
    """Numbers of an sRGB image in another space."""
    primaries, white, exponent = SPACES[name]
    coded = np.asarray(image, dtype=np.float64) / 255
    linear = np.where(coded <= 0.04045, coded / 12.92, ((coded + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ (np.linalg.inv(to_xyz(primaries, white)) @ to_xyz(SRGB, D65)).T, 0, 1)
    curve = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    coded = curve if exponent is None else linear ** (1 / exponent)
    return Image.fromarray(np.round(coded * 255).astype(np.uint8))


def compressed(image: Image.Image, quality: int) -> Image.Image:
    """The image after JPEG compression."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def main(folder: str) -> None:
    """Measure and write ``results/colour_profiles.json``."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    images = [decode_image(path) for path in files[:: max(len(files) // COUNT, 1)][:COUNT]]
    embedder = Embedder.from_pretrained("dinov2-small")
    vectors = embedder.encode(images, precision="fp32")
    changed = {name: [stored_in(name, image) for image in images] for name in SPACES}
    changed |= {f"JPEG, quality {quality}": [compressed(image, quality) for image in images] for quality in (90, 50)}
    cosines = {}
    for name, others in changed.items():
        values = (vectors * embedder.encode(others, precision="fp32")).sum(axis=1)
        cosines[name] = {"mean": float(values.mean()), "lowest": float(values.min())}
    print(write_result("colour_profiles", {"images": len(images), "image_size": 224, "cosines": cosines}))


if __name__ == "__main__":
    main(sys.argv[1])
