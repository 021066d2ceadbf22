"""One thread that owns the model, and runs it on whatever images have gathered."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

    from unimetric.models.embedder import Embedder

log = logging.getLogger(__name__)

_GATHERING_SECONDS = 0.002
"""How long a batch waits for images that are being decoded; not at all where there are none."""

Vector = NDArray[np.float32]


class Batcher:
    """Embeds images from many threads in common batches.

    The model is the embedder's inference form, made once: other threads may use the embedder meanwhile.

    Args:
        load: Loads the model; called in the thread that will run it.
        precision: As in `Embedder.encode`.
        batch_size: Images per forward pass, at most.
        on_batch: Is told every batch's number of images and seconds.
        on_failure: Is told that the model could not be loaded.
        on_ready: Is told that it is.
    """

    def __init__(
        self,
        load: Callable[[], Embedder],
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
        self._jobs: deque[tuple[Tensor, Future[Vector]]] = deque()
        self._expected = 0
        self._stopping = False
        self._thread: threading.Thread | None = None
        self.embedder: Embedder | None = None
        """The model, once it is loaded and has run for the first time."""

    @property
    def ready(self) -> bool:
        """Whether images are embedded now."""
        return self.embedder is not None and not self._stopping

    def start(self) -> None:
        """Load the model and begin."""
        # A daemon, so that a second Ctrl-C ends the process whatever the model is doing.
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Embed what is waiting, then end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def submit(self, pixels: Tensor) -> Future[Vector]:
        """The vector [E], in time, of an image as ``transform.crop`` gives it. Cancelled, it is not computed."""
        future: Future[Vector] = Future()
        with self._changed:
            if self._stopping:
                raise RuntimeError("the model was stopped")
            self._jobs.append((pixels, future))
            self._changed.notify_all()
        return future

    @contextmanager
    def expecting(self) -> Iterator[None]:
        """An image is on its way: a batch may wait for it a moment."""
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
            # The first pass takes longer than all others, and finds out whether there is memory enough.
            form.embed_pixels([_blank(embedder)])
        except BaseException as error:
            self._on_failure(error)
            return
        self.embedder = embedder
        self._on_ready()
        while not (self._stopping and not self._jobs):
            self._serve(form.embed_pixels)

    def _serve(self, embed: Callable[[list[Tensor]], Vector]) -> None:
        batch = [(pixels, future) for pixels, future in self._gather() if future.set_running_or_notify_cancel()]
        if not batch:
            return
        started = time.perf_counter()
        try:
            vectors = embed([pixels for pixels, _ in batch])
        # Whatever it is, those who wait have to hear of it, and the next batch may work.
        except Exception as error:
            log.exception("the model failed on a batch of %d images", len(batch))
            for _, future in batch:
                future.set_exception(error)
            return
        for vector, (_, future) in zip(vectors, batch, strict=True):
            future.set_result(vector)
        self._on_batch(len(batch), time.perf_counter() - started)

    def _gather(self) -> list[tuple[Any, Future[Vector]]]:
        """Wait for images; nothing comes when the thread has to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or self._stopping)
            until = time.monotonic() + _GATHERING_SECONDS
            while self._jobs and self._expected and len(self._jobs) < self._batch_size and not self._stopping:
                if (left := until - time.monotonic()) <= 0:
                    break
                self._changed.wait(left)
            return [self._jobs.popleft() for _ in range(min(len(self._jobs), self._batch_size))]


def _blank(embedder: Embedder) -> Tensor:
    from PIL import Image

    return embedder.transform.crop(Image.new("RGB", (8, 8)))
