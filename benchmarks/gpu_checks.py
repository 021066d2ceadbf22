"""Checks of a device against the CPU, for `gpu.py`."""

from __future__ import annotations

import copy
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gpu_report import Report, Sizes
from unimetric.evaluation import evaluate
from unimetric.losses import LOSSES, make_loss
from unimetric.models.embedder import Embedder
from unimetric.models.petl import METHODS
from unimetric.models.petl.noise import drawing_for

CPU = torch.device("cpu")
CLASSES = 16


def vectors(report: Report, sizes: Sizes) -> None:
    """Compare the vectors of every method with the CPU's."""
    report.section("Vectors against the CPU's float32", "method", "", "lowest cosine in float32, bf16")
    images = sizes.images(sizes.batch)
    for method in sorted(METHODS):
        embedder = sizes.embedder(method)
        expected = embedder.inference_form("fp32").embed_pixels(images)
        embedder.to(sizes.device)
        lowest = []
        for precision in ("fp32", "bf16"):
            found = embedder.inference_form(precision).embed_pixels(images)
            again = embedder.inference_form(precision).embed_pixels(images[:3])
            lowest.append(float((found * expected).sum(axis=1).min()))
            if not np.allclose(again, found[:3], atol=1e-2):
                lowest[-1] = float("nan")
        passed = lowest[0] > 0.9999 and lowest[1] > 0.99
        report.check(method, passed, ", ".join(f"{value:.6f}" for value in lowest))


def steps(report: Report, sizes: Sizes) -> None:
    """Compare the loss and the gradients of a training step with the CPU's."""
    report.section(
        "A training step against the CPU's", "method", "", "loss there and here, relative error of gradients"
    )
    for method in sorted(name for name in METHODS if name != "frozen"):
        embedder = sizes.embedder(method)
        loss = make_loss("curricularface", CLASSES, embedder.embedding_size)
        expected, expected_gradients = one_step(embedder, loss, sizes, CPU)
        found, gradients = one_step(embedder, loss, sizes, sizes.device)
        error = relative_error(gradients, expected_gradients)
        close = abs(found - expected) <= 1e-3 * abs(expected)
        # A number that is not finite makes one of the comparisons False.
        report.check(method, close and error < 1e-2, f"{found:.5f}, {expected:.5f}, {error:.1e}")


def one_step(
    embedder: Embedder, loss: nn.Module, sizes: Sizes, device: torch.device
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients of a step in float32 of fixed images; adapters are dropped for the same images everywhere."""
    twin, criterion = copy.deepcopy(embedder).to(device).train(), copy.deepcopy(loss).to(device).train()
    count = min(8, sizes.batch)
    images = embedder.transform.normalise(torch.stack(sizes.images(count))).to(device)
    labels = (torch.arange(count) % CLASSES).to(device)
    torch.manual_seed(0)
    with drawing_for(torch.arange(count), count), twin.backbone.holding(torch.float32):
        embeddings = twin(images)
    total: Tensor = criterion(embeddings, labels)
    if (penalty := twin.method.penalty()) is not None:
        total = total + penalty
    total.backward()
    named = (*twin.named_parameters(prefix="model"), *criterion.named_parameters(prefix="loss"))
    return total.item(), {name: parameter.grad for name, parameter in named if parameter.grad is not None}


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The length of the difference of all gradients, over that of the expected ones."""
    difference = sum(float((found[name].cpu() - value).square().sum()) for name, value in expected.items())
    return float((difference / sum(float(value.square().sum()) for value in expected.values())) ** 0.5)


def losses(report: Report, sizes: Sizes) -> None:
    """Compare every loss and its gradient with the CPU's."""
    report.section("Losses against the CPU's", "loss", "", "value there and here, relative error of gradients")
    labels = torch.arange(CLASSES).repeat_interleave(4)
    embeddings = torch.randn(len(labels), 32, generator=torch.Generator().manual_seed(3)) / 8
    for name in sorted(LOSSES):
        torch.manual_seed(4)
        loss = make_loss(name, CLASSES, 32)
        found = [value_and_gradient(loss, embeddings, labels, device) for device in (sizes.device, CPU)]
        error = relative_error({"": found[0][1]}, {"": found[1][1]})
        # The pairs of "margin" are drawn by each device's own generator.
        passed = found[0][1].isfinite().all().item() and (name == "margin" or error < 1e-3)
        report.check(name, bool(passed), f"{found[0][0]:.5f}, {found[1][0]:.5f}, {error:.1e}")


def value_and_gradient(
    loss: nn.Module, embeddings: Tensor, labels: Tensor, device: torch.device
) -> tuple[float, Tensor]:
    """A loss's value, and its gradient on the CPU."""
    torch.manual_seed(5)
    leaf = embeddings.to(device).requires_grad_()
    value = copy.deepcopy(loss).to(device)(leaf, labels.to(device))
    return float(value), torch.autograd.grad(value, [leaf])[0].cpu()


def evaluation(report: Report, sizes: Sizes) -> None:
    """Compare a report of `evaluate` with the CPU's."""
    report.section("Evaluation against the CPU's", "distance", "", "seconds there and here")
    rng = np.random.default_rng(6)
    labels = np.arange(sizes.vectors) // 10
    rows = rng.normal(size=(labels[-1] + 1, 64))[labels] + rng.normal(size=(sizes.vectors, 64))
    given = torch.from_numpy((rows / np.linalg.norm(rows, axis=1, keepdims=True) / 2).astype(np.float32))
    datasets = (labels % 3).tolist()
    for distance in ("cosine", "euclidean", "poincare"):
        found, seconds = [], []
        for device in (sizes.device, CPU):
            started = time.perf_counter()
            options: dict[str, Any] = {"curvature": 0.1} if distance == "poincare" else {}
            done = evaluate(
                given, labels.tolist(), datasets, distance=distance, device=device, resamples=100, **options
            )
            seconds.append(time.perf_counter() - started)
            found.append(done.to_dict())
        report.check(distance, same(*found), ", ".join(f"{value:.2f}" for value in seconds))


def same(found: Any, expected: Any) -> bool:
    """Return True for equal reports; float64 sums may differ in their last digits."""
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(same(found[key], value) for key, value in expected.items())
    if isinstance(expected, list):
        return len(found) == len(expected) and all(map(same, found, expected))
    if isinstance(expected, float) and isinstance(found, float):
        return bool(np.isclose(found, expected, rtol=1e-9, atol=1e-12, equal_nan=True))
    return bool(found == expected)


def training(report: Report, sizes: Sizes) -> None:
    """Train, resume and embed by the commands that users run."""
    from unimetric.cli import main as unimetric

    report.section("Commands on the device", "command", "", "")
    with tempfile.TemporaryDirectory() as name:
        root, rng = Path(name), np.random.default_rng(7)
        for label in range(8):
            (root / "images" / f"c{label}").mkdir(parents=True)
            colour = rng.integers(0, 255, 3)
            for number in range(6):
                pixels = np.clip(colour + rng.normal(0, 60, (40, 40, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / "images" / f"c{label}" / f"{number}.png")
        settings = {
            "model.backbone": sizes.backbone, "model.weights": "random", "model.image_size": sizes.image_size,
            "training.steps": 10, "training.batch_size": 8, "device.accelerator": sizes.device.type,
        }  # fmt: skip
        for method, loss in (("puma", "curricularface"), ("lora", "softtriple"), ("linear", "hyperbolic")):
            run = root / method
            chosen = {**settings, "model.method": method, "loss.name": loss}
            if loss == "hyperbolic":
                chosen |= {"model.geometry": "poincare", "training.batch_size": 16}
            words = [word for key, value in chosen.items() for word in (f"--{key}", str(value))]
            code = unimetric(["train", str(root / "images"), "--out", str(run), *words])
            report.check(
                f"train {method} with {loss}", code == 0 and (run / "metrics.json").is_file(), f"exit code {code}"
            )
        code = unimetric(["train", "--resume", str(root / "puma")])
        report.check("train --resume of a finished run", code == 0, f"exit code {code}")
        out = root / "vectors.parquet"
        code = unimetric(["embed", str(root / "puma"), str(root / "images"), "--out", str(out)])
        report.check("embed", code == 0 and out.is_file(), f"exit code {code}")


def data_parallel(report: Report, sizes: Sizes) -> None:
    """Compare gradients under DistributedDataParallel in one process with those without it."""
    backend = "nccl" if sizes.device.type == "cuda" else "gloo"
    report.section(f"DistributedDataParallel on one device, {backend}", "method", "", "relative error of gradients")
    with tempfile.TemporaryDirectory() as folder:
        store = dist.FileStore(str(Path(folder) / "store"), 1)
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        try:
            for method in ("puma", "lora"):
                embedder = sizes.embedder(method).to(sizes.device).train()
                images = embedder.transform.normalise(torch.stack(sizes.images(min(8, sizes.batch))).to(sizes.device))
                expected = gradients_of(embedder, embedder, images)
                places = [sizes.device.index or 0] if backend == "nccl" else None
                found = gradients_of(DistributedDataParallel(embedder, device_ids=places), embedder, images)
                error = relative_error(found, expected)
                report.check(method, error < 1e-3, f"{error:.1e}")
        finally:
            dist.destroy_process_group()


def gradients_of(model: nn.Module, embedder: Embedder, images: Tensor) -> dict[str, Tensor]:
    """Gradients of a plain objective, on the CPU, by parameter."""
    embedder.zero_grad(set_to_none=True)
    torch.manual_seed(8)
    direction = torch.linspace(-1, 1, embedder.embedding_size, device=images.device)
    (model(images) @ direction).square().sum().backward()
    named = ((name, parameter.grad) for name, parameter in embedder.named_parameters())
    return {name: gradient.cpu().clone() for name, gradient in named if gradient is not None}


def same_bits(report: Report, sizes: Sizes) -> None:
    """Compare an image's vector in batches of other sizes and at other places with its vector alone."""
    report.section("One image, one vector", "method and precision", "", "largest difference to the vector alone")
    for method in ("puma", "lora", "frozen"):
        embedder = sizes.embedder(method).to(sizes.device)
        images = sizes.images(sizes.batch)
        for precision in ("fp32", "bf16"):
            embed = embedder.inference_form(precision).embed_pixels
            alone = embed(images[:1])[0]
            found = [embed([*images[1:count], images[0]])[-1] for count in (2, 7, 16, 17, sizes.batch)]
            largest = max(float(np.abs(vector - alone).max()) for vector in found)
            report.check(f"{method}, {precision}", largest == 0, f"{largest:.1e}")


CHECKS = (vectors, steps, losses, evaluation, training, data_parallel, same_bits)
