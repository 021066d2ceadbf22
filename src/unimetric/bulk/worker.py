"""A worker: one model that embeds one unit after another."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
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
from unimetric.models.devices import choose_device
from unimetric.models.embedder import Embedder
from unimetric.search.preparation import Outcome, Prepared, jpeg, prepare_all, with_box_hash
from unimetric.storage import objects as storage


@dataclass(frozen=True)
class Job:
    """Settings of all workers; paths are those of the worker's machine.

    Attributes:
        model: A run folder or a model folder.
        weights: The file of the backbone's weights, or None.
        out: The folder of the shards.
        base: The folder that relative paths of images start from.
        fingerprint: The model's.
        precision: As for `Embedder.encode`.
        accelerator: As for `choose_device`.
        batch_size: Images per forward pass.
        threads: Threads of a worker, or 0 for torch's own choice.
        thumbnails: Keep thumbnails.
        strict: Refuse unreadable images.
        size: Numbers of a vector; None for all.
    """

    model: str
    weights: str | None
    out: str
    base: str
    fingerprint: str
    precision: str
    accelerator: str
    batch_size: int
    threads: int
    thumbnails: bool
    strict: bool
    size: int | None = None

    def to_json(self) -> str:
        """Return the job as JSON."""
        return json.dumps(asdict(self))


@dataclass(frozen=True)
class Done:
    """A finished shard."""

    name: str
    rows: int
    skipped: int


class Worker:
    """A loaded model that makes shards.

    Raises:
        UserError: the model cannot be loaded, or is not the job's.
    """

    def __init__(self, job: Job) -> None:
        # Check the fingerprint, since the model's file may differ between machines.
        from unimetric.models.saving import model_fingerprint, read_model_config
        from unimetric.models.sizes import sized_fingerprint

        self.job = job
        if job.threads:
            torch.set_num_threads(job.threads)
        folder, config = read_model_config(Path(job.model))
        found = sized_fingerprint(model_fingerprint(config), config, job.size)
        if found != job.fingerprint:
            raise UserError(
                f"the model {job.model} differs on this machine (fingerprint {found[:12]}, not "
                f"{job.fingerprint[:12]}); copy it again"
            )
        self._embedder = Embedder.from_pretrained(folder, weights=job.weights, size=job.size).to(
            choose_device(job.accelerator)
        )

    def make(self, unit: WorkUnit) -> Done:
        """Embed a unit and write its shard.

        Raises:
            UserError: an image cannot be read and the job is strict, or the shard cannot be written.
        """
        rows: list[Row] = []
        vectors = [np.empty((0, self._embedder.embedding_size), np.float32)]
        skipped: list[Skipped] = []
        form = self._embedder.inference_form(self.job.precision)
        outcomes = prepare_all(
            sources(unit), self._prepare, threads=max(1, torch.get_num_threads()), ahead=self.job.batch_size
        )
        # Batches count unreadable images, as in `Embedder.encode_batches`, so that vectors are the same to the bit.
        for batch in _batches(outcomes, self.job.batch_size):
            pixels: list[Tensor] = []
            for outcome in batch:
                source, prepared = outcome.task, outcome.prepared
                if isinstance(prepared, ImageError):
                    if self.job.strict:
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
        return Done(unit.name, len(rows), len(skipped))

    def _prepare(self, source: Source) -> Prepared:
        content = source.read(Path(self.job.base))
        image: Image.Image = decode_image(content, name=source.path)
        thumbnail = jpeg(image) if self.job.thumbnails else None
        digest = with_box_hash(hashlib.sha256(content).hexdigest(), split_box(Path(source.path))[1])
        return Prepared(digest, self._embedder.transform.crop(image), thumbnail)


def _batches(outcomes: Iterable[Outcome[Source]], size: int) -> Iterator[list[Outcome[Source]]]:
    iterator = iter(outcomes)
    while batch := list(islice(iterator, size)):
        yield batch
