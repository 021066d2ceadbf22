"""Adding an eighth domain to a model of seven, against training on all eight together.

For each domain that is named: a model of the other domains, extended by it from a replay set of small images. The
references are models of all domains: by default one with as many steps as the model of seven had, and one with as many
as that and its extension had together. What is finished is not done again.

    python benchmarks/extend.py FOLDER_OF_DOMAINS --add birds groceries --out runs/extend
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from statistics import harmonic_mean
from typing import Any

import yaml

from machine import write_result
from unimetric.commands.evaluate import evaluate_model
from unimetric.config import ExtendConfig, RunConfig, run_config
from unimetric.formats.run_folder import RunFolder
from unimetric.training.extend import extend_run
from unimetric.training.loop import train


def main() -> None:
    """Train what is missing, print a line for each domain, write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--add", nargs="+", default=["birds", "groceries"])
    parser.add_argument("--out", type=Path, default=Path("runs/extend"))
    parser.add_argument("--config", type=Path, default=Path("src/unimetric/configs/unimetric.yaml"))
    parser.add_argument("--image-size", type=int, default=84)
    parser.add_argument("--base-steps", type=int, default=240)
    parser.add_argument("--steps", type=int, default=ExtendConfig.steps)
    parser.add_argument("--joint-steps", nargs="+", type=int, default=[240, 440])
    parser.add_argument("--compatible", action="store_true")
    arguments = parser.parse_args()
    domains = sorted(path for path in arguments.folder.iterdir() if path.is_dir())
    joint = {
        f"joint, {steps} steps": _trained(_config(arguments, domains, steps), arguments.out / f"joint-{steps}")
        for steps in arguments.joint_steps
    }
    results = {name: _added(name, domains, joint, arguments) for name in arguments.add}
    for name, result in results.items():
        shares = ", ".join(f"{share:.0%} of {label}" for label, share in result["share_of_gain"].items())
        print(f"{name}: the others lose {result['lost_points']:.2f} points of harmonic Recall@1, it gains {shares}")
    settings = {
        "image_size": arguments.image_size,
        "base_steps": arguments.base_steps,
        "extend": _options(arguments).__dict__,
    }
    suffix = "_compatible" if arguments.compatible else ""
    print(write_result(f"extend{suffix}", {"settings": settings, "results": results}))


def _added(name: str, domains: list[Path], joint: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """All about one domain; ``joint`` holds the metrics of the references by their names."""
    others, new = [path for path in domains if path.name != name], arguments.folder / name
    base_folder = arguments.out / f"base-{name}"
    base_config = _config(arguments, others, arguments.base_steps)
    base = _trained(base_config, base_folder)
    on_new = base_folder / f"on-{name}"
    before = _read(on_new) or evaluate_model(
        replace(base_config, data=replace(base_config.data, sources=[str(new)])), base_folder, on_new
    )
    kind = "compatible" if arguments.compatible else "extended"
    folder = arguments.out / f"{kind}-{name}"
    extended = _read(folder) or _resumed(folder)
    if extended is None:
        _, extended = extend_run(base_folder, [str(new)], folder, _options(arguments), base_config.device)
    names = [path.name for path in others]
    models = {"seven": base, "extended": extended, **joint}
    harmonic = {label: _harmonic(metrics, names) for label, metrics in models.items()}
    measured = {"seven": before, "extended": extended, **joint}
    found = {label: metrics["separate"][name]["recall@1"] for label, metrics in measured.items()}
    gain = found["extended"] - found["seven"]
    return {
        "others_harmonic": harmonic,
        "lost_points": 100 * (harmonic["seven"] - harmonic["extended"]),
        "new": found,
        "share_of_gain": {label: gain / (found[label] - found["seven"]) for label in joint},
        "separate": {
            label: {domain: scores["recall@1"] for domain, scores in metrics["separate"].items()}
            for label, metrics in models.items()
        },
        "extension": {key: value for key, value in extended["extension"].items() if key != "from"},
        "training_seconds": {label: metrics["training_seconds"] for label, metrics in models.items()},
    }


def _harmonic(metrics: dict[str, Any], names: list[str]) -> float:
    return harmonic_mean([metrics["separate"][name]["recall@1"] for name in names])


def _options(arguments: argparse.Namespace) -> ExtendConfig:
    return ExtendConfig(steps=arguments.steps, compatible=arguments.compatible, workers=0)


def _config(arguments: argparse.Namespace, sources: list[Path], steps: int) -> RunConfig:
    config = run_config(yaml.safe_load(arguments.config.read_text()), str(arguments.config))
    return replace(
        config,
        data=replace(config.data, sources=[str(path) for path in sources], workers=0),
        model=replace(config.model, image_size=arguments.image_size),
        training=replace(config.training, steps=steps),
    )


def _trained(config: RunConfig, out: Path) -> dict[str, Any]:
    return _read(out) or _resumed(out) or train(config, RunFolder(out))


def _resumed(out: Path) -> dict[str, Any] | None:
    folder = RunFolder(out)
    return train(folder.read_config(), folder, resume=True) if folder.config.is_file() else None


def _read(out: Path) -> dict[str, Any] | None:
    path = out / "metrics.json"
    return json.loads(path.read_text()) if path.is_file() else None


if __name__ == "__main__":
    main()
