"""The stochastic adapter: dropped whole samples at a time, unbiased, off at evaluation."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toys import pixels, toy_embedder

from unimetric.models.petl.puma import StochasticAdapter

WIDTH = 6


def make(drop, seed=0):
    torch.manual_seed(seed)
    adapter = StochasticAdapter(WIDTH, 5, scale=0.3, drop=drop)
    torch.nn.init.normal_(adapter.up.weight)
    return adapter


def factors(adapter, tokens, seed):
    """Factor on each sample's adapter: [B]. Fails if the tokens of a sample differ in it."""
    with torch.no_grad():
        full = adapter.eval()(tokens)
        torch.manual_seed(seed)
        drawn = adapter.train()(tokens)
    ratio = (drawn * full).sum((1, 2)) / full.square().sum((1, 2))
    torch.testing.assert_close(drawn, ratio[:, None, None] * full)
    return ratio


def test_evaluation_is_the_formula():
    adapter = make(drop=0.5).eval()
    tokens = pixels(2).flatten(1)[:, : 4 * WIDTH].reshape(2, 4, WIDTH)
    hidden = torch.einsum("btd,rd->btr", tokens, adapter.down.weight).clamp_min(0)
    torch.testing.assert_close(adapter(tokens), 0.3 * torch.einsum("btr,dr->btd", hidden, adapter.up.weight))


@settings(max_examples=25, deadline=None, derandomize=True)
@given(drop=st.floats(0.01, 0.95), seed=st.integers(0, 2**31))
def test_every_token_of_a_sample_shares_the_draw_and_the_mean_is_one(drop, seed):
    count = 4000
    tokens = torch.randn(count, 3, WIDTH, generator=torch.Generator().manual_seed(seed)) + 0.5
    adapter = make(drop, seed % 1000)
    with torch.no_grad():
        alive = adapter.eval()(tokens).flatten(1).norm(dim=1) > 1e-4  # the relu may be closed for a whole sample
    drawn = factors(adapter, tokens[alive], seed)
    kept = drawn.abs() > 0.5
    torch.testing.assert_close(drawn, kept / (1 - drop), atol=1e-3, rtol=1e-3)
    # b has mean 1 and variance p / (1 - p); six standard deviations of the mean fail once in 10^9.
    assert abs(drawn.mean() - 1) < 6 * math.sqrt(drop / (1 - drop) / len(drawn)) + 1e-3


def test_samples_differ_and_seeds_decide():
    adapter, tokens = make(0.5), torch.rand(64, 3, WIDTH) + 1
    first = factors(adapter, tokens, seed=1)
    assert 0 < (first > 1).sum() < 64
    assert torch.equal(first, factors(adapter, tokens, seed=1))
    assert not torch.equal(first, factors(adapter, tokens, seed=2))


def test_evaluation_and_drop_zero_draw_nothing():
    tokens = torch.rand(8, 3, WIDTH)
    for adapter in (make(0.5).eval(), make(0.0).train()):
        torch.manual_seed(3)
        state = torch.get_rng_state()
        out = adapter(tokens)
        assert torch.equal(torch.get_rng_state(), state)
        torch.testing.assert_close(out, adapter.eval()(tokens))


@pytest.mark.parametrize("drop", [0.5, 0.999999])
def test_gradients_are_those_of_the_kept_samples_alone(drop):
    """Dropping all of them leaves zero gradients, not None: an optimiser and DDP see the same parameters each step."""
    adapter, tokens = make(drop), torch.rand(8, 3, WIDTH)
    kept = factors(adapter, tokens, seed=4) > 0
    assert kept.any() == (drop == 0.5)
    torch.manual_seed(4)
    adapter.train()(tokens).square().sum().backward()
    stochastic = [parameter.grad.clone() for parameter in adapter.parameters()]
    adapter.zero_grad()
    (adapter.eval()(tokens[kept]) / (1 - drop)).square().sum().backward()
    for gradient, parameter in zip(stochastic, adapter.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)


def test_the_adapters_of_a_network_draw_independently():
    """Which of 2,000 samples are dropped, over the four adapters of two blocks: uncorrelated."""
    embedder = toy_embedder(options={"adapter_bottleneck": 2, "prompts": 0, "adapter_drop": 0.5}, image_size=16).train()
    method = embedder.method
    before, draws = [], []
    for adapter in (*method.attention_adapters, *method.mlp_adapters):
        # The sum that it adds to is changed in place: a copy from before tells what was added.
        adapter.register_forward_pre_hook(lambda module, args: before.append(args[1].clone()))
        adapter.register_forward_hook(lambda module, args, out: draws.append((out != before[-1]).flatten(1).any(1)))
        torch.nn.init.ones_(adapter.down.weight)
        adapter.down.weight.data[1] = -1  # one of the two hidden units is open for any token
    torch.manual_seed(0)
    with torch.no_grad():
        embedder(pixels(2000, 16))
    assert len(draws) == 4
    correlation = torch.corrcoef(torch.stack(draws).float())
    # Five standard deviations, 1 / sqrt(n), of the correlation of independent draws.
    assert (correlation - torch.eye(4)).abs().max() < 5 / math.sqrt(2000)
    assert all(abs(draw.float().mean() - 0.5) < 5 * 0.5 / math.sqrt(2000) for draw in draws)


def test_a_fresh_adapter_is_silent_and_he_uniform():
    torch.manual_seed(0)
    adapter = StochasticAdapter(384, 128)
    assert not adapter.up.weight.any()
    bound = math.sqrt(6 / 384)
    assert adapter.down.weight.abs().max() <= bound
    assert adapter.down.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert adapter.down.bias is None and adapter.up.bias is None


@pytest.mark.parametrize("drop", [0.0, 0.5, 0.999999])
def test_adding_to_a_sum_is_adding_the_output(drop):
    adapter, tokens, total = make(drop).train(), torch.rand(8, 3, WIDTH), torch.rand(8, 3, WIDTH)
    torch.manual_seed(4)
    expected = total + adapter(tokens)
    torch.manual_seed(4)
    torch.testing.assert_close(adapter(tokens, total.clone()), expected)
