"""A worker: one model that embeds one unit after another."""

import hashlib
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from unimetric.bulk.reading import Source, sources
from unimetric.bulk.work_units import WorkUnit
from unimetric.data.images import ImageError, decode_image, split_box
from unimetric.errors import UserError
from unimetric.formats.shards import Row, Skipped, write_shard
from unimetric.models.saving import model_fingerprint, read_model_config
from unimetric.models.sizes import sized_fingerprint
from unimetric.models.source import ModelSource
from unimetric.search.preparation import Prepared, jpeg, prepare_all, with_box_hash
from unimetric.storage import objects as storage


@dataclass(frozen=True)
class ShardOptions:
    """Work of one ``unimetric embed`` into shards; that command describes its options."""

    engine: str = "plain"
    shard: str = "1/1"
    workers: int | None = None
    shard_rows: int = 8192
    batch_size: int = 32
    thumbnails: bool = False
    strict: bool = False


@dataclass(frozen=True)
class Job:
    """Settings of all workers; paths are those of the worker's machine.

    Attributes:
        out: The folder of the shards.
        base: The folder that relative paths of images start from.
        fingerprint: The model's.
        precision: That of the device, with ``auto`` replaced where all workers run on this machine.
        threads: Threads of a worker, or 0 for torch's own choice.
    """

    model: ModelSource
    out: str
    base: str
    fingerprint: str
    precision: str
    options: ShardOptions
    threads: int = 0


@dataclass(frozen=True)
class Done:
    """A finished shard."""

    name: str
    rows: int


class Worker:
    """A loaded model that makes shards; a `UserError` if it cannot be loaded, or is not the job's."""

    def __init__(self, job: Job) -> None:
        self.job = job
        if job.threads:
            torch.set_num_threads(job.threads)
        # The model's file may differ between machines.
        _, config = read_model_config(job.model.folder)
        found = sized_fingerprint(model_fingerprint(config), config, job.model.size)
        if found != job.fingerprint:
            raise UserError(
                f"the model {job.model.path} differs on this machine (fingerprint {found[:12]}, not "
                f"{job.fingerprint[:12]}); copy it again"
            )
        self._embedder = job.model.load()

    def make(self, unit: WorkUnit) -> Done:
        """Embed a unit and write its shard; a `UserError` if it cannot, or with ``strict`` at an unreadable image."""
        rows: list[Row] = []
        vectors = [np.empty((0, self._embedder.embedding_size), np.float32)]
        skipped: list[Skipped] = []
        form = self._embedder.inference_form(self.job.precision)
        outcomes = prepare_all(
            sources(unit), self._prepare, threads=max(1, torch.get_num_threads()), ahead=self.job.options.batch_size
        )
        # Batches count unreadable images, as in `Embedder.encode_batches`, so that vectors are the same to the bit.
        while batch := list(islice(outcomes, self.job.options.batch_size)):
            pixels: list[Tensor] = []
            for source, prepared in batch:
                if isinstance(prepared, ImageError):
                    if self.job.options.strict:
                        raise UserError(
                            f"{source.path}: {prepared.reason}; remove it from the list, or replace the file"
                        )
                    skipped.append(Skipped(source.path, prepared.reason))
                elif prepared.pixels is not None:
                    row = Row(source.path, source.label, source.dataset, prepared.content_hash, prepared.thumbnail)
                    rows.append(row)
                    pixels.append(prepared.pixels)
            vectors.append(form.embed_pixels(pixels))
        place = storage.join(self.job.out, unit.name)
        write_shard(place, rows, np.concatenate(vectors), skipped, self.job.fingerprint, self.job.base)
        return Done(unit.name, len(rows))

    def _prepare(self, source: Source) -> Prepared:
        content = source.read(Path(self.job.base))
        image: Image.Image = decode_image(content, name=source.path)
        thumbnail = jpeg(image) if self.job.options.thumbnails else None
        digest = with_box_hash(hashlib.sha256(content).hexdigest(), split_box(Path(source.path))[1])
        return Prepared(digest, self._embedder.transform.crop(image), thumbnail)
