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
import sys
from functools import partial
from pathlib import Path

import torch

from gpu_checks import CHECKS
from gpu_report import Report, Sizes, machine, verdict
from gpu_speed import SPEEDS


def main() -> int:
    """Run all parts and write the report."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("gpu.md"), help="the report")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, in small sizes")
    options = parser.parse_args()
    if options.rehearse:
        sizes = Sizes(torch.device("cpu"), "vit_tiny_patch16_224", 32, 4, 300, 1)
    elif torch.cuda.is_available():
        sizes = Sizes(torch.device("cuda", torch.cuda.current_device()))
    else:
        print(
            f"gpu.py: torch {torch.__version__} finds no CUDA device here; run it on a machine with one",
            file=sys.stderr,
        )
        return 2
    report = Report()
    for part in (*CHECKS, *SPEEDS):
        print(f"# {part.__doc__}", flush=True)
        report.attempt(part.__name__, partial(part, report, sizes))
    head = [f"# {machine(sizes.device)}", "", f"`{' '.join(['python', *sys.argv])}`: {verdict(report)}"]
    text = "\n".join([*head, *report.lines, ""])
    options.out.write_text(text, encoding="utf-8")
    print(f"\n{verdict(report)} The report is in {options.out}.")
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
