"""Seeded pictures and a quick encoder for tests of the audit."""

import io

import numpy as np
from PIL import Image
from scipy import ndimage


def picture(seed: int, width: int = 160, height: int = 120) -> Image.Image:
    """A picture with coarse and fine structure, drawn from its seed."""
    random = np.random.default_rng(seed)
    layers = [ndimage.gaussian_filter(random.normal(size=(height, width, 3)), (s, s, 0)) * s for s in (2, 6, 20)]
    values = sum(layers)
    values = (values - values.min()) / (values.max() - values.min())
    return Image.fromarray((255 * values).astype(np.uint8))


def compressed(image: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=45)
    return Image.open(io.BytesIO(buffer.getvalue())).convert("RGB")


class Colours:
    """An encoder whose vectors are small pictures: enough for a test, and quick."""

    embedding_size = 48

    def encode(self, images: list[Image.Image], *, precision: str = "auto") -> np.ndarray:
        pixels = np.stack([np.asarray(image.convert("RGB").resize((4, 4)), np.float32).ravel() for image in images])
        centred = pixels - pixels.mean(axis=1, keepdims=True) + 1e-3
        return centred / np.linalg.norm(centred, axis=1, keepdims=True)
