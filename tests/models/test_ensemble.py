"""Several embedders as one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from toys import pixels, toy_backbone, toy_embedder

from unimetric.errors import UserError
from unimetric.geometry import Geometry, PoincareBall
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.ensemble import Ensemble


def member(seed: int, geometry: str | Geometry = "sphere", size: int = 16, image_size: int = 48) -> Embedder:
    torch.manual_seed(seed)
    return Embedder(toy_backbone(embed_dim=48, num_heads=3, image_size=image_size), "linear", None, size, geometry)


def images(count: int = 5) -> list[Image.Image]:
    random = np.random.default_rng(0)
    return [Image.fromarray(random.integers(0, 255, (50, 60, 3), np.uint8)) for _ in range(count)]


def test_on_the_sphere_it_is_the_average_made_unit_again() -> None:
    members = [member(seed) for seed in range(3)]
    parts = [one.encode(images(), precision="fp32").astype(np.float64) for one in members]
    average = np.mean(parts, axis=0)
    expected = average / np.linalg.norm(average, axis=1, keepdims=True)
    vectors = Ensemble(members).encode(images(), precision="fp32", batch_size=2)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_in_the_ball_it_is_the_poincare_mean() -> None:
    ball = PoincareBall(0.2, 1.7)
    members = [member(seed, ball) for seed in range(3)]
    parts = torch.stack([torch.from_numpy(one.encode(images(), precision="fp32")) for one in members])
    ensemble = Ensemble(members)
    np.testing.assert_allclose(ensemble.encode(images(), precision="fp32"), ball.mean(parts.double()), atol=1e-6)
    assert ensemble.geometry == ball
    with torch.no_grad():
        batch = pixels()
        torch.testing.assert_close(ensemble(batch), ball.mean(torch.stack([one(batch) for one in members])))


@pytest.mark.parametrize("geometry", ["sphere", "poincare"])
def test_an_ensemble_of_one_is_that_one(geometry: str) -> None:
    one = member(4, geometry)
    alone = one.encode(images(), precision="fp32")
    np.testing.assert_allclose(Ensemble([one]).encode(images(), precision="fp32"), alone, atol=1e-6)


def test_unreadable_images_are_skipped_or_named(tmp_path: Path) -> None:
    paths = []
    for number, image in enumerate(images(4)):
        paths.append(tmp_path / f"{number}.png")
        image.save(paths[-1])
    (tmp_path / "2.png").write_bytes(b"no image")
    batches = list(Ensemble([member(0), member(1)]).encode_batches(paths, batch_size=3, skip_unreadable=True))
    assert [vectors.shape for vectors, _ in batches] == [(2, 16), (1, 16)]
    assert [[error is None for error in errors] for _, errors in batches] == [[True, True, False], [True]]
    with pytest.raises(UserError, match=r"2\.png: not an image"):
        Ensemble([member(0), member(1)]).encode(paths)


def test_counts_and_description_cover_all_members() -> None:
    members = [toy_embedder("linear"), toy_embedder("puma", {"adapter_bottleneck": 4})]
    ensemble = Ensemble(members, ["birds", "cars"])
    counts = [one.trainable_parameter_count() for one in members]
    assert ensemble.trainable_parameter_count() == sum(counts)
    description = ensemble.description()
    assert [(entry["name"], entry["method"], entry["trainable_parameters"]) for entry in description["members"]] == [
        ("birds", "linear", counts[0]),
        ("cars", "puma", counts[1]),
    ]
    assert description["trainable_parameters"] == sum(counts)
    assert description["fingerprint"] == members[0].backbone.fingerprint
    assert Ensemble(members).encode([]).shape == (0, 16)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (member(1, size=8), "the embedding size of model 2 is 8, that of model 1 is 16"),
        (member(1, "poincare"), "the geometry of model 2 is PoincareBall(curvature=0.1, clip=2.3), that of model 1"),
        (member(1, image_size=64), "the preprocessing of model 2 is 64 px"),
    ],
    ids=["size", "geometry", "preprocessing"],
)
def test_members_that_do_not_fit_are_named(other: Embedder, words: str) -> None:
    with pytest.raises(UserError) as caught:
        Ensemble([member(0), other])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_balls_are_not_one() -> None:
    with pytest.raises(UserError, match="the geometry of b is"):
        Ensemble([member(0, PoincareBall(0.1)), member(1, PoincareBall(0.2))], ["a", "b"])


def test_no_members() -> None:
    with pytest.raises(UserError, match="at least one"):
        Ensemble([])


def test_from_folders(tmp_path: Path) -> None:
    for name in ("a", "b"):
        torch.manual_seed(ord(name))
        backbone = make_backbone("test_vit", weights="random", image_size=32)
        Embedder(backbone, "linear", {}, 8).save_pretrained(tmp_path / name)
    ensemble = Ensemble.from_pretrained([tmp_path / "a", tmp_path / "b"])
    parts = [Embedder.from_pretrained(tmp_path / name).encode(images(2), precision="fp32") for name in ("a", "b")]
    expected = parts[0] + parts[1]
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(ensemble.encode(images(2), precision="fp32"), expected, atol=1e-6)
    with pytest.raises(UserError, match=r"c.config\.json does not exist"):
        Ensemble.from_pretrained([tmp_path / "a", tmp_path / "c"])
