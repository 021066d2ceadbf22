"""A training step against the bare backbone's forward, full fine-tuning, and itself with few classes.

Three parts, each against a reference in the same run, medians of calls in turn:

- ``backbone``: the step (forward, CurricularFace, backward, gradient clipping, AdamW) against two forwards of the bare
  frozen backbone and the adapters' own floating-point operations, forward and backward, at the rate of that forward.
  The bare backbone is timm's in eval mode without gradients, in the same precision, its weights held in that precision
  as well. Target: at most 1.2.
- ``methods``: time and peak memory of the step against full fine-tuning's on the same batch, in bf16. Memory is the
  peak above what the process held before the model was made, of a process for each. Targets: 0.7 and 0.6.
- ``classes``: the step with 350,000 classes against the one with 10,000, and the peak memory of the loss, its gradient
  and its optimiser's state alone. Targets: 1.5, and 1.5 GB.

    python benchmarks/train_step.py
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from machine import interleaved_medians, write_result
from unimetric.config import TrainingConfig
from unimetric.losses import make_loss
from unimetric.models.backbone import make_backbone
from unimetric.models.embedder import Embedder
from unimetric.training.optimiser import make_optimiser

METHODS: dict[str, tuple[str, dict[str, Any], int]] = {
    "puma": ("puma", {}, 0),
    "puma, 6 blocks computed again": ("puma", {}, 6),
    "puma, 12 blocks computed again": ("puma", {}, 12),
    "lora": ("lora", {}, 0),
    "unimetric": ("lora", {"targets": "all"}, 0),
    "unimetric, 6 blocks computed again": ("lora", {"targets": "all"}, 6),
    "linear": ("linear", {}, 0),
    "full": ("full", {}, 0),
}
"""Method, its options, and `Embedder.recompute_blocks`."""
TARGETS = {"backbone": 1.2, "time_to_full": 0.7, "memory_to_full": 0.6, "classes": 1.5, "loss_bytes": 1.5e9}
ADAPTER = re.compile(r"(attention_adapters|mlp_adapters)\.\d+$|method\.(down|up)\.\d+$")
PARTS = ("backbone", "methods", "classes")


def main() -> None:
    """Measure the parts, print a line for each figure, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=112)
    parser.add_argument("--classes", type=int, default=235)
    parser.add_argument("--many-classes", type=int, nargs=2, default=[10_000, 350_000], metavar=("FEW", "MANY"))
    parser.add_argument("--many-batch", type=int, default=180)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument("--name", default="train_step", help="of the result")
    parser.add_argument("--memory-of", help="measure the peak of a method, or of `loss`, and print it as JSON")
    arguments = parser.parse_args()
    if arguments.memory_of:
        print(json.dumps(peak_bytes(arguments)))
        return
    measured: dict[str, Any] = {}
    for part in arguments.parts:
        measured[part] = {"backbone": of_backbone, "methods": of_methods, "classes": of_classes}[part](arguments)
    settings = {name: value for name, value in vars(arguments).items() if name not in ("name", "memory_of")}
    print(write_result(arguments.name, {"targets": TARGETS, "settings": settings, **measured}))


class Step:
    """One optimiser step of a method on a random batch, in bf16 or float32."""

    def __init__(
        self, method: str, arguments: argparse.Namespace, *, batch: int, classes: int, bf16: bool, bare: bool = False
    ) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.bf16 = bf16
        backbone = make_backbone("dinov2-small", image_size=arguments.image_size)
        # Of its own, as LoRA puts its layers into the backbone that it is given.
        self.bare = make_backbone("dinov2-small", image_size=arguments.image_size).to(self.device) if bare else None
        name, options, recomputed = METHODS[method]
        self.embedder = Embedder(backbone, name, options).to(self.device).train()
        self.embedder.recompute_blocks = recomputed
        self.loss = make_loss("curricularface", classes, self.embedder.embedding_size).to(self.device)
        self.optimiser = make_optimiser(self.embedder, self.loss, TrainingConfig())
        self.learned = [parameter for group in self.optimiser.param_groups for parameter in group["params"]]
        self.images = torch.randn(batch, 3, arguments.image_size, arguments.image_size, device=self.device)
        self.labels = torch.randint(classes, (batch,), device=self.device)

    def autocast(self) -> torch.autocast:
        """The precision's context."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    @contextmanager
    def held(self) -> Iterator[None]:
        """The frozen weights in the precision, as training holds them."""
        with ExitStack() as stack:
            for backbone in (self.embedder.backbone, self.bare):
                if backbone is not None:
                    stack.enter_context(backbone.holding(torch.bfloat16 if self.bf16 else torch.float32))
            yield

    def total(self) -> Tensor:
        """The loss to go backward from."""
        with self.autocast():
            embeddings = self.embedder(self.images)
        loss: Tensor = self.loss(embeddings, self.labels)
        penalty = self.embedder.method.penalty()
        return loss if penalty is None else loss + penalty

    def __call__(self) -> None:
        """The step."""
        self.total().backward()
        nn.utils.clip_grad_value_(self.learned, 1.0)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)

    def forward(self) -> None:
        """The bare backbone."""
        with torch.no_grad(), self.autocast():
            self.bare.vit(self.images)


def of_backbone(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """The steps of PUMA and of our own recipe against the bare backbone."""
    return [
        against_backbone(method, precision, arguments)
        for precision in arguments.precisions
        for method in ("puma", "unimetric", "linear")
    ]


def against_backbone(method: str, precision: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Median times and their ratio for one method in one precision."""
    step = Step(
        method, arguments, batch=arguments.batch, classes=arguments.classes, bf16=precision == "bf16", bare=True
    )
    with step.held():
        (bare, _), (own, _) = operations(step.forward), operations(lambda: step.total().backward())
        with torch.no_grad():
            # Backward has two products for each one of forward: for the weight, and for what the adapter read.
            adapters = 3 * operations(step.total)[1]
        step.optimiser.zero_grad(set_to_none=True)
        seconds = interleaved_medians({"forward": step.forward, "step": step}, arguments.repetitions)
    # What the adapters' own products take, and all that the step does beyond two forwards: longer by the prompts, too.
    added, all_added = adapters / bare, max(0.0, own / bare - 2)
    ratio = seconds["step"] / seconds["forward"] / (2 + added)
    with_prompts = seconds["step"] / seconds["forward"] / (2 + all_added)
    print(
        f"{method}, {precision}: step {seconds['step'] * 1e3:.0f} ms, bare forward {seconds['forward'] * 1e3:.0f} ms, "
        f"ratio step / ({2 + added:.2f} x forward) {ratio:.2f} (target at most {TARGETS['backbone']}), "
        f"prompts' operations counted too, / ({2 + all_added:.2f} x forward) {with_prompts:.2f}"
    )
    return {
        "method": method,
        "precision": precision,
        "step_seconds": seconds["step"],
        "forward_seconds": seconds["forward"],
        "reference_forwards": 2 + added,
        "ratio": ratio,
        "reference_forwards_with_prompts": 2 + all_added,
        "ratio_with_prompts": with_prompts,
    }


def operations(function: Callable[[], object]) -> tuple[int, int]:
    """Floating-point operations of the matrix products of a call, and those within adapters, of forward only."""
    with FlopCounterMode(display=False) as counter:
        function()
    counts = {name: sum(of_module.values()) for name, of_module in counter.get_flop_counts().items()}
    return counter.get_total_flops(), sum(count for name, count in counts.items() if ADAPTER.search(name))


def of_methods(arguments: argparse.Namespace) -> dict[str, Any]:
    """Time and peak memory of every method's step, and their ratios to full fine-tuning's."""
    with ExitStack() as held:
        steps = {
            name: Step(name, arguments, batch=arguments.batch, classes=arguments.classes, bf16=True) for name in METHODS
        }
        for step in steps.values():
            held.enter_context(step.held())
        seconds = interleaved_medians(dict(steps), arguments.repetitions)
    peaks = {name: in_own_process(name, arguments) for name in METHODS}
    for name in METHODS:
        print(
            f"{name}: {seconds[name] * 1e3:.0f} ms, {peaks[name] / 1e6:.0f} MB; of full fine-tuning: time "
            f"{seconds[name] / seconds['full']:.2f} (target {TARGETS['time_to_full']}), memory "
            f"{peaks[name] / peaks['full']:.2f} (target {TARGETS['memory_to_full']})"
        )
    return {
        name: {
            "seconds": seconds[name],
            "peak_bytes": peaks[name],
            "time_to_full": seconds[name] / seconds["full"],
            "memory_to_full": peaks[name] / peaks["full"],
        }
        for name in METHODS
    }


def of_classes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The step with few and with many classes, and the memory of the loss alone with many."""
    few, many = arguments.many_classes
    with ExitStack() as held:
        steps = {
            str(classes): Step("puma", arguments, batch=arguments.many_batch, classes=classes, bf16=True)
            for classes in (few, many)
        }
        for step in steps.values():
            held.enter_context(step.held())
        seconds = interleaved_medians(dict(steps), max(2, arguments.repetitions // 3))
    ratio = seconds[str(many)] / seconds[str(few)]
    memory = in_own_process("loss", arguments)
    print(
        f"{many} classes: {seconds[str(many)]:.2f} s, {few} classes: {seconds[str(few)]:.2f} s, ratio {ratio:.2f} "
        f"(target {TARGETS['classes']}); loss, gradient and optimiser {memory / 1e9:.2f} GB "
        f"(target {TARGETS['loss_bytes'] / 1e9:.1f})"
    )
    return {"seconds": seconds, "ratio": ratio, "loss_bytes": memory}


def in_own_process(what: str, arguments: argparse.Namespace) -> int:
    """`peak_bytes` of a fresh process."""
    names = ("batch", "image_size", "classes", "many_batch")
    command = [sys.executable, str(Path(__file__)), "--memory-of", what]
    for name in names:
        command += [f"--{name.replace('_', '-')}", str(getattr(arguments, name))]
    command += ["--many-classes", *map(str, arguments.many_classes)]
    return int(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))


def peak_bytes(arguments: argparse.Namespace) -> int:
    """Peak of memory over three steps, above what was there before anything was made."""
    cuda = torch.cuda.is_available()
    # What the libraries take at their first product belongs to no method.
    (torch.randn(512, 512, requires_grad=True) @ torch.randn(512, 512)).sum().backward()
    before = peak_of_process()
    if arguments.memory_of == "loss":
        run_loss(arguments, "cuda" if cuda else "cpu")
    else:
        step = Step(arguments.memory_of, arguments, batch=arguments.batch, classes=arguments.classes, bf16=True)
        with step.held():
            for _ in range(3):
                step()
    return torch.cuda.max_memory_allocated() if cuda else peak_of_process() - before


def peak_of_process() -> int:
    """Most resident bytes so far, of this program alone: ``ru_maxrss`` would hand down the one that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def run_loss(arguments: argparse.Namespace, device: str) -> None:
    """Three steps of the loss and its proxies' optimiser alone."""
    classes, batch = arguments.many_classes[1], arguments.many_batch
    loss = make_loss("curricularface", classes, 128).to(device)
    optimiser = torch.optim.AdamW(loss.parameters(), fused=True)
    embeddings = torch.randn(batch, 128, device=device, requires_grad=True)
    labels = torch.randint(classes, (batch,), device=device)
    for _ in range(3):
        loss(embeddings, labels).backward()
        nn.utils.clip_grad_value_(loss.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)


if __name__ == "__main__":
    main()
