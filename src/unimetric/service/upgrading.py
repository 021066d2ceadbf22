"""A service that keeps answering while its database is upgraded to another model."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unimetric.errors import UserError
from unimetric.progress import log_status
from unimetric.search.index import SearchIndex
from unimetric.search.upgrade.state import UpgradeState, searched_version, upgrade_state
from unimetric.service.batching import Batcher

if TYPE_CHECKING:
    from unimetric.models.ensemble import QueryModel

log = logging.getLogger(__name__)

EVERY_SECONDS = 2.0
"""Time between two looks at the database."""

AGAIN_SECONDS = 60.0
"""Time until a model that could not be loaded is tried again."""


@dataclass(frozen=True)
class Model:
    """The vectors that are searched, and the thread that embeds queries for them."""

    index: SearchIndex
    batcher: Batcher


class Follower:
    """Takes over the vectors that a database is searched by, whenever they are replaced, without a stop.

    The new model is loaded beside the old one. Requests that have begun are finished with the old one, which is kept as
    long as a request may take.

    Args:
        open_index: Opens the database; with an embedder, if that is the model of its vectors already.
        make_batcher: Makes a `Batcher`, given ``load``, ``on_ready`` and ``on_failure``.
        keep_seconds: Time for which replaced models are kept.
    """

    def __init__(
        self,
        database: str,
        open_index: Callable[[QueryModel | None], SearchIndex],
        make_batcher: Callable[..., Batcher],
        keep_seconds: float,
        every_seconds: float = EVERY_SECONDS,
    ) -> None:
        self._database, self._open, self._make_batcher = database, open_index, make_batcher
        self._keep_seconds, self._every_seconds = keep_seconds, every_seconds
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._version = searched_version(database)
        self._replaced: list[tuple[float, Model, bool]] = []
        """The time to release a model, and whether the one after it has the same batcher; the earliest first."""

    @property
    def state(self) -> UpgradeState | None:
        """The state of the upgrade; None if none is under way."""
        return upgrade_state(self._database)

    def start(self, current: Callable[[], Model], use: Callable[[Model], None]) -> None:
        """Start the thread; ``current`` returns the model in use, and ``use`` puts another one into its place."""
        self._thread = threading.Thread(target=self._run, args=(current, use), name="upgrade", daemon=True)
        self._thread.start()

    @property
    def is_running(self) -> bool:
        """True while the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self, seconds: float | None = None) -> None:
        """End the thread, within so many ``seconds``, and release models that were replaced."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(seconds)
        if not self.is_running:
            self._release(math.inf)

    def _run(self, current: Callable[[], Model], use: Callable[[Model], None]) -> None:
        pause = self._every_seconds
        while not self._stopping.wait(pause):
            self._release(time.monotonic())
            pause = self._look(current, use)

    def _look(self, current: Callable[[], Model], use: Callable[[Model], None]) -> float:
        """Take over the database's vectors if they were replaced; return the seconds until the next look."""
        try:
            version = searched_version(self._database)
            if version == self._version:
                return self._every_seconds
            before = current()
            model = self._next(before)
        except UserError as error:
            log_status(f"warning: the upgraded database cannot be used yet: {error}", style="yellow")
            return AGAIN_SECONDS
        # The service keeps its present model; the log has the reason.
        except Exception:
            log.exception("the upgraded database %s cannot be used yet", self._database)
            return AGAIN_SECONDS
        if model is not None:
            self._version = version
            use(model)
            if model.batcher is not before.batcher:
                log_status(f"Queries are answered by {model.index.model} now.")
            self._replaced.append((time.monotonic() + self._keep_seconds, before, model.batcher is before.batcher))
        return self._every_seconds

    def _next(self, before: Model) -> Model | None:
        """Return the database's current model once it is loaded; None if the service stops meanwhile."""
        embedder = before.batcher.embedder
        index = self._open(None)
        same = index.fingerprint == before.index.fingerprint and index.embedding_size == before.index.embedding_size
        if embedder is not None and same:
            # The same model, with other thresholds.
            index.close()
            return Model(self._open(embedder), before.batcher)
        loaded: Future[None] = Future()
        batcher = self._make_batcher(
            lambda: index.embedder, on_ready=lambda: loaded.set_result(None), on_failure=loaded.set_exception
        )
        batcher.start()
        while not wait([loaded], 0.1).done:
            if self._stopping.is_set():
                return None
        if (failure := loaded.exception()) is not None:
            index.close()
            raise failure
        return Model(index, batcher)

    def _release(self, now: float) -> None:
        """Release the models that are no longer in use, to free their memory."""
        while self._replaced and self._replaced[0][0] <= now:
            _, before, shares_batcher = self._replaced.pop(0)
            if not shares_batcher:
                before.batcher.stop()
            before.index.close()
