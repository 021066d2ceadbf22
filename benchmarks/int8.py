"""Cost of int8 products in Recall@1: trained models measured in float32, bf16 and int8 on their own data.

    python benchmarks/int8.py RUN [RUN ...]

Each run is measured as `unimetric evaluate` does it, on the classes it was not trained on, with the same images and
the same weights. Target: int8 loses at most 0.3 points of Recall@1 against float32.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

from machine import write_result
from unimetric.evaluation.evaluate_split import Evaluator
from unimetric.formats.run_folder import RunFolder
from unimetric.models.embedder import Embedder
from unimetric.models.source import ModelSource
from unimetric.training.provenance import measured_sides
from unimetric.training.setup import load_split

PRECISIONS = ("fp32", "bf16", "int8")
LARGEST_LOSS = 0.3


def main() -> None:
    """Measure, print a table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    runs = [measured(run) for run in parser.parse_args().runs]
    mean = {
        precision: {
            name: round(statistics.mean(run[precision][name] - run["fp32"][name] for run in runs), 2)
            for name in ("unified", "harmonic")
        }
        for precision in PRECISIONS[1:]
    }
    for precision, change in mean.items():
        print(f"{precision}: mean change of {len(runs)} models, points: {change}")
    print(write_result("int8", {"target_loss": LARGEST_LOSS, "runs": runs, "mean_change": mean}))


def measured(run: Path) -> dict[str, Any]:
    """Recall@1 of a run in each precision, percent."""
    config = RunFolder(run).read_config()
    embedder = Embedder.from_pretrained(run, weights=ModelSource(run).weights_file).eval()
    sides = measured_sides(config, load_split(config, training=False))
    rows: dict[str, Any] = {"run": run.name, "method": embedder.method_name, "queries": len(sides["query"])}
    rows["image_size"] = embedder.transform.image_size
    for precision in PRECISIONS:
        metrics = Evaluator(precision=precision)(embedder, sides["query"], sides["gallery"]).metrics
        rows[precision] = {name: round(100 * metrics[name]["recall@1"], 2) for name in ("unified", "harmonic")}
        print(run.name, precision, rows[precision], flush=True)
    return rows


if __name__ == "__main__":
    main()
