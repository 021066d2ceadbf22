"""`unimetric embed` into shards: plan the work, skip finished shards, make the rest, account for all images."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from unimetric.bulk.work_units import WorkUnit, digest, plan
from unimetric.bulk.worker import Done, Job, ShardOptions, Worker
from unimetric.errors import UserError
from unimetric.files import csv_text
from unimetric.formats.shards import ShardsInfo, Skipped, begin, read_skipped
from unimetric.models.devices import choose_device, choose_precision
from unimetric.models.saving import model_fingerprint, read_model_config
from unimetric.models.sizes import check_size, sized_fingerprint
from unimetric.models.source import ModelSource
from unimetric.progress import console, log_status, progress_bar
from unimetric.storage import objects as storage

SKIPPED_FILE = "skipped.csv"


@dataclass(frozen=True)
class Embedded:
    """State of a folder of shards."""

    finished: int
    """Finished shards."""
    shards: int
    """All shards."""
    rows: int
    skipped: tuple[Skipped, ...]


def embed_shards(model: ModelSource, sources: Sequence[str], out: str, options: ShardOptions) -> Embedded:
    """Embed sources into a folder of shards that every machine reaches; finished shards are kept.

    The model has the same path on every machine, and sources are as for `plan`. Rows and skipped images of the result
    are those of all finished shards.

    Raises:
        UserError: the model, a source or ``shard`` cannot be used, the folder holds another run's shards, or all
            images are unreadable.
    """
    device, batch_size = model.device, options.batch_size
    index, count = _shard(options.shard)
    folder, config = read_model_config(model.folder)
    # Whole batches, so that the plain command has the same ones.
    units = plan(sources, -(-options.shard_rows // batch_size) * batch_size)
    precision: str = device.precision
    if options.engine != "ray":
        precision = choose_precision(precision, choose_device(device.accelerator))
    size = config["embedding_size"] if model.size is None else model.size
    check_size(size, config, str(model.path))
    fingerprint = sized_fingerprint(model_fingerprint(config), config, size)
    info = ShardsInfo(fingerprint, size, precision, batch_size, options.thumbnails, len(units), digest(units))
    local = storage.local_path(out)
    out = str(local.absolute()) if local is not None else out.rstrip("/")
    finished = begin(out, info)
    missing = [unit for unit in units[index - 1 :: count] if unit.name not in finished]
    if missing:
        weights = model.weights_file
        place = replace(model, path=folder.resolve(), weights=None if weights is None else str(Path(weights).resolve()))
        _make(Job(place, out, str(Path.cwd()), fingerprint, precision, options), missing)
    return _summary(out, units)


def _make(job: Job, units: Sequence[WorkUnit]) -> None:
    if job.options.engine == "ray":
        # Needs the extra scale, and is slow to import.
        from unimetric.bulk.ray_engine import make_shards

        done: Iterable[Done] = make_shards(job, units)
    else:
        done = map(Worker(job).make, units)
    rows = 0
    with progress_bar() as bar:
        task = bar.add_task("Shards", total=len(units), note="")
        for number, shard in enumerate(done, start=1):
            rows += shard.rows
            bar.update(task, completed=number, note=f"{rows} images")
            if not console.is_terminal:
                log_status(f"{shard.name} is written: {shard.rows} images; {number} of {len(units)} shards")


def _summary(out: str, units: Sequence[WorkUnit]) -> Embedded:
    present = {os.path.basename(file) for file in storage.list_files(out, recursive=False)}  # noqa: PTH119 (or a URI)
    rows, finished = 0, 0
    skipped: list[Skipped] = []
    for unit in units:
        if unit.name in present:
            count, entries = read_skipped(storage.join(out, unit.name))
            rows, finished = rows + count, finished + 1
            skipped += entries
    if finished == len(units):
        text = csv_text([("path", "reason"), *((entry.path, entry.reason) for entry in skipped)])
        storage.write_whole(storage.join(out, SKIPPED_FILE), text.encode("utf-8", "backslashreplace"))
        if skipped and not rows:
            first = skipped[0]
            raise UserError(f"none of {len(skipped)} images can be read; the first is {first.path}: {first.reason}")
    return Embedded(finished, len(units), rows, tuple(skipped))


def _shard(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard is {text!r}: write I/N with I from 1 to N, as in 3/16")
    return int(match[1]), int(match[2])
