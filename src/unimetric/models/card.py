"""The model card, README.md of a model folder: description, measured scores, and usage of the model."""

from __future__ import annotations

from typing import Any


def model_card(config: dict[str, Any], trainable_parameters: int, metrics: dict[str, Any] | None) -> str:
    """Return the card as Markdown, from a model's ``config.json`` and, if given, its measured numbers.

    ``metrics`` has the shape of ``metrics.json``.
    """
    backbone, method = config["backbone"], config["method"]
    geometry = config.get("geometry", {"name": "sphere"})
    options = ", ".join(f"{name} {value}" for name, value in method["options"].items()) or "none"
    lines = [
        "# An embedding model for several image collections",
        "",
        f"Trained with unimetric: method `{method['name']}` on the frozen "
        f"backbone `{backbone['name']}` at {backbone['image_size']} px.",
        "",
        *_about_backbone(backbone),
        "| | |",
        "|---|---|",
        f"| embedding size | {config['embedding_size']} |",
        f"| embeddings | {_about_geometry(geometry)} |",
        f"| trained parameters | {trainable_parameters:,} |",
        f"| options of the method | {options} |",
        f"| fingerprint of the backbone | `{backbone['fingerprint'][:16]}` |",
        "",
        "## Use",
        "",
        "```python",
        *(["import torch", ""] if geometry["name"] == "poincare" else []),
        "from unimetric import Embedder",
        "",
        'embedder = Embedder.from_pretrained("path/to/this/folder")',
        *_use(geometry),
        "```",
        "",
        *(_extended(metrics["extension"]) if metrics and "extension" in metrics else []),
        *(_measured(metrics, geometry) if metrics and metrics["counts"]["queries"] else []),
    ]
    return "\n".join(lines) + "\n"


def _about_backbone(backbone: dict[str, Any]) -> list[str]:
    if backbone["name"] != "dinov2-small" or backbone["weights"] != "pretrained":
        return []
    return [
        "dinov2-small is a DINOv2 ViT-S/14 that was fine-tuned for saliency; its frozen retrieval is well below the "
        "original's.",
        "",
    ]


def _about_geometry(geometry: dict[str, Any]) -> str:
    if geometry["name"] == "sphere":
        return "unit vectors, compared by cosine"
    return (
        f"points of the Poincaré ball, curvature -{geometry['curvature']:g}, features clipped to length "
        f"{geometry['clip']:g}; compared by hyperbolic distance"
    )


def _use(geometry: dict[str, Any]) -> list[str]:
    if geometry["name"] == "sphere":
        return [
            'vectors = embedder.encode(["a.jpg", "b.jpg"])  # float32 [2, E], unit length',
            "similarity = vectors[0] @ vectors[1]",
        ]
    return [
        'points = torch.from_numpy(embedder.encode(["a.jpg", "b.jpg"]))  # float32 [2, E], in the Poincaré ball',
        "distance = embedder.geometry.distances(points[:1], points[1:])",
    ]


def _extended(extension: dict[str, Any]) -> list[str]:
    origin, replay = extension["from"], extension["replay"]
    known, added = (", ".join(_cell(name) for name in names) for names in (origin["datasets"], extension["added"]))
    return [
        "## Extended from another model",
        "",
        f"By {added}, from the model with fingerprint `{origin['fingerprint'][:16]}`, which was trained on {known}; "
        f"of these, {replay['images']} small images ({replay['bytes']:,} bytes) were trained on again.",
        "",
        " ".join(extension["summary"]),
        "",
    ]


def _measured(metrics: dict[str, Any], geometry: dict[str, Any]) -> list[str]:
    nearness = "cosine similarity" if geometry["name"] == "sphere" else "hyperbolic distance"
    counts = metrics["counts"]
    rows = [f"| {_cell(name)} | {values['recall@1']:.1%} |" for name, values in metrics["separate"].items()]
    return [
        "## Measured",
        "",
        f"Recall@1 on classes that were not trained on, by {nearness}: each query's nearest neighbour, itself",
        f"excluded, is of its class. {counts['queries']} queries, {counts['gallery']} gallery images, "
        f"{counts['queries_without_positive']} queries without a positive skipped, "
        f"{counts.get('skipped_files', 0)} files skipped.",
        "",
        "| dataset | Recall@1 |",
        "|---|---|",
        *rows,
        f"| **harmonic mean** | {metrics['harmonic']['recall@1']:.1%} |",
        f"| **unified** (one gallery of all datasets) | {metrics['unified']['recall@1']:.1%} |",
        "",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
