from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_oracle import similarity

from unimetric.errors import UserError
from unimetric.evaluation.distances import cosine_similarities, make_distance

unit_vectors = make_distance().prepare


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 200))
def test_a_matrix_product_is_the_exact_sum(seed: int, width: int) -> None:
    vectors = torch.randn(4, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    units = unit_vectors(vectors)
    product = cosine_similarities(units.double(), units)
    for i, one in enumerate(vectors.tolist()):
        for j, other in enumerate(vectors.tolist()):
            assert Fraction(product[i, j].item()) == similarity(one, other)


def test_the_grid_moves_a_cosine_less_than_float32_would() -> None:
    vectors = torch.randn(200, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    units = unit_vectors(vectors)
    cosines = torch.nn.functional.normalize(vectors) @ torch.nn.functional.normalize(vectors).T
    assert (cosine_similarities(units.double(), units) - cosines).abs().max() < 2**-23


def test_equal_rows_stay_equal_wherever_they_stand() -> None:
    row = torch.randn(1, 31, generator=torch.Generator().manual_seed(1))
    # More rows than one block of the normalisation takes.
    assert torch.equal(unit_vectors(row.expand(70_001, -1)), unit_vectors(row).expand(70_001, -1))


@pytest.mark.parametrize("factor", [2.0**-120, 2.0, 2.0**100])
def test_length_plays_no_part(factor: float) -> None:
    vectors = torch.randn(5, 16, generator=torch.Generator().manual_seed(2))
    assert torch.equal(unit_vectors(vectors * factor), unit_vectors(vectors))


@pytest.mark.parametrize("size", [1e-300, 5e-324, 1e300])
def test_no_length_overflows_or_vanishes(size: float) -> None:
    assert unit_vectors(np.array([[size, 0.0], [size, -size]])).tolist() == pytest.approx(
        np.array([[1.0, 0.0], [0.5**0.5, -(0.5**0.5)]]), abs=1e-7
    )


def test_numpy_and_torch_of_any_floating_type_agree() -> None:
    vectors = np.array([[1.0, 2.0], [3.0, -4.0]])
    expected = unit_vectors(vectors)
    read_only = vectors.astype(">f4")
    read_only.flags.writeable = False
    for same in (
        read_only,
        vectors.astype(np.float16),
        np.asfortranarray(vectors),
        vectors[:, ::-1][:, ::-1],
        torch.tensor(vectors, dtype=torch.bfloat16),
        torch.tensor(vectors, requires_grad=True),
    ):
        assert torch.equal(unit_vectors(same), expected)


@pytest.mark.parametrize(
    ("vectors", "message"),
    [
        ([[1.0]], "queries: got list; give a numpy array or a torch tensor"),
        (torch.ones(3), "queries: shape [3]; give a matrix [N, E], one embedding per row"),
        (torch.ones(0, 3), "queries: shape [0, 3] holds nothing; give at least one row and one column"),
        (np.ones((3, 0)), "queries: shape [3, 0] holds nothing; give at least one row and one column"),
        (np.ones((1, 1), dtype=int), "queries: type int64 is not floating point; convert it to float32"),
        (np.ones((1, 1), dtype=object), "queries: type object is not floating point; convert it to float32"),
        (torch.ones(1, 1).int(), "queries: type torch.int32 is not floating point; convert it to float32"),
        (
            torch.tensor([[1.0, 1.0], [1.0, float("nan")]]),
            "queries: row 1, column 1 is nan; drop that row or fix the model that made it",
        ),
        (
            np.array([[-np.inf, np.nan]]),
            "queries: row 0, column 0 is -inf; drop that row or fix the model that made it",
        ),
        (torch.eye(3)[[0, 1]] * torch.tensor([[1.0], [0.0]]), "queries: row 1 is all zeros, which has no cosine; "
         "drop it or fix the model"),
    ],
)  # fmt: skip
def test_vectors_without_a_cosine_are_refused(vectors: object, message: str) -> None:
    with pytest.raises(UserError) as caught:
        unit_vectors(vectors, "queries")  # type: ignore[arg-type]
    assert str(caught.value) == message


def test_a_bad_row_is_numbered_beyond_the_first_block() -> None:
    vectors = torch.ones(70_000, 1)
    vectors[69_999] = 0
    with pytest.raises(UserError, match="row 69999 is all zeros"):
        unit_vectors(vectors)
