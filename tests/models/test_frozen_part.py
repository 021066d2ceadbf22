"""Frozen weights stay frozen, learned ones stay float32, and holding weights in bf16 leaves no trace."""

import copy
import threading

import pytest
import torch
from toys import pixels, toy_backbone, toy_embedder

from unimetric.models.petl import METHODS

every_method = pytest.mark.parametrize("method", sorted(METHODS))
BACKBONES = ["vit_tiny_patch16_224", "vit_base_patch16_siglip_224", "vit_small_patch16_dinov3"]


def autocast(enabled=True):
    return torch.autocast("cpu", torch.bfloat16, enabled=enabled)


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def assert_same(before, after):
    assert before.keys() == after.keys()
    for name, value in before.items():
        assert value.dtype == after[name].dtype, name
        assert torch.equal(value, after[name]), name


@every_method
def test_training_mode_reaches_the_method_and_never_the_backbone(method):
    embedder = toy_embedder(method).train()
    assert embedder.training
    # LoRA's matrices sit inside the backbone's layers; they are the method's all the same.
    own = set(embedder.method.modules())
    assert all(module.training for module in own)
    assert not any(module.training for module in embedder.backbone.modules() if module not in own)


def test_dropout_and_stochastic_depth_of_the_backbone_stay_off_in_training():
    backbone = toy_backbone(embed_dim=48, num_heads=3, drop_path_rate=0.9, proj_drop_rate=0.9, pos_drop_rate=0.9)
    with torch.no_grad():
        assert torch.equal(backbone.train()(pixels()), backbone(pixels()))


@every_method
def test_gradients_reach_all_that_is_learned_and_nothing_that_is_frozen(method):
    embedder = toy_embedder(method).train()
    own = {id(parameter) for parameter in embedder.method.parameters()}
    frozen = {
        name: parameter
        for name, parameter in embedder.backbone.named_parameters()
        if id(parameter) not in own and name not in embedder.method.trained_in_backbone
    }
    assert len(frozen) > 0 or method == "full"
    before = {name: parameter.detach().clone() for name, parameter in frozen.items()}
    assert not any(parameter.requires_grad for parameter in frozen.values())
    learned = [parameter for parameter in embedder.parameters() if parameter.requires_grad]
    assert len(learned) > 0 or method == "frozen"
    with autocast():
        out = embedder(pixels(8))
    if learned:
        out[:, 0].sum().backward()
        torch.optim.SGD(embedder.parameters(), lr=1.0).step()
    assert all(parameter.grad is None for parameter in frozen.values())
    assert_same(before, {name: parameter.detach() for name, parameter in frozen.items()})
    for parameter in learned:
        assert parameter.dtype == parameter.grad.dtype == torch.float32
        assert torch.isfinite(parameter.grad).all()
        assert parameter.grad.abs().sum() > 0


@every_method
@pytest.mark.parametrize("bf16", [False, True])
def test_embeddings_are_float32_of_unit_length(method, bf16):
    embedder = toy_embedder(method).eval()
    with torch.no_grad(), autocast(bf16):
        out = embedder(pixels(5))
    assert out.dtype == torch.float32
    assert out.shape == (5, embedder.embedding_size)
    torch.testing.assert_close(out.norm(dim=1), torch.ones(5), atol=1e-6, rtol=0)


@every_method
def test_bf16_is_near_float32(method):
    embedder = toy_embedder(method).eval()
    with torch.no_grad():
        exact = embedder(pixels(5))
        with autocast():
            near = embedder(pixels(5))
    assert not torch.equal(near, exact)  # else nothing was computed in bf16
    assert torch.nn.functional.cosine_similarity(near, exact).min() > 0.99


@every_method
def test_an_image_is_embedded_the_same_in_any_company(method):
    embedder = toy_embedder(method).eval()
    images = pixels(6)
    images[1:3] *= 30
    with torch.no_grad():
        together = embedder(images)
        alone = torch.cat([embedder(image[None]) for image in images])
        turned = embedder(images.flip(0)).flip(0)
    torch.testing.assert_close(alone, together, atol=3e-6, rtol=1e-5)
    torch.testing.assert_close(turned, together, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("name", BACKBONES)
def test_holding_is_autocast_to_the_bit_and_comes_back_to_the_bit(name):
    embedder = toy_embedder(name=name)
    before = state(embedder)
    results, gradients = [], []
    for held in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        embedder.train()
        with embedder.backbone.holding(held):
            dtypes = {p.dtype for p in embedder.backbone.parameters()}
            assert dtypes == ({torch.float32} if held == torch.float32 else {torch.float32, torch.bfloat16})
            assert all(p.dtype == torch.float32 for p in embedder.parameters() if p.requires_grad)
            with autocast():
                out = embedder(pixels(6))
            results.append(out)
            gradients.append(
                torch.autograd.grad(out[:, 0].sum(), [p for p in embedder.parameters() if p.requires_grad])
            )
        assert_same(before, state(embedder))
    assert torch.equal(*results)
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_holding_comes_back_after_an_exception_and_when_nested():
    backbone = toy_backbone(embed_dim=48, num_heads=3)
    before = state(backbone)
    with pytest.raises(ZeroDivisionError), backbone.holding(torch.bfloat16):
        raise ZeroDivisionError
    assert_same(before, state(backbone))
    with backbone.holding(torch.bfloat16):
        held = state(backbone)
        with backbone.holding(torch.bfloat16):
            assert_same(held, state(backbone))
        assert_same(held, state(backbone))
    assert_same(before, state(backbone))


def test_holding_in_two_threads_at_once_leaves_float32():
    """The second thread must not take the first one's bf16 weights for the originals."""
    backbone = toy_backbone(embed_dim=48, num_heads=3)
    before = state(backbone)
    first_in, first_may_leave, first_out = threading.Event(), threading.Event(), threading.Event()

    def first():
        with backbone.holding(torch.bfloat16):
            first_in.set()
            first_may_leave.wait(20)
        first_out.set()

    def second():
        first_in.wait(20)
        with backbone.holding(torch.bfloat16):
            first_may_leave.set()
            first_out.wait(20)

    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    # If the second has to wait for the first, nobody but this one tells the first to leave.
    first_may_leave.wait(0.2)
    first_may_leave.set()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert_same(before, state(backbone))


def test_an_embedder_can_be_copied():
    embedder = toy_embedder().eval()
    twin = copy.deepcopy(embedder)
    with torch.no_grad():
        assert torch.equal(twin(pixels()), embedder(pixels()))
        with twin.backbone.holding(torch.bfloat16):
            assert all(parameter.dtype == torch.float32 for parameter in embedder.parameters())
