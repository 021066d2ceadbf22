"""Parts of requests: a picture and the token for writing."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image

TOKEN = "a token for the tests"


def picture(kind: str = "PNG", size: tuple[int, int] = (40, 30), seed: int = 0, **options: Any) -> bytes:
    """An image file of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()
