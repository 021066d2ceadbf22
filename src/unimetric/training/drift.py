"""Drift of an extended model's embeddings from the old model's, and its effect on an old index."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from unimetric.config import RunConfig
from unimetric.data.catalog import Item
from unimetric.data.replay import read_replay
from unimetric.data.selection import select_train
from unimetric.data.splits import Split
from unimetric.evaluation import evaluate, nearest_neighbours
from unimetric.evaluation.evaluate_split import Evaluator, distance_options
from unimetric.geometry import Geometry
from unimetric.models.embedder import Embedder
from unimetric.models.saving import model_fingerprint
from unimetric.progress import log_status
from unimetric.training.extension import Extension, replay_folder

NEIGHBOURS = 10
MOST_IMAGES = 5000
"""Most images to compare: every image costs a pass of both models."""

TOLERANCE = 0.01
"""Loss of Recall@1 in an old index above which re-indexing is advised: one point."""

Vectors = NDArray[np.float32]


def measure_drift(
    teacher: Embedder, embedder: Embedder, items: Sequence[Item], where: str, evaluator: Evaluator
) -> dict[str, Any]:
    """Embed images of the old datasets with both models, and compare.

    At most `MOST_IMAGES` are used, drawn evenly over the classes; ``where`` describes them for the reader.
    The result is `compare_embeddings`, with ``images`` and ``measured_on``.
    """
    shown = _some(items)
    evaluator = replace(evaluator, strict=False)
    old = evaluator.embed(teacher, shown, "Measuring the drift")
    new = evaluator.embed(embedder, old.items, "Measuring the drift")
    compared = compare_embeddings(old.vectors, new.vectors, old.items, embedder.geometry)
    return {"measured_on": where, "images": len(old.items), **compared}


def compare_embeddings(old: Vectors, new: Vectors, items: Sequence[Item], geometry: Geometry) -> dict[str, Any]:
    """Compare two embeddings [N, E] of the same N images, at least 2, by the distance of their geometry.

    ``cosine`` has the mean, and the 5th percentile, of the cosine between an image's old and new embedding.
    ``neighbours_kept`` is the mean share of an image's ``k`` nearest neighbours (itself excluded) among the old
    embeddings that are among the k nearest among the new. ``recall_at_1`` is the harmonic mean over the datasets of
    Recall@1 within each, of old queries in the old index (``old``), new ones in a new one (``new``), and new ones in
    the old one (``new_in_old``); null where no class has two images. ``reindex`` is true, and re-indexing advised, if
    ``new_in_old`` is more than `TOLERANCE` below ``old``.
    """
    k = min(NEIGHBOURS, len(items) - 1)
    ids = list(range(len(items)))
    options = distance_options(geometry)

    def neighbours(vectors: Vectors) -> torch.Tensor:
        return nearest_neighbours(vectors, vectors, k, query_ids=ids, gallery_ids=ids, **options)[1]

    before, after = neighbours(old), neighbours(new)
    kept = (before[:, :, None] == after[:, None, :]).any(dim=2).double().mean()
    cosines = (old * new).sum(1) / np.maximum(np.linalg.norm(old, axis=1) * np.linalg.norm(new, axis=1), 1e-12)
    recalls = {
        "old": _recall(old, old, items, options),
        "new": _recall(new, new, items, options),
        "new_in_old": _recall(new, old, items, options),
    }
    lost = None if recalls["old"] is None else recalls["old"] - (recalls["new_in_old"] or 0.0)
    return {
        "cosine": {"mean": float(cosines.mean()), "percentile_5": float(np.percentile(cosines, 5))},
        "neighbours_kept": float(kept),
        "k": k,
        "recall_at_1": recalls,
        "reindex": lost is None or lost > TOLERANCE,
    }


def measure_extension(
    config: RunConfig, split: Split, embedder: Embedder, extension: Extension | None, evaluator: Evaluator
) -> dict[str, Any]:
    """The part ``extension`` of ``metrics.json``: old and new datasets, and the drift; empty without an extension.

    Measured on the test images of the old datasets, where the sources hold any and test classes are measured on, else
    on the replayed images. A compatible model that loses at most `TOLERANCE` in an old index is marked as compatible.
    """
    if extension is None or config.extension.base is None:
        return {}
    replay = read_replay(replay_folder(config.extension.base))
    items: tuple[Item, ...] = ()
    if config.evaluation.classes == "test":
        items = tuple(item for item in dict.fromkeys((*split.query, *split.gallery)) if item.dataset in replay.datasets)
    drift = measure_drift(
        extension.teacher,
        embedder,
        items or replay.items,
        "classes that were not trained on" if items else "replayed images, which were trained on",
        evaluator,
    )
    fingerprint = model_fingerprint(extension.teacher.config())
    if config.extension.compatible and not drift["reindex"]:
        embedder.compatible_with = (fingerprint,)
    added = sorted({item.dataset for item in split.train} - set(replay.datasets))
    for line in describe_drift(drift):
        log_status(line)
    return {
        "extension": {
            "from": {"fingerprint": fingerprint, "datasets": list(replay.datasets)},
            "added": added,
            "distillation": config.extension.distillation,
            "compatible": config.extension.compatible,
            "replay": {"images": len(replay.items), "bytes": replay.bytes, "images_per_class": replay.images_per_class},
            "drift": drift,
            "summary": describe_drift(drift),
        }
    }


def describe_drift(drift: dict[str, Any]) -> list[str]:
    """Describe the drift in two or three sentences."""
    recall, cosine = drift["recall_at_1"], drift["cosine"]
    lines = [
        f"On {drift['images']} images of the old datasets ({drift['measured_on']}), the cosine between old and new "
        f"embedding is {cosine['mean']:.3f} on average (5th percentile {cosine['percentile_5']:.3f}), "
        f"and {drift['neighbours_kept']:.1%} of the {drift['k']} nearest neighbours are kept."
    ]
    if recall["old"] is not None:
        lines.append(
            f"Harmonic Recall@1: {recall['old']:.1%} by the old model, {recall['new']:.1%} by this one, "
            f"{recall['new_in_old']:.1%} for this one's queries in an index of the old one's vectors."
        )
    advice = "Rebuild old indexes." if drift["reindex"] else "Searches in old indexes lose at most one point."
    return [*lines, advice]


def _recall(query: Vectors, gallery: Vectors, items: Sequence[Item], options: dict[str, Any]) -> float | None:
    labels, datasets = [item.label for item in items], [item.dataset for item in items]
    ids = list(range(len(items)))
    if max(Counter(zip(datasets, labels, strict=True)).values()) < 2:
        return None
    report = evaluate(
        query, labels, datasets, gallery=(gallery, labels, datasets, ids), ks=(1,), ids=ids, resamples=1, **options
    )
    return report.harmonic["recall@1"]


def _some(items: Sequence[Item]) -> tuple[Item, ...]:
    split = Split(train=tuple(items), validation=(), query=(), gallery=())
    if len(split.train) <= MOST_IMAGES:
        return split.train
    datasets = {item.dataset for item in items}
    return select_train(split, train_images={"*": MOST_IMAGES // len(datasets)}).train
