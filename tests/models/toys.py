"""Backbones of real families, two blocks deep and with random weights, so that a test takes milliseconds."""

import timm
import torch

from unimetric.models.backbone import Backbone
from unimetric.models.embedder import Embedder

TINY = "vit_tiny_patch16_224"
"""A backbone that `make_backbone` knows by name, for what goes through names: saving and loading."""


def toy_backbone(name=TINY, image_size=48, pool="auto", depth=2, **options):
    """A backbone of the family of ``name`` in which no parameter has a value that would hide a mistake."""
    vit = timm.create_model(name, num_classes=0, dynamic_img_size=False, depth=depth, **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in vit.parameters():
            # Fresh position embeddings, LayerScale and norms are 0, tiny or 1: a forgotten one would not show.
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return Backbone(name, vit, weights="random", image_size=image_size, pool=pool)


def toy_embedder(method="puma", options=None, embedding_size=16, seed=2, **backbone_options):
    """An embedder on a small `toy_backbone` whose learned weights all differ from their start."""
    backbone_options = {"embed_dim": 48, "num_heads": 3} | backbone_options
    torch.manual_seed(seed)
    embedder = Embedder(toy_backbone(**backbone_options), method, options, embedding_size)
    shake(embedder, seed)
    return embedder


def shake(embedder, seed=3):
    """Move every learned weight, the zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in (p for p in embedder.parameters() if p.requires_grad):
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def pixels(count=3, size=48, seed=0):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))
