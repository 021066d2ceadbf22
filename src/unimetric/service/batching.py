"""One thread that runs the model, on batches of the images that have arrived."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

    from unimetric.models.ensemble import QueryModel

log = logging.getLogger(__name__)

_GATHERING_SECONDS = 0.002
"""Maximum time that a batch waits for images that are being decoded."""

Vector = NDArray[np.float32]


@dataclass(frozen=True)
class _Job:
    pixels: Tensor
    future: Future[Vector]
    can_wait: Callable[[], bool]


class Batcher:
    """Batching of images from many threads, which are embedded together.

    It makes the embedder's inference form once; other threads may use the embedder at the same time.

    Args:
        load: Loads the model; called in the thread that will run it.
        precision: As in `Embedder.encode`.
        batch_size: Images per forward pass, at most.
        on_batch: Called with the number of images and the seconds of every batch.
        on_failure, on_ready: Called when the model cannot be loaded, or is loaded.
    """

    def __init__(
        self,
        load: Callable[[], QueryModel],
        *,
        precision: str = "auto",
        batch_size: int = 16,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
        on_failure: Callable[[BaseException], None] = lambda error: None,
        on_ready: Callable[[], None] = lambda: None,
    ) -> None:
        self._load = load
        self._precision = precision
        self._batch_size = batch_size
        self._on_batch = on_batch
        self._on_failure = on_failure
        self._on_ready = on_ready
        self._changed = threading.Condition()
        self._jobs: list[_Job] = []
        self._expected = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.embedder: QueryModel | None = None
        """The model, once it is loaded and has run for the first time."""

    @property
    def ready(self) -> bool:
        """True while images are embedded."""
        return self.embedder is not None and not self._stopping

    def start(self) -> None:
        """Start the thread, which loads the model first."""
        # A daemon, so that a second Ctrl-C ends the process even during a forward pass.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, seconds: float | None = None) -> None:
        """Embed all waiting images, then end, and release the model; give a model up that takes more ``seconds``."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(seconds)
        self.embedder = None

    def submit(self, pixels: Tensor, can_wait: Callable[[], bool] = lambda: False) -> Future[Vector]:
        """Queue an image from ``transform.crop``, and return the future of its vector [E].

        A future that is cancelled in time is not computed. Images that can wait are embedded after all others.
        """
        future: Future[Vector] = Future()
        with self._changed:
            if self._stopping:
                raise RuntimeError("the model was stopped")
            self._jobs = [job for job in self._jobs if not job.future.cancelled()]
            self._jobs.append(_Job(pixels, future, can_wait))
            self._changed.notify_all()
        return future

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """Announce an image, for which a batch may wait a moment."""
        self._expect(1)
        try:
            yield
        finally:
            self._expect(-1)

    def _expect(self, more: int) -> None:
        with self._changed:
            self._expected += more
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            embedder = self._load()
            form = embedder.inference_form(self._precision)
            # The first pass is the slowest, and fails here if memory is short.
            form.embed_pixels([embedder.transform.crop(Image.new("RGB", (8, 8)))])
        except BaseException as error:
            self._on_failure(error)
            return
        self.embedder = embedder
        self._on_ready()
        while not (self._stopping and not self._jobs):
            self._serve(form.embed_pixels)

    def _serve(self, embed: Callable[[list[Tensor]], Vector]) -> None:
        batch = [job for job in self._gather() if job.future.set_running_or_notify_cancel()]
        if not batch:
            return
        started = time.perf_counter()
        try:
            vectors = embed([job.pixels for job in batch])
        # Every waiting request gets the error; the next batch may succeed.
        except Exception as error:
            log.exception("the model failed on a batch of %d images", len(batch))
            for job in batch:
                job.future.set_exception(error)
            return
        for vector, job in zip(vectors, batch, strict=True):
            job.future.set_result(vector)
        self._on_batch(len(batch), time.perf_counter() - started)

    def _gather(self) -> list[_Job]:
        """Wait for images and return a batch; an empty one when the thread has to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopping)
            until = time.monotonic() + _GATHERING_SECONDS
            while self._jobs and self._expected and len(self._jobs) < self._batch_size and not self._stopping:
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            self._jobs.sort(key=lambda job: job.can_wait())
            batch, self._jobs = self._jobs[: self._batch_size], self._jobs[self._batch_size :]
            return batch
