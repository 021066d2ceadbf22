"""The start from a linear discriminant analysis: the algebra against scikit-learn's, and the run that uses it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook

from toy_runs import assert_same_run, log_rows, options_file, removed, tensors, unimetric
from unimetric.losses import LOSSES, make_loss, place_proxies
from unimetric.training.discriminant import ClassStatistics, linear_discriminant


def statistics_of(features: np.ndarray, labels: np.ndarray, classes: int, parts: int = 3) -> ClassStatistics:
    statistics = ClassStatistics.empty(classes, features.shape[1])
    for rows in np.array_split(np.arange(len(features)), parts):
        statistics.add(torch.tensor(features[rows]), torch.tensor(labels[rows]))
    return statistics


def clusters(seed: int, classes: int = 6, images: int = 9, width: int = 5) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), images)
    noise = random.normal(size=(len(labels), width)) @ random.normal(size=(width, width))
    return 3 + random.normal(0, 2, (classes, width))[labels] + noise, labels


@pytest.mark.parametrize("size", [1, 3, 5])
def test_directions_are_those_of_scikit_learn(size: int) -> None:
    features, labels = clusters(0)
    found = linear_discriminant(statistics_of(features, labels, 6), size, shrinkage=0.0)
    expected = LinearDiscriminantAnalysis(solver="eigen").fit(features, labels).scalings_[:, :size].T
    # Each direction up to its sign, all up to one factor.
    factors = found.weight.numpy() / expected
    np.testing.assert_allclose(np.abs(factors), np.abs(factors).mean(), rtol=1e-6)
    assert all(len(set(np.sign(row))) == 1 for row in factors)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000), size=st.integers(1, 8), parts=st.integers(1, 7))
def test_size_centre_means_and_batches(seed: int, size: int, parts: int) -> None:
    features, labels = clusters(seed)
    found = linear_discriminant(statistics_of(features, labels, 8, parts), size)
    torch.testing.assert_close(found.weight.square().sum().item(), float(size))
    mapped = torch.tensor(features) @ found.weight.T + found.bias
    torch.testing.assert_close(mapped.mean(0), torch.zeros(size, dtype=torch.float64), atol=1e-9, rtol=0)
    for number in range(6):
        torch.testing.assert_close(found.class_means[number], mapped[labels == number].mean(0), atol=1e-9, rtol=1e-9)
    # Classes that no readable image is of, and directions that do not exist.
    assert not found.class_means[6:].any()
    assert not found.weight[5:].any()
    whole = linear_discriminant(statistics_of(features, labels, 8, 1), size)
    torch.testing.assert_close(found.class_means.abs(), whole.class_means.abs(), atol=1e-8, rtol=1e-6)


def test_fewer_features_than_dimensions_and_a_single_class_stay_finite() -> None:
    for classes in (1, 2):
        features, labels = clusters(1, classes=classes, images=2, width=40)
        found = linear_discriminant(statistics_of(features, labels, classes), 16)
        assert all(bool(value.isfinite().all()) for value in (found.weight, found.bias, found.class_means))


def with_proxies() -> list[str]:
    return [name for name, spec in LOSSES.items() if spec.geometry.name == "sphere" and spec.images_per_class is None]


@pytest.mark.parametrize("name", with_proxies())
def test_placed_proxies_make_their_own_class_the_best(name: str) -> None:
    loss = make_loss(name, 6, 16, {})
    directions = F.normalize(torch.randn(6, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    labels = torch.arange(6)
    before = loss(directions, labels)
    place_proxies(loss, directions)
    assert loss(directions, labels) < before
    wrong = torch.stack([loss(directions, labels.roll(shift)) for shift in range(1, 6)])
    assert (loss(directions, labels) < wrong).all()


def test_placing_leaves_losses_without_proxies_alone() -> None:
    for name, spec in LOSSES.items():
        if spec.images_per_class is not None:
            loss = make_loss(name, 6, 16, {})
            before = {key: value.clone() for key, value in loss.state_dict().items()}
            place_proxies(loss, torch.eye(16)[:6])
            torch.testing.assert_close(dict(loss.state_dict()), before, rtol=0, atol=0)


def run(sources: list[Path], folder: Path, name: str, **training: Any) -> Path:
    options = options_file(folder / f"{name}.yaml", training=training)
    assert unimetric("train", *sources, "--out", folder / name, "--config", options) == 0
    return folder / name


def test_a_run_that_starts_there_starts_with_a_lower_loss_and_is_repeatable(
    sources: list[Path], tmp_path: Path
) -> None:
    random = run(sources, tmp_path, "random", steps=1)
    one = run(sources, tmp_path, "one", steps=1, start="discriminant")
    assert log_rows(one)[0]["loss"] < log_rows(random)[0]["loss"]
    assert_same_run(one, run(sources, tmp_path, "two", steps=1, start="discriminant"))


def test_resuming_does_not_start_again(sources: list[Path], tmp_path: Path) -> None:
    whole = run(sources, tmp_path, "whole", epochs=2, start="discriminant")
    epochs = [row["step"] for row in log_rows(whole) if "validation_harmonic" not in row]
    cut = run(sources, tmp_path, "cut", epochs=2, start="discriminant")
    assert epochs
    before = tensors(cut / "checkpoint.safetensors")
    # Resumed at its end, nothing may move.
    assert unimetric("train", "--resume", cut) == 0
    after = tensors(cut / "checkpoint.safetensors")
    assert all(value.equal(after[name]) for name, value in before.items())
    assert_same_run(whole, cut)


def test_features_that_are_not_finite_are_refused(
    sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def overflow(module: torch.nn.Module, _: object, features: torch.Tensor) -> torch.Tensor | None:
        return features * float("inf") if isinstance(module, torch.nn.LayerNorm) else None

    options = options_file(tmp_path / "o.yaml", training={"start": "discriminant"})
    with removed(register_module_forward_hook(overflow)):
        assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 2
    assert "features of the train images are not finite: add --device.precision fp32" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_hyperbolic_losses_refuse_it(sources: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = options_file(tmp_path / "o.yaml", loss={"name": "hyperbolic"}, training={"start": "discriminant"})
    assert unimetric("train", *sources, "--out", tmp_path / "run", "--config", options) == 2
    error = capsys.readouterr().err
    assert "--training.start is 'discriminant'" in error
    assert error.count("\n") == 1
