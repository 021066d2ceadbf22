from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matrix_products import Products

from properties import examples
from unimetric.evaluation import nearest_neighbours
from unimetric.evaluation.distances import make_distance
from unimetric.evaluation.screen import Candidates, full_precision, product_error


@settings(max_examples=examples(60), deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    width=st.integers(1, 300),
    distance=st.sampled_from(["cosine", "euclidean", "poincare"]),
    alike=st.booleans(),
)
def test_a_float32_product_errs_within_its_bound(seed: int, width: int, distance: str, alike: bool) -> None:
    vectors = torch.rand(40, width, generator=torch.Generator().manual_seed(seed)) - (0.0 if alike else 0.5)
    vectors = 3 * vectors / (1 + vectors.norm(dim=1, keepdim=True))
    vectors[0] = 1e-3
    comparison = make_distance(distance, sides={"vectors": vectors})
    rows = comparison.prepare(vectors, "vectors")
    left, right = comparison.screen.queries(rows), comparison.screen.gallery(rows)
    gaps = (comparison.similarities(rows.double(), rows) - (left @ right.T).double()).abs()
    lengths = left.double().norm(dim=1)[:, None] * right.double().norm(dim=1)
    bounds = lengths * product_error(left.shape[1], comparison.screen.left_out(left.shape[1]))
    assert (gaps <= bounds).all()


def test_the_bound_covers_the_worst_order_of_additions() -> None:
    """A one, and then many numbers of half its last place, each of which is rounded away."""
    count = 2**10
    numbers = [1.0] + [2.0**-24] * count
    total = torch.tensor(0.0)
    for number in numbers:
        total = total + number
    error = abs(Fraction(float(total)) - sum(map(Fraction, numbers)))
    assert error == count * Fraction(2) ** -24
    # As the product of these numbers with ones: not within what it would be for one number less in four.
    length = torch.tensor(numbers).double().norm() * (count + 1) ** 0.5
    assert error <= float(length) * product_error(count + 1)


@pytest.fixture
def restored_precision() -> object:
    yield
    torch.set_float32_matmul_precision("highest")


def settings_now() -> list[str]:
    backends = torch.backends
    if not hasattr(backends.cuda.matmul, "fp32_precision"):
        return [torch.get_float32_matmul_precision()]
    return [backends.cuda.matmul.fp32_precision, backends.mkldnn.matmul.fp32_precision]


@pytest.mark.usefixtures("restored_precision")
@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_reduced_precision_is_off_within_and_restored(precision: str) -> None:
    torch.set_float32_matmul_precision(precision)
    before = settings_now()
    assert precision == "highest" or not set(before) <= {"ieee", "none", "highest"}
    with pytest.raises(KeyError), full_precision("cpu"):
        assert set(settings_now()) <= {"ieee", "none", "highest"}
        raise KeyError
    assert settings_now() == before
    assert torch.get_float32_matmul_precision() == precision


@pytest.mark.usefixtures("restored_precision")
def test_what_the_process_allows_changes_no_bit() -> None:
    vectors = torch.randn(500, 64, generator=torch.Generator().manual_seed(0))
    expected = nearest_neighbours(vectors, vectors, 5)
    torch.set_float32_matmul_precision("medium")
    with torch.autocast("cpu", dtype=torch.bfloat16), Products(settings_now) as products:
        found = nearest_neighbours(vectors, vectors, 5)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert products.of(torch.float32) == products.all != []
    assert {setting for product in products.all for setting in product.settings} <= {"ieee", "highest"}


def test_lists_that_end_too_near_to_the_kth_are_undecided() -> None:
    errors = torch.tensor([0.01, 0.01, 0.01], dtype=torch.float64)
    floor = torch.full((3,), -torch.inf, dtype=torch.float64)
    candidates = Candidates.none(floor, errors, k=2, length=3)
    tile = torch.full((3, 128), -1.0)
    tile[:, [3, 70, 100, 127]] = torch.tensor([[0.9, 0.8, 0.1, 0.0], [0.9, 0.8, 0.79, 0.0], [0.9, 0.8, 0.785, 0.784]])
    candidates.add(tile, start=1000)
    assert candidates.columns[:, :2].tolist() == [[1003, 1070]] * 3
    assert candidates.undecided().tolist() == [1, 2]


@pytest.mark.parametrize("start", [0, 64])
def test_a_floor_leaves_out_what_is_below(start: int) -> None:
    floor = torch.tensor([0.5], dtype=torch.float64)
    candidates = Candidates.none(floor, torch.zeros(1, dtype=torch.float64), k=2, length=4)
    tile = torch.full((1, 64 * 200), -1.0)
    tile[0, [5, 9, 700]] = torch.tensor([0.5, 0.49, 0.6])
    candidates.add(tile, start)
    needed = candidates.values >= candidates.needed()[:, None]
    assert candidates.columns[needed].tolist() == [start + 700, start + 5]
