"""The inference form computes what the embedder computes, leaves it alone, and has nothing left to fold."""

import pytest
import torch
from test_backbone_families import FAMILIES
from test_method_battery import CASES
from toys import pixels, shake, toy_backbone, toy_embedder
from torch.nn import functional as F

from unimetric.errors import UserError
from unimetric.geometry import PoincareBall
from unimetric.models.embedder import Embedder
from unimetric.models.fused import fuse

ALL_CASES = CASES | {
    "frozen": ("frozen", {}),
    "lora on all": ("lora", {"rank": 3, "targets": "all", "alpha": 7.0}),
    "puma, another factor": ("puma", {"adapter_bottleneck": 4, "prompts": 3, "prompt_length": 2, "adapter_scale": 0.7}),
}
every_case = pytest.mark.parametrize("case", sorted(ALL_CASES))
every_family = pytest.mark.parametrize("family", FAMILIES)


def embedder_of(case, family, **more):
    name, patch, options = FAMILIES[family]
    return toy_embedder(*ALL_CASES[case], name=name, image_size=3 * patch, **options, **more).eval()


def relative(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


@every_family
@every_case
def test_float32_agrees_to_a_hundred_thousandth(case, family):
    embedder = embedder_of(case, family)
    images = pixels(3, embedder.backbone.image_size)
    with torch.no_grad():
        form = fuse(embedder, "fp32")
        assert relative(form.features(images), embedder.features(images)) < 1e-5
        assert relative(form(images), embedder(images)) < 1e-5


@every_family
@every_case
def test_bf16_keeps_the_direction(case, family):
    embedder = embedder_of(case, family)
    images = pixels(3, embedder.backbone.image_size)
    with torch.no_grad():
        form = fuse(embedder, "bf16")
        vectors, exact = form(images), embedder(images)
    assert vectors.dtype == torch.float32
    assert not torch.equal(vectors, exact)
    assert F.cosine_similarity(vectors, exact).min() >= 0.999
