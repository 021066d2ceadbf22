"""The model card, README.md of a model folder: description, measured scores, and usage of the model."""

from __future__ import annotations

from typing import Any

import timm
from huggingface_hub import EvalResult, ModelCardData

from unimetric.models.packaged import PACKAGED


def model_card(
    config: dict[str, Any],
    trainable_parameters: int,
    metrics: dict[str, Any] | None,
    *,
    place: str = "path/to/this/folder",
    license: str | None = None,
) -> str:
    """Return the card as Markdown with the hub's metadata in front.

    Args:
        config: Content of the model's ``config.json``.
        trainable_parameters: Number of learned values.
        metrics: Measured numbers, in the shape of ``metrics.json``.
        place: Name or folder to load the model from.
        license: Identifier of the model's licence.
    """
    backbone, method = config["backbone"], config["method"]
    geometry = config.get("geometry", {"name": "sphere"})
    options = ", ".join(f"{name} {value}" for name, value in method["options"].items()) or "none"
    measured = metrics if metrics and metrics["counts"]["queries"] else None
    lines = [
        "---",
        _metadata(config, measured, place, license),
        "---",
        "",
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
        f'embedder = Embedder.from_pretrained("{place}")',
        *_use(geometry),
        "```",
        "",
        *(_extended(metrics["extension"]) if metrics and "extension" in metrics else []),
        *(_measured(measured, geometry) if measured else []),
    ]
    return "\n".join(lines) + "\n"


def _metadata(config: dict[str, Any], measured: dict[str, Any] | None, place: str, license: str | None) -> str:
    """Return the card's metadata as YAML, in the hub's vocabulary."""
    recalls = {} if measured is None else {**measured["separate"], "all datasets in one gallery": measured["unified"]}
    results = [
        EvalResult(
            task_type="image-feature-extraction",
            task_name="Image retrieval",
            dataset_type=name,
            dataset_name=name,
            metric_type="recall@1",
            metric_name="Recall@1",
            metric_value=round(values["recall@1"], 4),
        )
        for name, values in recalls.items()
    ]
    data = ModelCardData(
        library_name="unimetric",
        pipeline_tag="image-feature-extraction",
        tags=["metric-learning", "image-retrieval", "embeddings", config["method"]["name"]],
        base_model=_base_model(config["backbone"]),
        license=license,
        model_name=place.rpartition("/")[2] if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml())


def _base_model(backbone: dict[str, Any]) -> str | None:
    """Return the hub's name of a backbone whose weights come from there."""
    if backbone["weights"] != "pretrained" or backbone["name"] in PACKAGED or not timm.is_model(backbone["name"]):
        return None
    pretrained = timm.get_pretrained_cfg(backbone["name"])
    place = pretrained.hf_hub_id if pretrained else None
    return f"{place}{pretrained.architecture}.{pretrained.tag}" if place and place.endswith("/") else place


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
