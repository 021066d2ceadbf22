"""The inference form computes what the embedder computes, leaves it alone, and has nothing left to fold."""

import copy
import gc
import weakref

import pytest
import torch
from test_backbone_families import FAMILIES
from test_method_battery import CASES
from torch.nn import functional as F
from toys import pixels, shake, toy_backbone, toy_embedder

from unimetric.errors import UserError
from unimetric.geometry import PoincareBall
from unimetric.models.embedder import Embedder
from unimetric.models.inference import fuse
from unimetric.models.network import learned_weights

ALL_CASES = CASES | {
    "frozen": ("frozen", {}),
    "lora on all": ("lora", {"rank": 3, "targets": "all", "alpha": 7.0}),
    "puma, another factor": ("puma", {"adapter_bottleneck": 4, "prompts": 3, "prompt_length": 2, "adapter_scale": 0.7}),
}
every_case = pytest.mark.parametrize("case", sorted(ALL_CASES))


def embedder_of(case, family, **more):
    name, patch, options = FAMILIES[family]
    return toy_embedder(*ALL_CASES[case], name=name, image_size=3 * patch, **options, **more).eval()


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def pairs():
    """Every case with a third of the families, and every family with a third of the cases; others are soak tests."""
    for row, case in enumerate(sorted(ALL_CASES)):
        for column, family in enumerate(FAMILIES):
            yield pytest.param(case, family, marks=[] if (row + column) % 3 == 0 else pytest.mark.soak)


@pytest.mark.parametrize(("case", "family"), list(pairs()))
def test_it_computes_what_the_embedder_computes(case, family):
    """In float32 to a hundred-thousandth; in bf16 it keeps the direction."""
    embedder = embedder_of(case, family)
    images = pixels(3, embedder.backbone.image_size)
    with torch.no_grad():
        exact = embedder(images)
        assert relative(fuse(embedder, "fp32")(images), exact) < 1e-5
        vectors = fuse(embedder, "bf16")(images)
    assert vectors.dtype == torch.float32
    assert not torch.equal(vectors, exact)
    assert F.cosine_similarity(vectors, exact).min() >= 0.999


@every_case
def test_the_embedder_stays_as_it_is_and_what_it_learns_later_does_not_reach_the_form(case):
    for precision in ("fp32", "bf16"):
        embedder = embedder_of(case, "dinov2 with LayerScale").train()
        before = {name: value.clone() for name, value in embedder.state_dict().items()}
        wants_gradient = {name for name, parameter in embedder.named_parameters() if parameter.requires_grad}
        images = pixels(2, embedder.backbone.image_size)
        form = fuse(embedder, precision)
        with torch.no_grad():
            vectors = form(images)
            assert embedder.training
            assert {name for name, p in embedder.named_parameters() if p.requires_grad} == wants_gradient
            after = embedder.state_dict()
            assert before.keys() == after.keys()
            assert all(torch.equal(value, after[name]) for name, value in before.items())
            for value in learned_weights(embedder).values():
                value.add_(1.0)
            assert torch.equal(form(images), vectors)
        assert not any(parameter.requires_grad for parameter in form.parameters())


@every_case
def test_the_embedder_trains_on_as_if_there_were_no_form(case):
    def step(with_form):
        embedder = embedder_of(case, "eva02 with rope").train()
        learned = [p for p in embedder.parameters() if p.requires_grad]
        for _ in range(2 if learned else 0):
            if with_form:
                fuse(embedder, "bf16")
            torch.manual_seed(4)
            embedder(pixels(4, 42))[:, 0].sum().backward()
            torch.optim.SGD(learned, lr=0.1).step()
        return embedder.state_dict()

    with_form, without = step(True), step(False)
    assert all(torch.equal(value, with_form[name]) for name, value in without.items())


@pytest.mark.parametrize("held", [torch.float32, torch.bfloat16])
def test_while_a_training_holds_the_frozen_weights_in_bf16(held):
    embedder = embedder_of("puma", "augreg")
    images = pixels(3, 48)
    with torch.no_grad(), embedder.backbone.holding(held):
        form = fuse(embedder, "fp32")
    assert all(parameter.dtype == torch.float32 for parameter in form.parameters())
    with torch.no_grad():
        assert relative(form(images), embedder(images)) < 1e-5


def test_nothing_is_left_to_scale_and_products_are_held_in_bf16():
    form = fuse(embedder_of("lora on all", "dinov2 with LayerScale"), "bf16")
    assert not any("lora" in name or "gamma" in name for name, _ in form.named_parameters())
    for block in form.backbone.vit.blocks:
        assert {p.dtype for layer in (block.attn, block.mlp) for p in layer.parameters()} == {torch.bfloat16}
        assert block.norm1.weight.dtype == torch.float32


def test_points_of_the_ball():
    torch.manual_seed(2)
    backbone = toy_backbone(embed_dim=48, num_heads=3)
    embedder = Embedder(backbone, "puma", {"adapter_bottleneck": 4, "prompts": 3}, 16, PoincareBall(0.3, 1.7)).eval()
    shake(embedder)
    with torch.no_grad():
        expected = embedder(pixels(4))
        assert relative(fuse(embedder, "fp32")(pixels(4)), expected) < 1e-5
        assert F.cosine_similarity(fuse(embedder, "bf16")(pixels(4)), expected).min() >= 0.999


@pytest.mark.parametrize("pool", ["token", "avg", "token+avg"])
def test_every_pooling(pool):
    embedder = toy_embedder(name="vit_small_patch14_reg4_dinov2", image_size=42, pool=pool).eval()
    with torch.no_grad():
        assert relative(fuse(embedder, "fp32")(pixels(3, 42)), embedder(pixels(3, 42))) < 1e-5


def test_encoding_says_its_form_once_and_a_callers_autocast_changes_nothing(caplog):
    embedder = toy_embedder().eval()
    image = torch.randint(0, 256, (50, 60, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    assert embedder.encoded_in is None
    with caplog.at_level("INFO", logger="unimetric"):
        vectors = embedder.encode([image], precision="fp32")
        with torch.autocast("cpu", torch.bfloat16):
            assert (embedder.encode([image], precision="fp32") == vectors).all()
    assert [record.getMessage() for record in caplog.records] == ["encoding in the form: fused, fp32 products, cpu"]
    assert embedder.encoded_in == "fused, fp32 products, cpu" == fuse(embedder, "fp32").describe()
    embedder.encode([image], precision="bf16")
    assert embedder.encoded_in == "fused, bf16 products, cpu"


@every_case
def test_the_form_is_made_again_only_when_the_model_is_another(case):
    embedder = embedder_of(case, "augreg")
    form = embedder.inference_form("fp32")
    assert embedder.inference_form("fp32") is form
    assert embedder.inference_form("bf16") is not form
    form = embedder.inference_form("fp32")
    for change in (
        lambda values: values.data.flatten()[-1:].add_(0.5),  # not counted as a write by torch
        lambda values: values.copy_(values.roll(1)),
    ):
        for values in [*learned_weights(embedder).values()][-1:]:
            with torch.no_grad():
                change(values)
            newer = embedder.inference_form("fp32")
            assert newer is not form
            form = newer
    embedder.backbone.resize(embedder.backbone.image_size * 2)
    assert embedder.inference_form("fp32") is not form
    with torch.no_grad():
        drawn = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (2, 3, *[embedder.backbone.image_size] * 2), generator=drawn).to(torch.uint8)
        vectors = torch.from_numpy(embedder.inference_form("fp32").embed_pixels(list(images)))
        assert relative(vectors, embedder(embedder.transform.normalise(images))) < 1e-5


def test_a_copy_makes_its_own_form_and_training_lets_go_of_it():
    embedder = embedder_of("puma", "augreg")
    form = weakref.ref(embedder.inference_form("fp32"))
    assert copy.deepcopy(embedder).inference_form("fp32") is not form()
    assert form() is not None
    embedder.train()
    gc.collect()
    assert form() is None


def test_the_last_block_computes_the_class_token_alone_where_it_alone_is_pooled():
    def tokens_in_last_mlp(family):
        name, patch, options = FAMILIES[family]
        embedder = toy_embedder("vpt-deep", {"prompt_length": 2}, name=name, image_size=3 * patch, **options).eval()
        form, seen = fuse(embedder, "fp32"), []
        form.backbone.vit.blocks[-1].mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
        with torch.no_grad():
            form(pixels(2, 3 * patch))
        return seen

    assert tokens_in_last_mlp("augreg") == tokens_in_last_mlp("deit3, class token without position") == [1]
    assert tokens_in_last_mlp("siglip, average pooling") == [11]
    assert tokens_in_last_mlp("eva02 with rope") == [12]


def test_an_unknown_precision_is_refused():
    with pytest.raises(UserError, match=r"precision is 'int4'.*valid: auto, bf16, fp32"):
        fuse(toy_embedder(), "int4")
