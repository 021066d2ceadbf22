"""Code paths of a CUDA device where there is none: mixed devices, forgotten ``.cpu()``, types under autocast.

`benchmarks/gpu.py` is the check on a real card.
"""

from __future__ import annotations

import copy
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from test_method_battery import CASES, FAMILIES
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from toys import pixels, toy_embedder

from pretended_cuda import CUDA, PretendedCuda
from unimetric.evaluation import evaluate
from unimetric.losses import LOSSES, CurricularFace, make_loss
from unimetric.models.ensemble import Ensemble
from unimetric.models.inference import fuse
from unimetric.models.petl.noise import drawing_for
from unimetric.training.optimiser import step_rows

COMBINATIONS = [(case, "plain") for case in sorted(CASES)] + [
    (case, family) for case in ("puma", "lora") for family in sorted(FAMILIES) if family != "plain"
]
every_combination = pytest.mark.parametrize(("case", "family"), COMBINATIONS)


def made(case: str, family: str = "plain", **options: Any) -> Any:
    method, method_options = CASES[case]
    return toy_embedder(method, method_options, **FAMILIES[family], **options)


class TestThePretendedDevice:
    """It refuses what a GPU refuses, and nothing else."""

    @pytest.mark.parametrize(
        "mix",
        [
            lambda here, there: here + there,
            lambda here, there: torch.cat([here, there]),
            lambda here, there: there.index_select(0, torch.tensor([0])),
            lambda here, there: here[torch.tensor([0], device="cuda")],
            lambda here, there: nn.functional.linear(there, here),
            lambda here, there: there.sum() + here,
            lambda here, there: torch.randn(2, device="cuda", generator=torch.Generator()),
            lambda here, there: np.asarray(there),
            lambda here, there: there.numpy(),
            lambda here, there: nn.Linear(2, 2)(there),
        ],
    )
    def test_it_refuses(self, mix: Any) -> None:
        with PretendedCuda(), pytest.raises((RuntimeError, TypeError), match=r"cuda|same device"):
            mix(torch.ones(2, 2), torch.ones(2, 2, device="cuda"))

    def test_it_allows(self) -> None:
        with PretendedCuda():
            here, there = torch.ones(2, 2), torch.full((2, 2), 3.0, device="cuda")
            for value in (
                there + torch.tensor(2.0),
                there[torch.tensor([0])],
                here.to("cuda") + there,
                there.T,
                there * 2,
            ):
                assert value.device == CUDA
            there.copy_(here)
            assert torch.equal(there.cpu(), here)
            assert there.cpu().numpy().tolist() == [[1, 1], [1, 1]]
            layer = nn.Linear(2, 2).to("cuda")
            layer(there).sum().backward()
            assert layer.weight.grad is not None
            assert layer.weight.device == CUDA


@every_combination
def test_training_and_embedding_stay_on_the_device(case: str, family: str) -> None:
    with PretendedCuda():
        embedder = made(case, family)
        side = embedder.backbone.image_size
        images = [Image.fromarray(np.full((side, side, 3), shade, np.uint8)) for shade in (0, 90, 255)]
        expected = embedder.inference_form("fp32").embed_pixels([embedder.transform.crop(image) for image in images])
        embedder.to("cuda")
        assert {tensor.device for tensor in (*embedder.parameters(), *embedder.buffers())} == {CUDA}
        # The same values as on the CPU, where the form computes each image apart.
        np.testing.assert_allclose(embedder.encode(images, precision="fp32"), expected, atol=2e-5)
        loss = make_loss("curricularface", 4, embedder.embedding_size).to("cuda")
        labels, own = torch.tensor([0, 1, 3], device="cuda"), torch.arange(3)
        batch = pixels(3, side).to("cuda")
        with drawing_for(own, 3):
            embeddings = embedder.train()(batch)
        assert embeddings.device == CUDA
        loss(embeddings, labels).backward()
        learned = [parameter for parameter in embedder.parameters() if parameter.requires_grad]
        assert any(parameter.grad is not None for parameter in learned)
        assert all(parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in learned)
        weights = embedder.eval().prompt_weights(batch)
        assert weights is None or weights.device == CUDA
        features = embedder.pixel_features([embedder.transform.crop(image) for image in images], torch.float32)
        assert features.device == CUDA


def test_weights_on_the_device_are_saved(tmp_path: Any) -> None:
    with PretendedCuda():
        embedder = made("puma", embedding_size=8)
        before = embedder.config()
        assert embedder.to("cuda").config() == before


def test_an_ensemble_on_the_device() -> None:
    with PretendedCuda():
        members = [made("puma"), made("linear")]
        images = [Image.new("RGB", (48, 48), colour) for colour in ("red", "blue")]
        expected = Ensemble(members).encode(images, precision="fp32")
        ensemble = Ensemble([member.to("cuda") for member in members])
        np.testing.assert_allclose(ensemble.encode(images, precision="fp32"), expected, atol=2e-5)


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_losses_on_the_device(name: str) -> None:
    with PretendedCuda():
        torch.manual_seed(0)
        loss = make_loss(name, 5, 8)
        labels = torch.arange(5).repeat_interleave(4)
        embeddings = torch.randn(20, 8) / 4

        def value_on(device: str) -> Tensor:
            torch.manual_seed(1)
            leaf = embeddings.to(device).requires_grad_()
            value: Tensor = copy.deepcopy(loss).to(device)(leaf, labels.to(device))
            (gradient,) = torch.autograd.grad(value, [leaf])
            return torch.cat([value.cpu().reshape(1), gradient.cpu().flatten()])

        torch.testing.assert_close(value_on("cuda"), value_on("cpu"))
        if hasattr(loss, "place_proxies"):
            for device in ("cpu", "cuda"):
                loss.to("cuda").place_proxies(torch.eye(5, 8, device=device))


def test_a_loss_that_draws_classes_on_the_device() -> None:
    with PretendedCuda():
        loss = CurricularFace(9, 8, sampled_classes=3).to("cuda").train()
        optimiser = torch.optim.AdamW(loss.parameters(), lr=0.1)
        before = loss.proxies.detach().clone()
        loss(torch.randn(4, 8, device="cuda"), torch.tensor([0, 0, 2, 5], device="cuda")).backward()
        step_rows(optimiser, loss.proxies, loss.drawn)
        moved = (loss.proxies != before).any(dim=1)
        assert moved.sum() == len(loss.drawn) < 9


@pytest.mark.parametrize("distance", ["cosine", "euclidean", "poincare"])
def test_evaluation_on_the_device_gives_the_same_numbers(distance: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(60, 6)).astype(np.float32) * 0.2
    rows[:5] = rows[5:10]  # ties
    labels, datasets = rng.integers(0, 6, 60).tolist(), rng.choice(["a", "b"], 60).tolist()
    options: dict[str, Any] = {"ks": (1, 5), "distance": distance, "resamples": 20}
    if distance == "poincare":
        options["curvature"] = 0.1
    reports = []
    for device in ("cpu", "cuda"):
        with PretendedCuda():
            reports.append(evaluate(torch.from_numpy(rows.copy()), labels, datasets, device=device, **options))
    assert reports[0].to_dict() == reports[1].to_dict()
    with PretendedCuda():
        there = torch.from_numpy(rows.copy()).to("cuda")
        assert evaluate(there, labels, datasets, **options).to_dict() == reports[0].to_dict()


@pytest.mark.skipif(torch.__version__.startswith("2.7."), reason="torch 2.7 aborts in a convolution of fake tensors")
@pytest.mark.parametrize("case", ["puma", "lora", "vpt-deep", "full"])
def test_types_under_autocast_on_fake_tensors(case: str) -> None:
    """PyTorch's fake tensors have no values, but the types that CUDA's autocast gives."""
    embedder = made(case)
    form = fuse(embedder, "bf16")
    cuda = {"is_bf16_supported": lambda including_emulation=True: True}
    with (
        mock.patch.multiple(torch.cuda, **cuda),
        mock.patch("torch.amp.autocast_mode.torch.cuda.amp.common", create=True) as amp,
    ):
        amp.amp_definitely_not_available = lambda: False
        with FakeTensorMode(allow_non_fake_inputs=True, shape_env=ShapeEnv()):
            images = torch.zeros(3, 3, embedder.backbone.image_size, embedder.backbone.image_size, device="cuda")
            for network in (moved(embedder).eval(), moved(embedder).train()):
                with torch.autocast("cuda", torch.bfloat16):
                    vectors = network(images)
                    tokens = network.backbone.patch_tokens(images)
                assert (vectors.device.type, vectors.dtype, vectors.shape) == ("cuda", torch.float32, (3, 16))
                assert tokens.dtype == torch.bfloat16
            vectors = moved(form)(images)
            assert (vectors.device.type, vectors.dtype, vectors.shape) == ("cuda", torch.float32, (3, 16))


def moved(module: Any) -> Any:
    """A copy of a module whose parameters and buffers are fake tensors on a GPU."""

    def fake(tensor: Tensor) -> Tensor:
        twin = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cuda")
        return nn.Parameter(twin, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else twin

    twin = copy.deepcopy(module, {id(tensor): fake(tensor) for tensor in (*module.parameters(), *module.buffers())})
    twin.backbone._choose_attention()
    return twin
