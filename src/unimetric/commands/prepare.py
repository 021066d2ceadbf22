"""Prepare the images of some sources: resize them once into a cache that training, evaluation and embedding read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

from unimetric.data.cache import CacheKind
from unimetric.data.images import ImageError
from unimetric.data.loading import worker_count
from unimetric.data.preparing import Prepared, check_kind, prepare_cache
from unimetric.data.sources import read_sources
from unimetric.data.sources.unusable import unusable_files
from unimetric.errors import UserError
from unimetric.files import check_writable
from unimetric.progress import progress_bar


def prepare_sources(
    sources: Sequence[str],
    out: Path,
    *,
    side: int = 256,
    format: str = "jpeg",
    workers: int | Literal["auto"] = "auto",
    strict: bool = False,
) -> Prepared:
    """Bring a cache up to date with the images of sources, under a progress bar; see `prepare_cache`.

    Args:
        sources: As in `DataConfig.sources`; a folder may also hold images without class folders.
        out: The cache's folder; made if it is missing.
        side: The shorter side in pixels that larger images are reduced to.
        format: ``jpeg`` or ``raw``.
        workers: How many images to prepare at a time.
        strict: Stop at the first image that cannot be read.

    Raises:
        UserError: a source cannot be read, none of its images can, or the cache cannot be written.
    """
    if workers != "auto" and workers < 1:
        raise UserError(f"--workers is {workers}: use auto, or 1 or more")
    kind = CacheKind(side, format)
    check_kind(kind)
    check_writable(out)
    datasets = read_sources(sources, classes=False)
    paths = [item.path for dataset in datasets for item in dataset.items]
    unusable = [ImageError(entry.reason, entry.path) for entry in unusable_files(datasets, strict)]
    with progress_bar() as bar:
        task = bar.add_task("Preparing", total=len(paths), note="")
        prepared = prepare_cache(
            paths,
            out,
            kind,
            threads=worker_count(workers),
            strict=strict,
            on_read=lambda read: bar.update(task, completed=read),
        )
        bar.update(task, completed=len(paths))
    if paths and len(prepared.refused) and not prepared.written and not prepared.unchanged:
        raise UserError(f"none of {len(paths)} images can be read; the first is {prepared.refused[0]}")
    return replace(prepared, refused=(*prepared.refused, *unusable))
