"""The mean of several models: LoRA's is that of the updates, heads are turned alike, and unlike models are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from toy_runs import unimetric
from unimetric.errors import UserError
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.merging import merge

BACKBONE = "vit_tiny_patch16_224"
CHANGED = {"bitfit": {}, "full": {}, "linear": {}, "lora": {"rank": 3, "alpha": 6.0, "targets": "all"}}


def trained(method: str, seed: int, same_head: bool = True, **options: Any) -> Embedder:
    """A model whose learned weights are random, near where training begins."""
    torch.manual_seed(0)
    backbone = make_backbone(BACKBONE, weights="random", image_size=32)
    torch.manual_seed(1 if same_head else seed)
    embedder = Embedder(backbone, method, options, embedding_size=8)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in filter(lambda parameter: parameter.requires_grad, embedder.parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
    return embedder.eval()


def images(count: int = 4) -> torch.Tensor:
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(9))


@torch.no_grad()
def vectors(embedder: Embedder) -> torch.Tensor:
    return embedder(images())


@pytest.mark.parametrize("method", sorted(CHANGED))
def test_a_model_merged_with_itself_is_that_model(method: str) -> None:
    one = trained(method, 1, **CHANGED[method])
    merged = merge([one, trained(method, 1, **CHANGED[method])], ["a", "b"])
    assert torch.allclose(vectors(merged), vectors(one), atol=1e-5)


def test_the_update_of_merged_lora_is_the_mean_of_the_updates() -> None:
    models = [trained("lora", seed, **CHANGED["lora"]) for seed in (1, 2, 3)]
    merged = merge(models, ["a", "b", "c"])
    for name, layer in merged.backbone.vit.named_modules():
        if hasattr(layer, "down"):
            each = [model.backbone.vit.get_submodule(name) for model in models]
            expected = torch.stack([other.factor * other.up.weight @ other.down.weight for other in each]).mean(dim=0)
            assert torch.allclose(layer.factor * layer.up.weight @ layer.down.weight, expected, atol=1e-6)
    assert merged.options.rank == 9
    assert merged.trainable_parameter_count() - 8 * 193 == 3 * (models[0].trainable_parameter_count() - 8 * 193)


def test_the_weights_of_merged_full_models_are_the_mean() -> None:
    models = [trained("full", seed) for seed in (1, 2)]
    found = dict(merge(models, ["a", "b"]).backbone.named_parameters())
    for name, value in models[0].backbone.named_parameters():
        expected = (value + dict(models[1].backbone.named_parameters())[name]) / 2
        assert torch.allclose(found[name], expected, atol=1e-6)


def test_a_head_that_is_turned_counts_as_the_same_head() -> None:
    one, other = trained("linear", 1), trained("linear", 1)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(4)))[0]
    assert one.head is not None
    assert other.head is not None
    with torch.no_grad():
        other.head.weight.copy_(turn @ other.head.weight)
        other.head.bias.copy_(turn @ other.head.bias)
    expected = vectors(one) @ vectors(one).T
    assert torch.allclose(vectors(other) @ vectors(other).T, expected, atol=1e-5)
    merged = vectors(merge([one, other], ["a", "b"]))
    assert torch.allclose(merged @ merged.T, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("models", "message"),
    [
        ([("lora", {})], "a merged model needs at least two models, got 1"),
        ([("lora", {}), ("full", {})], "the method of m1 is full, that of m0 is lora"),
        ([("lora", {"rank": 2}), ("lora", {"rank": 4})], "the options of m1 is"),
        ([("puma", {}), ("puma", {})], "m0: weights of method puma have no mean; merge models of bitfit, full"),
        ([("frozen", {}), ("frozen", {})], "m0: weights of method frozen have no mean"),
    ],
)
def test_models_that_have_no_mean_are_refused(models: list[tuple[str, dict[str, Any]]], message: str) -> None:
    made = [trained(method, seed, **options) for seed, (method, options) in enumerate(models)]
    with pytest.raises(UserError) as caught:
        merge(made, [f"m{number}" for number in range(len(made))])
    assert message in str(caught.value)


def test_nested_sizes_are_refused() -> None:
    made = [trained("lora", seed) for seed in (1, 2)]
    made[1].sizes = type(made[1].sizes)(nested=(4,))
    with pytest.raises(UserError, match="b has nested sizes"):
        merge(made, ["a", "b"])


def test_hyperbolic_models_are_refused() -> None:
    backbone = make_backbone(BACKBONE, weights="random", image_size=32)
    made = [Embedder(backbone, "linear", {}, embedding_size=8, geometry="poincare") for _ in range(2)]
    with pytest.raises(UserError, match="a is a hyperbolic model"):
        merge(made, ["a", "b"])


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        trained("lora", seed, rank=2).save_pretrained(tmp_path / str(seed))
    one, two, out = tmp_path / "1", tmp_path / "2", tmp_path / "merged"
    assert unimetric("merge", one, two, "--out", out) == 0
    assert f"unimetric evaluate {out} SOURCE..." in capsys.readouterr().err.replace("\n", " ")
    assert Embedder.from_pretrained(out).options.rank == 4
    before = (one / "config.json").read_bytes()
    for bad in ([one], [one, one], [one, two, "--out", one], [one, two, "--out", out]):
        words = bad if "--out" in bad else [*bad, "--out", tmp_path / "none"]
        assert unimetric("merge", *words) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "none").exists()
    assert (one / "config.json").read_bytes() == before


def test_runs_with_other_splits_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        run = tmp_path / str(seed)
        trained("lora", seed, rank=2).save_pretrained(run / "model")
        (run / "config.yaml").write_text(f"data: {{sources: [a], split_seed: {seed}}}\n")
    one, two, out = tmp_path / "1", tmp_path / "2", tmp_path / "merged"
    assert unimetric("merge", one, two, "--out", out) == 2
    assert f"--data.split_seed of {two} is 2, that of {one} is 1" in capsys.readouterr().err
    (two / "config.yaml").write_text("data: {sources: [b], split_seed: 1}\n")
    assert unimetric("merge", one, two, "--out", out) == 0
    assert f"evaluate {out} --config {one / 'config.yaml'}" in capsys.readouterr().err.replace("\n", " ")
