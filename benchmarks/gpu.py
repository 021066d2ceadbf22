"""Checks and measurements on a CUDA device, to be run once per kind of card; prints a report to attach.

Parity with the CPU: vectors of every method in float32 and bf16, gradients of a training step, every loss, evaluation.
Training, resuming and embedding by their commands. Distributed data parallel on one card with NCCL. An image's vector
in batches of other sizes. Speed and memory of embedding, and of training steps as a share of the card's own matrix
product. Backbones have random weights, so nothing is downloaded.

    python benchmarks/gpu.py --out gpu.md

``--rehearse`` runs the same on the CPU in small sizes, to try out the script.
"""

from __future__ import annotations

import argparse
import copy
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.flop_counter import FlopCounterMode

from unimetric.config import TrainingConfig
from unimetric.evaluation import evaluate
from unimetric.losses import LOSSES, make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.models.petl import METHODS
from unimetric.training.optimiser import make_optimiser
from unimetric.training.step import ComputedStep, Objective, StepInput, compute_step

CPU = torch.device("cpu")
CLASSES = 16


@dataclass
class Report:
    """Lines of the report, and the checks that failed."""

    lines: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def section(self, title: str, *header: str) -> None:
        """Begin a table."""
        self.lines += ["", f"## {title}", "", f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]

    def row(self, *cells: object) -> None:
        """Add a row, and print it at once."""
        line = f"| {' | '.join(str(cell) for cell in cells)} |"
        self.lines.append(line)
        print(line, flush=True)

    def check(self, what: str, passed: bool, detail: str) -> None:
        """Add the row of a check."""
        self.row(what, "passed" if passed else "**failed**", detail)
        if not passed:
            self.failed.append(what)

    def attempt(self, what: str, action: Callable[[], None]) -> None:
        """Run a group of checks; an exception is a failed check, and the others go on."""
        try:
            action()
        except Exception as error:
            traceback.print_exc()
            self.check(what, False, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")


@dataclass(frozen=True)
class Sizes:
    """The device and the sizes of all parts."""

    device: torch.device
    backbone: str = "vit_small_patch14_dinov2"
    image_size: int = 112
    batch: int = 64
    vectors: int = 20_000
    repeats: int = 20

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def embedder(self, method: str, **options: Any) -> Embedder:
        """A model with random weights, the same for the same method."""
        torch.manual_seed(0)
        backbone = make_backbone(self.backbone, weights="random", image_size=self.image_size)
        embedder = Embedder(backbone, method, options)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in (p for p in embedder.parameters() if p.requires_grad and method != "full"):
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.02)
        return embedder

    def images(self, count: int) -> list[Tensor]:
        """Noise images, uint8 [3, S, S] each."""
        generator = torch.Generator().manual_seed(2)
        shape = (count, 3, self.image_size, self.image_size)
        return list(torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator))


def main() -> int:
    """Run all parts and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="the report")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small sizes")
    options = parser.parse_args()
    if options.rehearse:
        sizes = Sizes(CPU, "vit_tiny_patch16_224", 32, 4, 300, 1)
    elif torch.cuda.is_available():
        sizes = Sizes(torch.device("cuda", torch.cuda.current_device()))
    else:
        print(
            f"gpu.py: torch {torch.__version__} finds no CUDA device here; run it on a machine with one",
            file=sys.stderr,
        )
        return 2
    report = Report()
    for part in PARTS:
        print(f"# {part.__doc__}", flush=True)
        report.attempt(part.__name__, partial(part, report, sizes))
    head = [f"# {machine(sizes.device)}", "", f"`{' '.join(['python', *sys.argv])}`: {verdict(report)}"]
    text = "\n".join([*head, *report.lines, ""])
    options.out.write_text(text, encoding="utf-8")
    print(f"\n{verdict(report)} The report is in {options.out}.")
    return 1 if report.failed else 0


def verdict(report: Report) -> str:
    """One sentence about all checks."""
    return f"{len(report.failed)} checks failed: {', '.join(report.failed)}." if report.failed else "All checks passed."


def machine(device: torch.device) -> str:
    """Name and versions of what was measured."""
    when = f"{datetime.now(timezone.utc):%Y-%m-%d}"
    if device.type != "cuda":
        return f"rehearsal on the CPU, torch {torch.__version__}, {when}"
    card = torch.cuda.get_device_properties(device)
    memory = f"{card.total_memory / 2**30:.0f} GiB"
    return f"{card.name}, {memory}, CUDA {torch.version.cuda}, torch {torch.__version__}, {when}"


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
        expected = one_step(embedder, loss, sizes, CPU)
        found = one_step(embedder, loss, sizes, sizes.device)
        error = relative_error(found.gradients, expected.gradients)
        close = abs(found.loss - expected.loss) <= 1e-3 * abs(expected.loss)
        detail = f"{found.loss:.5f}, {expected.loss:.5f}, {error:.1e}"
        report.check(method, close and found.finite and error < 1e-2, detail)


def one_step(embedder: Embedder, loss: nn.Module, sizes: Sizes, device: torch.device) -> ComputedStep:
    """A step in float32 of fixed images; adapters are dropped for the same images on every device."""
    twin, criterion = copy.deepcopy(embedder).to(device), copy.deepcopy(loss).to(device)
    count = min(8, sizes.batch)
    images = embedder.transform.normalise(torch.stack(sizes.images(count))).to(device)
    labels = (torch.arange(count) % CLASSES).to(device)
    empty = torch.zeros(count, embedder.embedding_size, device=device)
    return compute_step(
        Objective(twin, criterion), StepInput(images, empty, labels, torch.arange(count), 0, 0), torch.float32
    )


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


def embedding_speed(report: Report, sizes: Sizes) -> None:
    """Measure embedding from pixels in memory, in calls of 256 images."""
    report.section("Embedding", "what", "images/s", "peak memory, MiB")
    images = sizes.images(4 * sizes.batch)
    for method in ("frozen", "lora", "puma"):
        for precision in ("fp32", "bf16"):
            form = sizes.embedder(method).to(sizes.device).inference_form(precision)
            seconds, memory = measured(partial(form.embed_pixels, images), sizes)
            report.row(f"{method}, {precision}, {sizes.image_size} px", f"{len(images) / seconds:.0f}", memory)


def training_speed(report: Report, sizes: Sizes) -> None:
    """Measure training steps (forward, backward, AdamW) in bf16 against the card's own matrix product."""
    side = 8192 if sizes.device.type == "cuda" else 512
    left, right = (torch.randn(side, side, device=sizes.device, dtype=torch.bfloat16) for _ in range(2))
    peak = 2 * side**3 / measured(partial(torch.mm, left, right), sizes)[0]
    report.section(
        f"Training steps; a bf16 product of {side} x {side} matrices: {peak / 1e12:.1f} TFLOP/s",
        "what", "ms a step", "images/s", "TFLOP a step", "share of the product's rate", "peak memory, MiB",
    )  # fmt: skip
    shapes = ((84, 16), (224, 180)) if sizes.device.type == "cuda" else ((sizes.image_size, sizes.batch),)
    methods: dict[str, tuple[str, dict[str, Any]]] = {
        "puma": ("puma", {}), "lora": ("lora", {}), "ours (lora, targets all)": ("lora", {"targets": "all"}),
        "full": ("full", {}),
    }  # fmt: skip
    for image_size, batch in shapes:
        for name, (method, options) in methods.items():
            step = training_step(replace(sizes, image_size=image_size, batch=batch), method, options)
            counter = FlopCounterMode(display=False)
            with counter:
                step()
            seconds, memory = measured(step, sizes)
            work = counter.get_total_flops()
            report.row(
                f"{name}, {image_size} px, batches of {batch}", f"{seconds * 1e3:.1f}", f"{batch / seconds:.0f}",
                f"{work / 1e12:.3f}", f"{work / seconds / peak:.3f}", memory,
            )  # fmt: skip


def training_step(sizes: Sizes, method: str, options: dict[str, Any]) -> Callable[[], None]:
    """A step of training on noise, with every part in the form that `unimetric train` uses."""
    embedder = sizes.embedder(method, **options).to(sizes.device).train()
    loss = make_loss("curricularface", 512, embedder.embedding_size).to(sizes.device)
    optimiser = make_optimiser(embedder, loss, TrainingConfig())
    pixels = torch.stack(sizes.images(sizes.batch))
    labels = (torch.arange(sizes.batch) % 512).to(sizes.device)

    def step() -> None:
        batch = embedder.transform.normalise(pixels.to(sizes.device))
        with embedder.backbone.holding(torch.bfloat16), torch.autocast(sizes.device.type, torch.bfloat16):
            embeddings = embedder(batch)
        loss(embeddings.float(), labels).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def measured(action: Callable[[], object], sizes: Sizes) -> tuple[float, str]:
    """The median of an action's seconds after three warm-up calls, and its peak memory in MiB."""
    for _ in range(3):
        action()
    cuda = sizes.device.type == "cuda"
    if cuda:
        torch.cuda.reset_peak_memory_stats(sizes.device)
    seconds = []
    for _ in range(sizes.repeats):
        sizes.synchronise()
        started = time.perf_counter()
        action()
        sizes.synchronise()
        seconds.append(time.perf_counter() - started)
    memory = f"{torch.cuda.max_memory_allocated(sizes.device) / 2**20:.0f}" if cuda else "–"
    return median(seconds), memory


PARTS = (
    vectors,
    steps,
    losses,
    evaluation,
    training,
    data_parallel,
    same_bits,
    embedding_speed,
    training_speed,
)

if __name__ == "__main__":
    sys.exit(main())
