"""Indexing of a served folder of images in the background, while searches are answered from what is indexed so far."""

import logging
import shlex
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Literal

from unimetric.errors import UserError
from unimetric.progress import log_status
from unimetric.search.index import SearchIndex
from unimetric.search.indexing import index_items, source_items
from unimetric.search.items import Refused
from unimetric.search.writing import CommitRule, Progress

log = logging.getLogger(__name__)

SKIPPED_SHOWN = 100
"""Skipped files that a state names, at most."""

RULE = CommitRule(rows=1024, seconds=5.0)
"""More often than for a command, since searches wait for the images."""

_BATCH = 8
"""Images per forward pass: a search waits for the arithmetic of at most one of them."""


@dataclass(frozen=True)
class IndexingState:
    """Progress of the indexing of the served folder."""

    phase: Literal["waiting", "reading", "indexing", "done", "failed", "stopped"] = "waiting"
    """waiting (for the model), reading (the folder), indexing, done, failed or stopped."""
    done: int = 0
    """Images that were looked at."""
    total: int | None = None
    """All images; null until the folder was read."""
    written: int = 0
    """New or changed images that can be found by now."""
    seconds_left: float | None = None
    """Estimated time left; null where there is no estimate."""
    skipped: tuple[Refused, ...] = ()
    """Files that cannot be read, at most 100."""
    skipped_total: int = 0
    """Number of files that cannot be read."""
    problem: str | None = None
    """Reason of a failure."""
    folder: str = ""
    """The folder, or another source."""
    train_command: str | None = None
    """The command that trains a model on the folder, for better answers; null where its images have fewer than two
    classes, or the model is trained."""


class FolderIndexer:
    """Brings a database up to date with a folder, in a thread that shares the model with the searches.

    What was committed survives a stop, and the next start goes on from there.

    Args:
        folder: Folder of images, or another source.
        trained: The model was trained, so no advice to train is given.
        rule: When images that are done can be found.
        on_failure: Called in the thread with an error that leaves the database empty.
        on_state: Called in the thread whenever the state has changed.
    """

    def __init__(
        self,
        index: SearchIndex,
        folder: str,
        *,
        trained: bool = False,
        rule: CommitRule = RULE,
        on_failure: Callable[[BaseException], None] = lambda error: None,
        on_state: Callable[[IndexingState], None] = lambda state: None,
    ) -> None:
        self.state = IndexingState(folder=folder)
        self._folder = folder
        self._index, self._trained, self._rule = index, trained, rule
        self._on_failure, self._on_state = on_failure, on_state
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="folder", daemon=True)
        self._unusable: list[Refused] = []
        self._refused: Mapping[str, Refused] = {}

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, seconds: float | None = None) -> None:
        """End the thread after the batch that it works on. Images since the last commit are embedded again later.

        It is given up after so many ``seconds``, since a folder on a network may not answer, and an index takes time.
        """
        self._stopping.set()
        if self.is_running:
            self._thread.join(seconds)

    @property
    def is_running(self) -> bool:
        """True while the thread runs."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            self._bring_up_to_date()
        except _StoppingError:
            self._change(phase="stopped", seconds_left=None)
        except UserError as error:
            self._fail(error, str(error))
        # The service keeps answering from the rows that there are; the log has the reason.
        except Exception as error:
            log.exception("the folder %s could not be indexed", self._folder)
            self._fail(error, "an internal error, which the service's log describes")

    def _bring_up_to_date(self) -> None:
        self._change(phase="reading")
        log_status(f"Indexing the images in {self._folder}; those that are done can be searched already.")
        items, self._unusable = source_items([self._folder])
        self._raise_if_stopping()
        command = None
        if not self._trained and len({item.label for item in items if item.label}) > 1:
            command = shlex.join(["unimetric", "train", self._folder, "--out", "runs/mine"])
        self._change(phase="indexing", total=len(items), train_command=command)
        indexed = index_items(
            self._index,
            items,
            batch_size=_BATCH,
            rule=self._rule,
            delete_missing=True,
            origin=self._folder,
            on_read=self._on_read,
        )
        self._index.optimise()
        self._change(phase="done", seconds_left=None, written=indexed.written)
        log_status(
            f"{self._folder} is indexed: {indexed.written} new or changed images, {indexed.unchanged} unchanged, "
            f"{indexed.deleted} gone; {self.state.skipped_total} files were skipped."
        )
        if command is not None:
            log_status(f"For better answers, train on these images: {command}")

    def _on_read(self, progress: Progress, total: int, left: float | None) -> None:
        self._raise_if_stopping()
        self._refused = progress.refused
        self._change(done=progress.read, total=total, written=progress.written, seconds_left=left)

    def _raise_if_stopping(self) -> None:
        if self._stopping.is_set():
            raise _StoppingError

    def _fail(self, error: BaseException, problem: str) -> None:
        self._change(phase="failed", seconds_left=None, problem=problem)
        if not self._index.count():
            self._on_failure(error)
            return
        log_status(
            f"{self._folder} could not be indexed: {problem}; start the service again to continue", style="yellow"
        )

    def _change(self, **changes: Any) -> None:
        # Called for every image, so no list of all that were skipped.
        skipped = tuple(islice(chain(self._unusable, self._refused.values()), SKIPPED_SHOWN))
        total = len(self._unusable) + len(self._refused)
        self.state = replace(self.state, skipped=skipped, skipped_total=total, **changes)
        self._on_state(self.state)


class _StoppingError(Exception):
    """Raised to unwind the indexing of a service that is being stopped."""
