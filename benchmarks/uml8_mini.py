"""Frozen backbone, linear head, PUMA and our recipe on a folder of several domains: as many steps, the same seed.

Every domain is a folder of class folders; the first half of its sorted classes trains, the rest tests.

    python benchmarks/uml8_mini.py FOLDER_OF_DOMAINS --out runs/uml8-mini
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from machine import write_result
from unimetric.commands.evaluate import evaluate_model
from unimetric.config import RunConfig, run_config
from unimetric.formats.run_folder import RunFolder
from unimetric.report.tables import print_results, result_cells
from unimetric.training.loop import train


def main() -> None:
    """Measure the four, print the table, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/uml8-mini"))
    parser.add_argument("--config", type=Path, default=Path("configs/puma-short.yaml"))
    arguments = parser.parse_args()
    config, recipe = (_config(file, arguments.folder) for file in (arguments.config, Path("configs/unimetric.yaml")))
    frozen = replace(config, model=replace(config.model, method="frozen", options={}))
    linear = replace(config, model=replace(config.model, method="linear", options={}))
    rows = [
        ("frozen", evaluate_model(frozen, None, arguments.out / "frozen")),
        ("linear head", _run(linear, arguments.out / "linear")),
        ("PUMA", _run(config, arguments.out / "puma")),
        ("ours", _run(recipe, arguments.out / "ours")),
    ]
    print_results(rows)
    header, cells = result_cells(rows)
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *cells]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    results = {name: {key: value for key, value in metrics.items() if key != "skipped"} for name, metrics in rows}
    path = write_result("uml8_mini", {"config": arguments.config.name, "results": results})
    path.with_suffix(".md").write_text(f"Recall@1 on the unseen half of each domain's classes.\n\n{table}")


def _config(file: Path, folder: Path) -> RunConfig:
    config = run_config(yaml.safe_load(file.read_text()), str(file))
    return replace(config, data=replace(config.data, sources=[str(folder)]))


def _run(config: RunConfig, out: Path) -> dict[str, Any]:
    folder = RunFolder(out)
    return train(config, folder, resume=folder.config.is_file())


if __name__ == "__main__":
    main()
