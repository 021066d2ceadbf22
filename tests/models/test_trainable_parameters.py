"""Number of parameters that each method learns, against the paper's count and the formulas."""

import pytest
from toys import toy_embedder

from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.saving import WEIGHTS


def test_vit_small_at_the_papers_setting_learns_2_485_376_numbers_and_saves_under_12_megabytes(tmp_path):
    backbone = make_backbone("vit_small_patch16_224.augreg_in21k_ft_in1k", weights="random")
    embedder = Embedder(backbone)
    assert embedder.trainable_parameter_count() == 2_485_376
    embedder.save_pretrained(tmp_path)
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 12e6
    # All of it is in the file: four bytes each.
    assert (tmp_path / WEIGHTS).stat().st_size > 4 * 2_485_376


@pytest.mark.parametrize(
    ("rank", "prompts", "length", "size"), [(4, 3, 2, 16), (0, 5, 1, 8), (7, 0, 3, 8), (0, 0, 1, 24)]
)
@pytest.mark.parametrize("depth", [1, 3])
def test_puma_counts_follow_the_formula(rank, prompts, length, size, depth):
    options = {"adapter_bottleneck": rank, "prompts": prompts, "prompt_length": length}
    embedder = toy_embedder("puma", options, size, depth=depth)
    width = 48
    adapters = depth * 2 * 2 * width * rank
    pool = prompts * length * width + 2 * prompts * width
    assert embedder.trainable_parameter_count() == adapters + pool + width * size + size


def test_linear_learns_the_head_and_frozen_nothing():
    assert toy_embedder("linear", embedding_size=20).trainable_parameter_count() == 48 * 20 + 20
    frozen = toy_embedder("frozen", embedding_size=20)
    assert frozen.trainable_parameter_count() == 0
    assert frozen.embedding_size == 48
