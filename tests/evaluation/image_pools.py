"""Small sets of images with ties, copies and classes of one."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from hypothesis import strategies as st
from retrieval_oracle import Image

COARSE = st.tuples(*[st.integers(-1, 2).map(float)] * 3).filter(any)
LABELS: list[Hashable] = [1, "one", ("a", 2), b"a"]
DATASETS: list[Hashable] = ["birds", 7, ("cars", 196)]


@st.composite
def images(draw: st.DrawFn) -> list[Image]:
    """A pool of images, each with an identity, in one to three datasets that share their labels."""
    datasets = DATASETS[: draw(st.integers(1, 3))]
    image = st.tuples(COARSE, st.sampled_from(LABELS), st.sampled_from(datasets))
    pool = draw(st.lists(image, min_size=1, max_size=14))
    return [Image(*parts, identity=("image", row)) for row, parts in enumerate(pool)]


def columns(side: Sequence[Image]) -> tuple[Any, list[Hashable], list[Hashable], list[Hashable]]:
    return (
        np.array([image.vector for image in side]),
        [image.label for image in side],
        [image.dataset for image in side],
        [image.identity for image in side],
    )
