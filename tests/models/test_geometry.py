"""The sphere and the Poincaré ball: the formulas of the papers as oracles, and embedders that use them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from toys import pixels, toy_backbone, toy_embedder

from properties import examples
from unimetric.config import RunConfig
from unimetric.errors import UserError
from unimetric.geometry import PoincareBall, Sphere, make_geometry
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.setup import build_embedder, check_options

BALLS = [PoincareBall(), PoincareBall(1.0, 1.5), PoincareBall(0.01, 50.0)]
every_ball = pytest.mark.parametrize("ball", BALLS, ids=str)


def some_points(ball: PoincareBall, count: int = 40, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return ball.embed(torch.randn(count, 5, generator=generator, dtype=torch.float64) * 2)


@every_ball
def test_embedding_is_the_clipped_exponential_map(ball: PoincareBall) -> None:
    features = torch.tensor([[0.3, -0.4], [30.0, 40.0], [0.0, 0.0]], dtype=torch.float64)
    root = math.sqrt(ball.curvature)
    for feature, point in zip(features.tolist(), ball.embed(features).tolist(), strict=True):
        length = math.hypot(*feature)
        kept = min(length, ball.clip)
        norm = min(math.tanh(root * kept) / root, (1 - 1e-5) / root)
        assert point == pytest.approx([norm * entry / (length or 1) for entry in feature], rel=1e-9, abs=1e-12)


def test_the_papers_constants() -> None:
    ball = PoincareBall()
    assert (ball.curvature, ball.clip) == (0.1, 2.3)
    # tanh(sqrt(0.1) * 2.3) / sqrt(0.1)
    assert ball.largest_norm == pytest.approx(1.9651, abs=1e-4)


@every_ball
def test_distance_to_the_centre_is_twice_the_length_of_the_clipped_feature(ball: PoincareBall) -> None:
    features = torch.tensor([[0.1, 0.0], [0.0, 1.2]], dtype=torch.float64)
    distances = ball.distances(ball.embed(features), torch.zeros(1, 2, dtype=torch.float64))
    assert distances[:, 0].tolist() == pytest.approx([0.2, 2.4], rel=1e-9)


@every_ball
def test_distance_is_a_metric_and_agrees_with_the_hyperboloid(ball: PoincareBall) -> None:
    points = some_points(ball)
    distances = ball.distances(points, points)
    assert torch.equal(distances.diagonal(), torch.zeros(len(points), dtype=torch.float64))
    torch.testing.assert_close(distances, distances.T)
    assert (distances[:, None, :] <= distances[:, :, None] + distances[None] + 1e-9).all()
    lifted = ball.to_hyperboloid(points)
    signs = torch.tensor([1.0] + [-1.0] * 5, dtype=torch.float64)
    torch.testing.assert_close((lifted * lifted * signs).sum(dim=1), torch.ones(len(points), dtype=torch.float64))
    cosh = (lifted * signs) @ lifted.T
    torch.testing.assert_close(cosh, torch.cosh(math.sqrt(ball.curvature) * distances), rtol=1e-8, atol=1e-8)


@settings(max_examples=examples(50), deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 6),
    ball=st.sampled_from(BALLS),
)
def test_mean_is_the_einstein_midpoint(seed: int, count: int, ball: PoincareBall) -> None:
    """By way of Klein's model, as Khrulkov et al. write it."""
    points = some_points(ball, count, seed)
    c = ball.curvature
    klein = 2 * points / (1 + c * points.square().sum(dim=1, keepdim=True))
    factors = 1 / (1 - c * klein.square().sum(dim=1, keepdim=True)).sqrt()
    middle = (factors * klein).sum(dim=0) / factors.sum()
    expected = middle / (1 + (1 - c * middle.square().sum()).sqrt())
    torch.testing.assert_close(ball.mean(points[:, None])[0], expected, rtol=1e-7, atol=1e-9)


@every_ball
def test_mean_of_one_and_of_two(ball: PoincareBall) -> None:
    one, other = some_points(ball, 20, 1), some_points(ball, 20, 2)
    torch.testing.assert_close(ball.mean(one[None]), one)
    middle = ball.mean(torch.stack([one, other]))
    gaps = [ball.distances(middle, end).diagonal() for end in (one, other)]
    torch.testing.assert_close(gaps[0], gaps[1], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(gaps[0] * 2, ball.distances(one, other).diagonal(), rtol=1e-6, atol=1e-7)


def test_mean_direction() -> None:
    vectors = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]], [[0.0, 1.0]]])
    assert Sphere().mean(vectors)[0].tolist() == pytest.approx([1 / 5**0.5, 2 / 5**0.5])


@pytest.mark.parametrize("ball", [PoincareBall(), PoincareBall(clip=1e6), PoincareBall(1e6, 1e6)], ids=str)
def test_float32_points_stay_inside(ball: PoincareBall) -> None:
    features = torch.tensor([[1e30, 1e-30], [-1e4, 1e4], [1e-30, 0.0]])
    points = ball.embed(features).double()
    assert (ball.curvature * points.square().sum(dim=1) < 1).all()
    assert torch.isfinite(ball.distances(points, points)).all()


@pytest.mark.parametrize(
    ("name", "constants", "message"),
    [
        ("ball", {}, "geometry is 'ball'; valid: poincare, sphere"),
        ("poincare", {"curvature": 0}, "geometry poincare: curvature must be from 1e-06 to 1e+06, got 0"),
        ("poincare", {"clip": math.nan}, "geometry poincare: clip must be from 1e-06 to 1e+06, got nan"),
    ],
)
def test_bad_geometries_are_named(name: str, constants: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        make_geometry(name, **constants)
    assert str(caught.value) == message


def test_an_embedder_on_the_ball_shares_all_but_the_last_step() -> None:
    sphere = toy_embedder("linear")
    torch.manual_seed(2)
    ball = Embedder(toy_backbone(embed_dim=48, num_heads=3), "linear", None, 16, "poincare")
    ball.load_state_dict(sphere.state_dict())
    images = pixels()
    with torch.no_grad():
        points, vectors = ball(images), sphere(images)
        assert sphere.head is not None
        expected = PoincareBall().embed(sphere.head(sphere.features(images)))
    torch.testing.assert_close(points, expected)
    torch.testing.assert_close(torch.nn.functional.normalize(points), vectors)
    assert (points.norm(dim=1) <= PoincareBall().largest_norm + 1e-6).all()


def small_embedder(geometry: str | PoincareBall) -> Embedder:
    backbone = make_backbone("test_vit", weights="random", image_size=32)
    return Embedder(backbone, "linear", {}, 8, geometry)


def test_the_geometry_is_saved_restored_and_told(tmp_path: Path) -> None:
    ball = PoincareBall(curvature=0.5, clip=1.25)
    embedder = small_embedder(ball)
    embedder.save_pretrained(tmp_path)
    loaded = Embedder.from_pretrained(tmp_path)
    assert loaded.geometry == ball
    images = pixels(2, 32)
    with torch.no_grad():
        assert torch.equal(loaded(images), embedder.eval()(images))
    card = (tmp_path / "README.md").read_text()
    assert "Poincaré ball, curvature -0.5, features clipped to length 1.25" in card
    assert "unit length" not in card


@pytest.mark.parametrize(
    ("geometry", "words"),
    [
        ("sphere", "geometry is 'sphere', not a dict"),
        (None, "geometry is None, not a dict"),
        ({}, "lacks geometry.name"),
        ({"name": "torus"}, "geometry is 'torus'"),
        ({"name": "poincare", "curvature": -1, "clip": 2.3}, "curvature must be from"),
        ({"name": "poincare", "curvature": "1", "clip": 2.3}, "geometry poincare: "),
        ({"name": "sphere", "radius": 2}, "radius"),
    ],
)
def test_a_damaged_geometry_is_named(geometry: object, words: str, tmp_path: Path) -> None:
    small_embedder("sphere").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"geometry": geometry}))
    with pytest.raises(UserError) as caught:
        Embedder.from_pretrained(tmp_path)
    assert str(tmp_path / "config.json") in str(caught.value)
    assert words in str(caught.value)


def configured(loss: str, geometry: str, method: str = "linear", **options: float) -> RunConfig:
    base = RunConfig()
    model = replace(
        base.model,
        backbone="vit_tiny_patch16_224",
        weights="random",
        image_size=32,
        method=method,
        geometry=geometry,  # type: ignore[arg-type]
    )
    return replace(base, model=model, loss=replace(base.loss, name=loss, options=options))


@pytest.mark.parametrize("geometry", ["auto", "poincare"])
def test_the_loss_says_where_embeddings_lie(geometry: str) -> None:
    config = configured("hyperbolic", geometry, curvature=0.3)
    check_options(config)
    assert build_embedder(config).geometry == PoincareBall(curvature=0.3)
    assert build_embedder(configured("arcface", "auto")).geometry == Sphere()
    assert build_embedder(configured("hyperbolic", "auto", "frozen")).geometry == Sphere()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (configured("hyperbolic", "sphere"), "--model.geometry is 'sphere', but --loss.name hyperbolic"),
        (configured("arcface", "poincare"), "use auto, or a loss for poincare: hyperbolic"),
        (configured("hyperbolic", "poincare", "frozen"), "method frozen trains no head"),
    ],
)
def test_a_geometry_against_the_loss_is_refused(config: RunConfig, words: str) -> None:
    for check in (check_options, build_embedder):
        with pytest.raises(UserError, match=r"^--model\.geometry is ") as caught:
            check(config)  # type: ignore[operator]
        assert words in str(caught.value)


def test_without_a_head_there_is_no_ball() -> None:
    with pytest.raises(UserError, match="method frozen has no head"):
        Embedder(toy_backbone(), "frozen", None, geometry="poincare")
