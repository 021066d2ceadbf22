"""Resize the images of some sources once, into a cache for training, evaluation and embedding."""

from pathlib import Path
from typing import Literal

from unimetric.arguments import PositiveInt
from unimetric.config_values import require_workers
from unimetric.errors import UserError, escaped
from unimetric.files import check_writable


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
        side: Shorter side in pixels of the stored images. Use 8/7 of the model's input or more.
        format: raw is exact and faster to read, but about ten times as large.
        workers: Threads; auto is one per core, at most 8.
        strict: Stop at an unreadable image instead of skipping it.
    """
    from unimetric.data.cache import CacheKind
    from unimetric.data.loading import worker_count
    from unimetric.data.preparing import prepare_cache
    from unimetric.data.sources import read_sources
    from unimetric.data.sources.tree import unusable_files
    from unimetric.progress import log_status, progress_bar

    require_workers("workers", workers, 1)
    check_writable(out)
    try:
        datasets = read_sources(sources, classes=False)
        paths = [item.path for dataset in datasets for item in dataset.items]
        unusable = unusable_files(datasets, strict)
        with progress_bar() as bar:
            task = bar.add_task("Preparing", total=len(paths), note="")
            prepared = prepare_cache(
                paths,
                out,
                CacheKind(side, format),
                threads=worker_count(workers),
                strict=strict,
                on_read=lambda read: bar.update(task, completed=read),
            )
            bar.update(task, completed=len(paths))
    except KeyboardInterrupt:
        log_status("unimetric: stopped, what was written is kept; run the same command again to continue")
        return 130
    if paths and len(prepared.refused) and not prepared.written and not prepared.unchanged:
        raise UserError(f"none of {len(paths)} images can be read; the first is {prepared.refused[0]}")
    skipped = [*map(str, prepared.refused), *(f"{entry.path}: {entry.reason}" for entry in unusable)]
    for line in skipped:
        log_status(f"skipped {escaped(line)}")
    log_status(
        f"{prepared.written} images written, {prepared.unchanged} unchanged; {len(skipped)} files skipped."
        f" {prepared.images} images are in {out}: {prepared.bytes:,} bytes on the disk, for {prepared.source_bytes:,} "
        "bytes of image files."
    )
    log_status(f"To use them: --data.cache {out} for train and evaluate, --cache {out} for embed.")
    return 0
