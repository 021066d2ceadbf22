"""Resize the images of some sources once, into a cache for training, evaluation and embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from unimetric.arguments import PositiveInt
from unimetric.errors import UserError, escaped
from unimetric.files import check_writable

if TYPE_CHECKING:
    from unimetric.data.preparing import Prepared


def prepare(
    sources: list[str],
    *,
    out: Path,
    side: PositiveInt = 256,
    format: Literal["jpeg", "raw"] = "jpeg",
    workers: PositiveInt | Literal["auto"] = "auto",
    strict: bool = False,
) -> int:
    """Resize images once into a cache, for faster training.

    Images that the cache holds unchanged are skipped; a command that was stopped continues.

    Args:
        sources: Folders of images or of class folders, manifests, benchmark datasets.
        out: Folder of the cache.
        side: Shorter side in pixels of the stored images; use 8/7 of the model's input.
        format: raw is exact and fast, and takes about ten times the disk space of jpeg.
        workers: Threads; auto is one per core, at most 8.
        strict: Stop at an unreadable image instead of skipping it.
    """
    from unimetric.progress import log_status

    try:
        prepared = prepare_sources(sources, out, side=side, format=format, workers=workers, strict=strict)
    except KeyboardInterrupt:
        log_status("unimetric: stopped, what was written is kept; run the same command again to continue")
        return 130
    for error in prepared.refused:
        log_status(f"skipped {escaped(error)}")
    log_status(
        f"{prepared.written} images written, {prepared.unchanged} unchanged; {len(prepared.refused)} files skipped."
        f" {prepared.images} images are in {out}: {prepared.bytes:,} bytes on the disk, for {prepared.source_bytes:,} "
        "bytes of image files."
    )
    log_status(f"To use them: --data.cache {out} for train and evaluate, --cache {out} for embed.")
    return 0


def prepare_sources(
    sources: Sequence[str],
    out: Path,
    *,
    side: int = 256,
    format: Literal["jpeg", "raw"] = "jpeg",
    workers: int | Literal["auto"] = "auto",
    strict: bool = False,
) -> Prepared:
    """Bring a cache up to date with the images of sources, under a progress bar; see `prepare_cache`.

    Args:
        sources: As in `DataConfig.sources`; a folder may also hold images without class folders.
        out: The cache's folder; made if it is missing.
        side: The shorter side in pixels that larger images are reduced to.
        format: ``jpeg`` or ``raw``.
        workers: Images to prepare at a time.
        strict: Stop at the first image that cannot be read.

    Raises:
        UserError: a source cannot be read, none of its images can, or the cache cannot be written.
    """
    from unimetric.data.cache import CacheKind
    from unimetric.data.images import ImageError
    from unimetric.data.loading import worker_count
    from unimetric.data.preparing import prepare_cache
    from unimetric.data.sources import read_sources
    from unimetric.data.sources.unusable import unusable_files
    from unimetric.progress import progress_bar

    kind = CacheKind(side, format)
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
