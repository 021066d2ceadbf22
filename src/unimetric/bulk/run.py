"""`unimetric embed` into fragments: plan, skip what is finished, have the rest made, account for all images."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from unimetric.bulk import storage
from unimetric.bulk.fragments import About, Skipped, begin, read_skipped
from unimetric.bulk.pieces import Piece, digest, plan
from unimetric.bulk.worker import Done, Job, Worker
from unimetric.errors import UserError
from unimetric.models.devices import choose_device, choose_precision
from unimetric.models.saving import model_fingerprint, read_model_config
from unimetric.models.source import ModelSource
from unimetric.progress import console, progress_bar, say

SKIPPED_FILE = "skipped.csv"


@dataclass(frozen=True)
class Embedded:
    """How far the fragments of a folder are."""

    finished: int
    """Fragments that are there."""
    fragments: int
    """Fragments that there will be."""
    rows: int
    skipped: tuple[Skipped, ...]


def embed_fragments(
    model: ModelSource,
    sources: Sequence[str],
    out: str,
    *,
    engine: str = "plain",
    shard: str = "1/1",
    workers: int | None = None,
    fragment_rows: int = 8192,
    batch_size: int = 32,
    thumbnails: bool = False,
    strict: bool = False,
) -> Embedded:
    """Embed sources into a folder of fragments; those that are there already are kept.

    Args:
        model: The model, under the same path on every machine.
        sources: As for `plan`.
        out: A folder or a URI that every machine reaches.
        engine: ``ray``, or ``plain`` for this process alone.
        shard: ``I/N``: of every N fragments, this run makes the I-th.
        workers: Models at once, for ``ray``.
        fragment_rows: Images per fragment, at most; rounded up to whole batches.
        batch_size: Images per forward pass.
        thumbnails: Whether to keep thumbnails.
        strict: Stop at the first image that cannot be read.

    Returns:
        How far the folder is; rows and skipped images are those of all fragments that are there.

    Raises:
        UserError: the model, a source or an option cannot be used, the folder holds another run's fragments, or all
            images are unreadable.
    """
    device = model.device
    index, count = _shard(shard)
    if batch_size < 1:
        raise UserError(f"--batch_size is {batch_size}: use 1 or more")
    if fragment_rows < 1:
        raise UserError(f"--fragment_rows is {fragment_rows}: use 1 or more")
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}: use 1 or more")
    folder, config = read_model_config(model.folder)
    weights = model.weights_file
    # Whole batches, so that they are those of the plain command.
    pieces = plan(sources, -(-fragment_rows // batch_size) * batch_size)
    precision = (
        device.precision if engine == "ray" else choose_precision(device.precision, choose_device(device.accelerator))
    )
    fingerprint = model_fingerprint(config)
    about = About(fingerprint, config["embedding_size"], precision, batch_size, thumbnails, len(pieces), digest(pieces))
    local = storage.local_path(out)
    out = str(local.absolute()) if local is not None else out.rstrip("/")
    finished = begin(out, about)
    missing = [piece for piece in pieces[index - 1 :: count] if piece.name not in finished]
    job = Job(
        str(folder.resolve()),
        None if weights is None else str(Path(weights).resolve()),
        out,
        str(Path.cwd()),
        fingerprint,
        precision,
        device.accelerator,
        batch_size,
        0,
        thumbnails,
        strict,
    )
    if missing:
        _make(job, missing, engine, workers)
    return _summary(out, pieces)


def _make(job: Job, pieces: Sequence[Piece], engine: str, workers: int | None) -> None:
    if engine == "ray":
        # An extra, and slow to import.
        from unimetric.bulk.ray_engine import make_fragments

        done: Iterable[Done] = make_fragments(job, pieces, workers)
    else:
        done = _make_here(job, pieces)
    rows = 0
    with progress_bar() as bar:
        task = bar.add_task("Fragments", total=len(pieces), note="")
        for number, fragment in enumerate(done, start=1):
            rows += fragment.rows
            bar.update(task, completed=number, note=f"{rows} images")
            if not console.is_terminal:
                say(f"{fragment.name} is written: {fragment.rows} images; {number} of {len(pieces)} fragments")


def _make_here(job: Job, pieces: Sequence[Piece]) -> Iterator[Done]:
    worker = Worker(job)
    for piece in pieces:
        yield worker.make(piece)


def _summary(out: str, pieces: Sequence[Piece]) -> Embedded:
    present = {os.path.basename(file) for file in storage.list_files(out, recursive=False)}  # noqa: PTH119 (or a URI)
    rows, finished = 0, 0
    skipped: list[Skipped] = []
    for piece in pieces:
        if piece.name in present:
            count, entries = read_skipped(storage.join(out, piece.name))
            rows, finished = rows + count, finished + 1
            skipped += entries
    if finished == len(pieces):
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["path", "reason"])
        writer.writerows((entry.path, entry.reason) for entry in skipped)
        storage.write_whole(storage.join(out, SKIPPED_FILE), text.getvalue().encode("utf-8", "backslashreplace"))
        if skipped and not rows:
            first = skipped[0]
            raise UserError(f"none of {len(skipped)} images can be read; the first is {first.path}: {first.reason}")
    return Embedded(finished, len(pieces), rows, tuple(skipped))


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard is {text!r}: write I/N with I from 1 to N, as in 3/16")
    return int(match[1]), int(match[2])
