"""The order of vectors in memory: all of them once, near ones together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unimetric.search.memory.blocks import inverse_lengths
from unimetric.search.memory.locality import near_together


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 300), size=st.integers(1, 40), kinds=st.integers(1, 300), seed=st.integers(0, 99))
def test_every_place_is_there_once(count: int, size: int, kinds: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    # Equal vectors, zeros and lengths that float32 cannot screen.
    scale = 10.0 ** random.choice([-30, 0, 0, 0, 30], (kinds, 1))
    vectors = (random.normal(size=(kinds, size)) * scale)[random.integers(0, kinds, count)].astype(np.float32)
    vectors[random.random(count) < 0.1] = 0
    places = random.permutation(count)[: count - count // 4]
    found = near_together(vectors, inverse_lengths(vectors), places)
    assert sorted(found.tolist()) == sorted(places.tolist())
    np.testing.assert_array_equal(found, near_together(vectors, inverse_lengths(vectors), places))


@pytest.mark.parametrize("size", [4, 24, 128])
def test_members_of_a_class_come_close_together(size: int) -> None:
    random = np.random.default_rng(0)
    classes = random.permutation(np.repeat(np.arange(200), 20))
    centres = random.normal(size=(200, size))
    vectors = (centres[classes] + 0.05 * random.normal(size=(4000, size))).astype(np.float32)
    order = near_together(vectors, inverse_lengths(vectors), np.arange(4000))
    apart = np.flatnonzero(np.diff(classes[order]))
    # In 200 runs at best; without an order, in nearly 4,000.
    assert len(apart) < 1000
