"""Evaluate a model on the items of a split: embed them, count unreadable images, compute the scores."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unimetric.data.catalog import Item, Unusable, item_identities
from unimetric.data.images import decode_image
from unimetric.errors import UserError
from unimetric.evaluation import LabelWarning, Report, evaluate
from unimetric.evaluation.per_query import PerQuery
from unimetric.formats.vectors import MeasuredVectors
from unimetric.geometry import Geometry, PoincareBall
from unimetric.progress import progress_bar

if TYPE_CHECKING:
    from unimetric.models.encoding import Encoder


@dataclass(frozen=True)
class EmbeddedItems:
    """Items, their vectors float32 [N, E], and the images that could not be read."""

    items: tuple[Item, ...]
    vectors: NDArray[np.float32]
    skipped: tuple[Unusable, ...]


def embed_items(
    embedder: Encoder,
    items: Sequence[Item],
    *,
    batch_size: int = 32,
    precision: str = "auto",
    strict: bool = False,
    description: str = "Embedding",
    read: Callable[[Path], Image.Image] = decode_image,
) -> EmbeddedItems:
    """Embed items under a progress bar; each unreadable image is named, counted and left out.

    ``read`` returns the upright RGB image of a path, or raises `ImageError`; a cache's reader, for instance.

    Raises:
        UserError: an image cannot be read and ``strict`` is set, or none can be read.
    """
    vectors: list[NDArray[np.float32]] = []
    kept: list[Item] = []
    skipped: list[Unusable] = []
    with progress_bar() as progress:
        task = progress.add_task(description, total=len(items), note="")
        batches = embedder.encode_batches(
            (partial(read, item.path) for item in items),
            batch_size=batch_size,
            precision=precision,
            skip_unreadable=not strict,
        )
        position = 0
        for batch, errors in batches:
            vectors.append(batch)
            for item, error in zip(items[position : position + len(errors)], errors, strict=True):
                if error is None:
                    kept.append(item)
                else:
                    skipped.append(Unusable(item.path, error.reason))
            position += len(errors)
            progress.update(task, completed=position, note=f"{len(skipped)} skipped" if skipped else "")
    if items and not kept:
        raise UserError(f"none of {len(items)} images can be read; the first is {items[0].path}: {skipped[0].reason}")
    return EmbeddedItems(tuple(kept), np.concatenate(vectors), tuple(skipped))


@dataclass(frozen=True)
class Measurement:
    """Metrics as ``metrics.json`` holds them, the skipped files, and the vectors."""

    metrics: dict[str, Any]
    skipped: tuple[Unusable, ...]
    vectors: MeasuredVectors | None = None
    """None where nothing was measured."""
    per_query: PerQuery | None = None
    """The results of every query; None where nothing was measured."""


@dataclass(frozen=True)
class Evaluator:
    """Measures a model: embeds every distinct image once, and evaluates; an image is not its own neighbour.

    Vectors are compared by the distance of the embedder's geometry: cosine, or hyperbolic distance. Two paths that lead
    to one file through links are one image.

    Args:
        ks: The k of every Recall@k.
        batch_size: Images per forward pass.
        precision: As in `Embedder.encode`.
        strict: Refuse images that cannot be read, and queries without another image of their class in the gallery.
        mean_average_precision: Measure mAP, too.
        read: Makes an upright RGB image of a path, see `embed_items`.
    """

    ks: Sequence[int] = (1, 2, 4, 8)
    batch_size: int = 32
    precision: str = "auto"
    strict: bool = False
    mean_average_precision: bool = False
    read: Callable[[Path], Image.Image] = decode_image

    def embed(self, embedder: Encoder, items: Sequence[Item], description: str) -> EmbeddedItems:
        """Embed items as `embed_items` does, with these options."""
        return embed_items(
            embedder,
            items,
            batch_size=self.batch_size,
            precision=self.precision,
            strict=self.strict,
            description=description,
            read=self.read,
        )

    def __call__(
        self, embedder: Encoder, query: Sequence[Item], gallery: Sequence[Item], description: str = "Embedding"
    ) -> Measurement:
        """Measure a model; a `UserError` where ``strict`` forbids it, or nothing can be measured."""
        start = time.perf_counter()
        check_positives(query, gallery, strict=self.strict)
        # An image may be query and gallery at once; its file within its dataset is its identity.
        identity = dict(zip((*query, *gallery), item_identities([*query, *gallery]), strict=True))
        distinct = list({identity[item]: item for item in (*query, *gallery)}.values())
        embedded = self.embed(embedder, distinct, description)
        row = {identity[item]: index for index, item in enumerate(embedded.items)}
        datasets = dict.fromkeys(item.dataset for item in query)
        items, searched = (tuple(item for item in side if identity[item] in row) for side in (query, gallery))
        query_vectors, gallery_vectors = (
            embedded.vectors[[row[identity[item]] for item in side]] for side in (items, searched)
        )
        vectors = MeasuredVectors(items, query_vectors, searched, gallery_vectors)
        if items == searched:
            vectors = MeasuredVectors(items, query_vectors, items, query_vectors)
        report = evaluate_vectors(
            vectors, embedder.geometry, ks=self.ks, mean_average_precision=self.mean_average_precision
        )
        metrics = report.to_dict()
        counts = metrics["counts"]
        counts["skipped_files"] = len(embedded.skipped)
        counts["datasets_left_out"] += [name for name in datasets if name not in counts["datasets"]]
        metrics["seconds"] = round(time.perf_counter() - start, 2)
        return Measurement(metrics, embedded.skipped, vectors, report.per_query)


def evaluate_vectors(
    vectors: MeasuredVectors,
    geometry: Geometry,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    mean_average_precision: bool = False,
) -> Report:
    """Evaluate what was embedded, each time with equal bits; a `UserError` if nothing can be measured.

    An image is excluded from its own neighbours; the geometry sets the distance. Recall@1 is measured in any case.
    """
    query_ids, gallery_ids = vectors.identities()
    with warnings.catch_warnings():
        # The notes of the sources name them already.
        warnings.simplefilter("ignore", LabelWarning)
        return evaluate(
            vectors.query_vectors,
            relevance_labels(vectors.query),
            [item.dataset for item in vectors.query],
            gallery=(
                vectors.gallery_vectors,
                relevance_labels(vectors.gallery),
                [item.dataset for item in vectors.gallery],
            ),
            ks=tuple(ks) if 1 in ks else (1, *ks),
            ids=query_ids,
            gallery_ids=gallery_ids,
            mean_average_precision=mean_average_precision,
            **distance_options(geometry),
        )


def relevance_labels(items: Sequence[Item]) -> list[Hashable]:
    """Return the labels of items for `evaluate`: sets for images that have several."""
    return [frozenset(item.labels) if item.labels else item.label for item in items]


def distance_options(geometry: Geometry) -> dict[str, Any]:
    """Return the keyword arguments of `evaluate` and `nearest_neighbours` for a geometry."""
    curvature = geometry.curvature if isinstance(geometry, PoincareBall) else PoincareBall.curvature
    return {"distance": geometry.distance, "curvature": curvature}


def have_positives(query: Sequence[Item], gallery: Sequence[Item]) -> list[bool]:
    """Return True for each query with another image of its class in the gallery."""
    members, searched = _members(gallery), set(item_identities(gallery))
    return [
        any(members[item.dataset, label] > (own in searched) for label in item.all_labels)
        for item, own in zip(query, item_identities(query), strict=True)
    ]


def _members(items: Sequence[Item]) -> Counter[tuple[str, str]]:
    return Counter((item.dataset, label) for item in items for label in item.all_labels)


def check_positives(query: Sequence[Item], gallery: Sequence[Item], *, strict: bool) -> None:
    """Check that some query, with ``strict`` each, has another image of its class in the gallery."""
    members = _members(gallery)
    if not strict and any(members[item.dataset, label] > 1 for item in query for label in item.all_labels):
        return  # without a look at the files
    missing = [item for item, found in zip(query, have_positives(query, gallery), strict=True) if not found]
    alone = len(missing) == len(query)
    if missing and (strict or alone):
        first = missing[0]
        remedy = "" if alone else ", or leave out --strict to count them"
        raise UserError(
            f"{first.path}: the gallery holds no other image of its class {first.label!r} of {first.dataset!r}, as of "
            f"{len(missing)} of {len(query)} queries: add images of these classes{remedy}"
        )
