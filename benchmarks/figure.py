"""Draw the README's figure from what `uml8_mini.py` measured.

python benchmarks/figure.py
"""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

COLOURS = ["#b8bcc4", "#7fa7d9", "#1f4e9c", "#d9822b"]


def main() -> None:
    """Read the result beside this file, write the figure into docs."""
    here = Path(__file__).parent
    measured = json.loads((here / "results" / "uml8_mini.json").read_text())
    rows = measured["results"]
    domains = list(next(iter(rows.values()))["separate"])
    groups = [*domains, "harmonic\nmean", "unified"]
    figure, axes = plt.subplots(figsize=(10, 3.6), layout="constrained")
    width = 0.8 / len(rows)
    # A gap sets the two summaries apart from the domains.
    centres = [index + (0.5 if index >= len(domains) else 0) for index in range(len(groups))]
    for position, ((name, metrics), colour) in enumerate(zip(rows.items(), COLOURS, strict=True)):
        values = [metrics["separate"][domain]["recall@1"] for domain in domains]
        values += [metrics["harmonic"]["recall@1"], metrics["unified"]["recall@1"]]
        places = [centre + (position - (len(rows) - 1) / 2) * width for centre in centres]
        bars = axes.bar(places, [100 * value for value in values], width, label=name, color=colour)
        axes.bar_label(bars, fmt="%.0f", fontsize=6, padding=1)
    axes.set_xticks(centres, groups)
    axes.set_ylabel("Recall@1, %")
    axes.set_ylim(0, 105)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="upper right")
    axes.set_title("One model, eight image collections: unseen classes", fontsize=11)
    figure.savefig(here.parent / "docs" / "results.png", dpi=160)


if __name__ == "__main__":
    main()
