from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_products import Products
from retrieval_oracle import Image, ranking, similarity

from properties import examples
from unimetric.errors import UserError
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.neighbours import nearest_neighbours

unit_vectors = make_distance().prepare

# Few directions, so that most similarities occur more than once.
COARSE = st.tuples(*[st.integers(-1, 2).map(float)] * 3).filter(any)


@settings(max_examples=examples(150), deadline=None)
@given(
    queries=st.lists(COARSE, min_size=1, max_size=8),
    gallery=st.lists(COARSE, min_size=1, max_size=20),
    k=st.integers(1, 25),
    query_tile=st.integers(1, 9),
    gallery_tile=st.integers(1, 21),
    data=st.data(),
)
def test_neighbours_are_those_of_a_full_sort(
    queries: list[tuple[float, ...]],
    gallery: list[tuple[float, ...]],
    k: int,
    query_tile: int,
    gallery_tile: int,
    data: st.DataObject,
) -> None:
    known = st.sampled_from([-1, *range(len(gallery))])
    query_ids = data.draw(st.lists(known, min_size=len(queries), max_size=len(queries)))
    gallery_ids = data.draw(st.permutations(range(len(gallery))))
    similarities, rows = nearest_neighbours(
        np.array(queries),
        np.array(gallery),
        k,
        query_ids=query_ids,
        gallery_ids=gallery_ids,
        query_tile=query_tile,
        gallery_tile=gallery_tile,
    )
    items = [Image(vector, 0, 0, identity) for vector, identity in zip(gallery, gallery_ids, strict=True)]
    for vector, identity, values, found in zip(queries, query_ids, similarities.tolist(), rows.tolist(), strict=True):
        expected = ranking(Image(vector, 0, 0, identity), items)[:k]
        missing = k - len(expected)
        assert found == expected + [-1] * missing
        assert values == [similarity(vector, gallery[g]) for g in expected] + [-torch.inf] * missing


def copies(rows: int, width: int) -> torch.Tensor:
    """Random directions, each several times over in random rows."""
    generator = torch.Generator().manual_seed(width)
    distinct = torch.randn(max(1, rows // 5), width, generator=generator)
    return distinct[torch.randint(len(distinct), (rows,), generator=generator)]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tiles are faster without the other threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("width", [3, 37, 128])
@pytest.mark.parametrize("k", [1, 4, 90])
def test_tile_sizes_and_threads_change_no_bit(width: int, k: int) -> None:
    queries, gallery = copies(61, width), copies(211, width)
    expected = nearest_neighbours(queries, gallery, k)
    for query_tile, gallery_tile in [(1, 1000), (61, 1), (7, 13), (16, 64), (60, 210), (33, 100)]:
        similarities, rows = nearest_neighbours(queries, gallery, k, query_tile=query_tile, gallery_tile=gallery_tile)
        assert torch.equal(similarities, expected[0])
        assert torch.equal(rows, expected[1])
    torch.set_num_threads(2)
    similarities, rows = nearest_neighbours(queries, gallery, k)
    assert torch.equal(similarities, expected[0])
    assert torch.equal(rows, expected[1])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("gallery_tile", [1, 2, 3, 16, 17, 63, 64, 65, 200, 1000])
def test_copies_tie_across_tiles_and_come_in_row_order(gallery_tile: int) -> None:
    near, far = torch.randn(2, 1, 101, generator=torch.Generator().manual_seed(3))
    gallery = torch.cat([far.expand(50, -1), near.expand(150, -1)])
    similarities, rows = nearest_neighbours(near + 0.1 * far, gallery, 160, gallery_tile=gallery_tile)
    assert rows[0].tolist() == [*range(50, 200), *range(10)]
    assert similarities[0, :150].unique().numel() == 1
    assert similarities[0, 150:].unique().numel() == 1


@pytest.mark.parametrize("k", [20, 100])
def test_long_lists_full_of_ties_merge_in_row_order(k: int) -> None:
    gallery = torch.randint(-2, 3, (2000, 3), generator=torch.Generator().manual_seed(0)).float()
    gallery = gallery[gallery.any(dim=1)]
    similarities, rows = nearest_neighbours(gallery[:50], gallery, len(gallery))
    # All rows in one tile and one sort, against many tiles and merges.
    tiled = nearest_neighbours(gallery[:50], gallery, k, gallery_tile=1)
    assert torch.equal(tiled[0], similarities[:, :k])
    assert torch.equal(tiled[1], rows[:, :k])
    descending = similarities[:, 1:] < similarities[:, :-1]
    assert (descending | (rows[:, 1:] > rows[:, :-1])).all()


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("k", [1, 3, 90])
def test_no_tile_outgrows_its_bound(k: int) -> None:
    vectors = torch.randn(300, 8, generator=torch.Generator().manual_seed(k))
    with Products() as products:
        nearest_neighbours(vectors, vectors, k, query_tile=20, gallery_tile=30)
    assert max(product.size for product in products.all) <= 20 * 30
    # Each pair is screened once; of short galleries for long lists, each is compared exactly at once.
    assert sum(product.size for product in products.of(torch.float32)) == (300 * 300 if k < 90 else 0)
    assert sum(product.size for product in products.of(torch.float64)) == (0 if k < 90 else 300 * 300)


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "poincare"])
def test_few_pairs_are_compared_in_float64(distance: str) -> None:
    vectors = torch.nn.functional.normalize(torch.randn(2000, 32, generator=torch.Generator().manual_seed(0)))
    with Products() as products:
        nearest_neighbours(vectors, vectors, 10, distance=distance)
    # The ten nearest of each, and what float32 cannot distinguish from the tenth: far from all pairs.
    assert not products.of(torch.float64)
    assert products.numbers[torch.float64] < 2000 * 2000 * 32 / 8


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "poincare"])
@pytest.mark.parametrize("twins", [3, 1000])
def test_what_float32_cannot_decide_is_compared_exactly(distance: str, twins: int) -> None:
    generator = torch.Generator().manual_seed(1)
    distinct = torch.nn.functional.normalize(torch.randn(1500, 16, generator=generator))
    # One vector many times over; the queries are it and some others.
    gallery = torch.cat([distinct, distinct[:1].expand(twins, -1)])[torch.randperm(1500 + twins, generator=generator)]
    with Products() as products:
        _, rows = nearest_neighbours(distinct[:20], gallery, 5, distance=distance)
    copies = (gallery == distinct[0]).all(dim=1).nonzero()[:, 0]
    assert rows[0, : len(copies)].tolist() == copies[:5].tolist()
    # Of the twenty, only the one with the copies.
    assert {product.rows for product in products.of(torch.float64)} == ({1} if twins == 1000 else set())


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "poincare"])
def test_where_all_are_equal_rows_come_in_order(distance: str) -> None:
    vectors = torch.full((700, 5), 0.3)
    similarities, rows = nearest_neighbours(vectors[:3], vectors, 4, distance=distance, gallery_tile=128)
    assert rows.tolist() == [[0, 1, 2, 3]] * 3
    assert similarities.unique().numel() == 1
    ids = list(range(700))
    rows = nearest_neighbours(vectors, vectors, 1, distance=distance, query_ids=ids, gallery_ids=ids)[1]
    assert rows[:, 0].tolist() == [1] + [0] * 699


def test_a_thousand_neighbours_come_in_order() -> None:
    vectors = torch.randn(6000, 24, generator=torch.Generator().manual_seed(0))
    similarities, rows = nearest_neighbours(vectors[:40], vectors, 1000, gallery_tile=4096)
    exact = unit_vectors(vectors[:40]).double() @ unit_vectors(vectors).double().T
    expected = exact.sort(dim=1, descending=True, stable=True)
    assert torch.equal(rows, expected.indices[:, :1000])
    assert torch.equal(similarities, expected.values[:, :1000])


def test_a_query_that_is_not_its_own_nearest_is_still_excluded_by_identity() -> None:
    # Rows 0 and 1 are copies: excluding "the first hit" would drop row 0 for both.
    vectors = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    _, rows = nearest_neighbours(vectors, vectors, 3, query_ids=[5, 6, None], gallery_ids=[5, 6, -1])
    assert rows.tolist() == [[1, 2, -1], [0, 2, -1], [2, 0, 1]]


def test_ids_may_be_arrays_and_unnamed_ids_may_repeat() -> None:
    vectors = torch.eye(2)
    ids = np.array([-1, 4])
    _, rows = nearest_neighbours(vectors, vectors, 1, query_ids=torch.tensor([-1, -1]), gallery_ids=ids)
    assert rows.tolist() == [[0], [1]]
    _, rows = nearest_neighbours(vectors, vectors, 1, query_ids=[4, None], gallery_ids=np.array([-1, 4]))
    assert rows.tolist() == [[0], [1]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: 0; give a whole number, at least 1"),
        ({"k": 1.0}, "k: 1.0; give a whole number, at least 1"),
        ({"k": True}, "k: True; give a whole number, at least 1"),
        ({"query_tile": 0}, "query_tile: 0; give a whole number, at least 1"),
        ({"gallery_tile": "9"}, "gallery_tile: '9'; give a whole number, at least 1"),
        ({"device": "toaster"}, "device: 'toaster' is not a device; use 'cpu' or 'cuda'"),
        ({"device": "mps"}, "device: 'mps' has no float64 matrix product; use 'cpu' or 'cuda'"),
        ({"query_ids": [1, 2]}, "gallery_ids: not given, but the other side has ids; give both, or neither"),
        ({"gallery_ids": [1, 2]}, "query_ids: not given, but the other side has ids; give both, or neither"),
        (
            {"query_ids": [1], "gallery_ids": [1, 2]},
            "query_ids: 1 values for 2 rows of queries; give one per row",
        ),
        (
            {"query_ids": [1, 2], "gallery_ids": [1, 2, 3]},
            "gallery_ids: 3 values for 2 rows of gallery; give one per row",
        ),
        (
            {"query_ids": [1, 1], "gallery_ids": [1, 1]},
            "gallery_ids: 1 names rows 0 and 1; drop the copy, or give different images different ids, "
            "such as their paths",
        ),
        (
            {"gallery": torch.ones(2, 3)},
            "gallery: 3 columns, but queries has 2; embed both sides with the same model",
        ),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"queries": torch.eye(2), "gallery": torch.eye(2), "k": 1}
    with pytest.raises(UserError) as caught:
        nearest_neighbours(**(arguments | options))
    assert str(caught.value) == message


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_an_absent_device_is_named() -> None:
    with pytest.raises(UserError, match=r"device: 'cuda' is not available on this machine; use 'cpu'"):
        nearest_neighbours(torch.eye(2), torch.eye(2), 1, device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("k", [1, 90])
def test_devices_agree_to_the_bit(k: int) -> None:
    # Whole numbers give orthogonal pairs, whose product is 0.0 or -0.0.
    whole = torch.randint(-1, 2, (200, 3), generator=torch.Generator().manual_seed(5)).float()
    for vectors in (copies(211, 37), whole[whole.any(dim=1)]):
        on_cpu = nearest_neighbours(vectors, vectors, k)
        on_cuda = nearest_neighbours(vectors, vectors, k, device="cuda")
        assert torch.equal(on_cpu[0], on_cuda[0])
        assert torch.equal(on_cpu[1], on_cuda[1])
