"""Draw the figures of the page on the method, from a run of PUMA and from the benchmark's table.

    python benchmarks/method_figures.py RUN FOLDER_OF_DOMAINS

RUN is a run of PUMA on the domains, such as that of the benchmark ``claim``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from unimetric import Embedder
from unimetric.data.images import is_image_name
from unimetric.report.prompts import average_prompt_weights

HERE = Path(__file__).parent
FIGURES = HERE.parent / "docs/figures"
VARIANTS = ["frozen", "linear head", "PUMA without adapters", "PUMA", "PUMA, p = 0", "PUMA without prompts"]


def main() -> None:
    """Read the arguments and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("domains", type=Path)
    arguments = parser.parse_args()
    FIGURES.mkdir(exist_ok=True)
    draw_prompts(arguments.run, arguments.domains)
    draw_parts()


def draw_prompts(run: Path, domains: Path) -> None:
    """Draw every prompt's average similarity over each domain's images (the paper's Figure 3), and less the mean."""
    folders = sorted(path for path in domains.iterdir() if path.is_dir())
    images = {folder.name: sorted(path for path in folder.rglob("*") if is_image_name(path)) for folder in folders}
    averages = average_prompt_weights(Embedder.from_pretrained(run), images)
    if averages is None:
        raise SystemExit(f"{run} is a run without prompts; name one of PUMA")
    similarities = np.stack(list(averages.values()))
    differences = similarities - similarities.mean(axis=0)
    limit = float(np.abs(differences).max())
    figure, grid = plt.subplots(1, 2, figsize=(11, 3.2), sharey=True, layout="constrained")
    for axes, values, title, colours in (
        (grid[0], similarities, "average similarity", {"cmap": "viridis"}),
        (grid[1], differences, "difference from the mean", {"cmap": "RdBu_r", "vmin": -limit, "vmax": limit}),
    ):
        picture = axes.imshow(values, aspect="auto", **colours)
        axes.set_xticks(range(values.shape[1]), [str(number + 1) for number in range(values.shape[1])])
        axes.set_xlabel("prompt")
        axes.set_title(title)
        figure.colorbar(picture)
    grid[0].set_yticks(range(len(averages)), list(averages))
    figure.savefig(FIGURES / "prompts.png", dpi=150)


def draw_parts() -> None:
    """Harmonic and unified Recall@1 with parts of PUMA left out."""
    rows = json.loads((HERE / "results/benchmark_uml8_mini.json").read_text())["rows"]
    summaries = {row["name"]: row["summary"] for row in rows}
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    places = np.arange(len(VARIANTS))
    for shift, (score, colour) in enumerate((("harmonic", "#1f4e9c"), ("unified", "#d9822b"))):
        cells = [summaries[name][score] for name in VARIANTS]
        deviations = [100 * (cell["deviation"] or 0) for cell in cells]
        means = [100 * cell["mean"] for cell in cells]
        label = f"{score}" + (" mean" if score == "harmonic" else "")
        axes.barh(places + 0.38 * shift, means, 0.36, xerr=deviations, color=colour, label=label, ecolor="#777777")
    axes.set_yticks(places + 0.19, VARIANTS)
    axes.invert_yaxis()
    axes.set_xlabel("Recall@1, %; 312 steps (lines: standard deviation over three seeds)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    figure.savefig(FIGURES / "parts.png", dpi=150)


if __name__ == "__main__":
    main()
