"""The conditional prompt against its formulas, and where it could break."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unimetric.models.petl.puma import PromptPool


def make(width=12, size=5, length=3, seed=0, moved=True):
    torch.manual_seed(seed)
    pool = PromptPool(width, size, length)
    if moved:
        with torch.no_grad():
            for parameter in pool.parameters():
                parameter.add_(torch.randn_like(parameter))
    return pool


def naive_weights(pool, patches):
    rows = []
    for image in patches.double():
        query = (image.mean(0) + image.max(0).values) / 2
        rows.append(
            torch.stack(
                [
                    torch.cosine_similarity(query * attend.double().softmax(0), key.double(), dim=0)
                    for attend, key in zip(pool.attentions, pool.keys, strict=True)
                ]
            )
        )
    return torch.stack(rows)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 10**6), exponent=st.integers(-4, 4), shift=st.floats(-3, 3))
def test_weights_are_cosines_whatever_the_size_of_the_patches(seed, exponent, shift):
    pool = make(seed=seed)
    patches = (torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(seed)) + shift) * 10.0**exponent
    with torch.no_grad():
        weights = pool.weights(patches)
        torch.testing.assert_close(weights.double(), naive_weights(pool, patches), atol=2e-6, rtol=1e-5)
    assert weights.abs().max() <= 1 + 1e-6


def test_a_key_that_is_the_query_itself_weighs_one_and_its_opposite_minus_one():
    pool = make()
    patches = torch.randn(1, 7, 12)
    query = (patches.mean(1) + patches.amax(1))[0] / 2
    with torch.no_grad():
        pool.keys[0] = query * pool.attentions[0].softmax(0)
        pool.keys[1] = -3 * query * pool.attentions[1].softmax(0)
        weights = pool.weights(patches)[0]
    assert weights[0].item() == pytest.approx(1, abs=1e-6)
    assert weights[1].item() == pytest.approx(-1, abs=1e-6)


def test_prompt_is_the_weighted_sum_for_each_image_by_itself():
    pool = make()
    patches = torch.randn(4, 7, 12)
    expected = sum(naive_weights(pool, patches)[:, m, None, None] * pool.prompts[m].double() for m in range(5))
    torch.testing.assert_close(pool(patches).double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pool(patches)[2:3], pool(patches[2:3]))
    shuffled = patches[:, torch.randperm(7)]
    torch.testing.assert_close(pool(shuffled), pool(patches))


def test_no_gradient_reaches_the_patches_and_all_of_the_pool_gets_one():
    pool = make()
    patches = torch.randn(4, 7, 12, requires_grad=True)
    pool(patches).square().sum().backward()
    assert patches.grad is None
    assert all(parameter.grad.abs().sum() > 0 for parameter in pool.parameters())


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 1e-20, 1e15])
def test_zero_and_constant_patches_give_finite_weights_and_gradients(value):
    pool = make()
    weights = pool.weights(torch.full((2, 7, 12), value))
    pool(torch.full((2, 7, 12), value)).square().sum().backward()
    assert torch.isfinite(weights).all()
    assert weights.abs().max() <= 1 + 1e-6
    assert all(torch.isfinite(parameter.grad).all() for parameter in pool.parameters())


def test_zero_keys_give_finite_gradients():
    pool = make()
    torch.nn.init.zeros_(pool.keys)
    pool(torch.randn(2, 7, 12)).square().sum().backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in pool.parameters())


def test_starts_orthonormal_with_all_prompts_the_same():
    pool = make(width=24, size=20, length=8, moved=False)
    for rows in (pool.keys, pool.attentions, pool.prompts[0]):
        torch.testing.assert_close(rows @ rows.T, torch.eye(len(rows)), atol=1e-5, rtol=0)
    assert torch.equal(pool.prompts, pool.prompts[:1].expand(20, -1, -1))
    assert not torch.equal(pool.keys, pool.attentions)
    # One tensor each: a step on one prompt must not move the others.
    with torch.no_grad():
        pool.prompts[3].add_(1)
    assert torch.equal(pool.prompts[4], pool.prompts[5])
    assert not torch.equal(pool.prompts[3], pool.prompts[4])


def test_penalty_is_the_mean_squared_distance_from_orthogonality():
    pool = make()
    expected = 0.0
    for rows in (pool.keys, pool.attentions, pool.prompts.reshape(5, -1)):
        for i in range(5):
            for j in range(5):
                expected += ((rows[i] @ rows[j]).item() - (i == j)) ** 2 / 25
    assert pool.penalty().item() == pytest.approx(expected, rel=1e-5)
    fresh = make(width=64, moved=False)
    # Keys and attentions are orthonormal; equal prompts of squared norm l = 3 are not.
    assert fresh.penalty().item() == pytest.approx((5 * (3 - 1) ** 2 + 20 * 3**2) / 25, rel=1e-4)


def test_autocast_changes_nothing():
    pool = make()
    patches = torch.randn(4, 7, 12)
    with torch.autocast("cpu", torch.bfloat16):
        inside, penalty = pool(patches), pool.penalty()
    assert torch.equal(inside, pool(patches))
    assert torch.equal(penalty, pool.penalty())
    assert inside.dtype == torch.float32
