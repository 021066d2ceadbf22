"""The upgrade of a database, from its start to its end; a step that was interrupted is resumed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from filelock import FileLock, Timeout

from unimetric.errors import UserError
from unimetric.models.source import ModelSource
from unimetric.search.conditions import Condition
from unimetric.search.errors import UnsupportedError
from unimetric.search.items import Refused
from unimetric.search.model import describe
from unimetric.search.scoring import vectors_of
from unimetric.search.stores import create_place, open_place
from unimetric.search.stores.base import Store, is_milvus, is_uri, location, portions
from unimetric.search.stores.lancedb import LanceStore
from unimetric.search.stores.live import place_of, read_live, vectors_name, write_live
from unimetric.search.upgrade.both import check_pair
from unimetric.search.upgrade.decision import Comparison, Gallery, compare
from unimetric.search.upgrade.embedding import RowEmbedder, UpgradeOptions
from unimetric.search.upgrade.maps import KINDS, LARGEST, FittedMap, fit_map
from unimetric.search.upgrade.moving import MOVED, Stores, copy_rows, move_again, with_columns
from unimetric.search.upgrade.thresholds import shifted

if TYPE_CHECKING:
    from unimetric.models.embedder import Embedder

GALLERY = 10_000
"""Rows, at most, among which the old and the new answers are compared."""


@dataclass(frozen=True)
class Upgraded:
    """The result of a run: True if the new vectors have replaced the old ones for good, the rows that the new model
    embedded, all rows, and those whose image cannot be read.
    """

    is_finished: bool
    embedded: int
    rows: int
    refused: tuple[Refused, ...]


@dataclass
class Upgrade:
    """A change of a database to another model.

    Args:
        root: The database.
        name: The name of the new set of vectors.
        log: Called with lines for the user.
        on_progress: Called after every commit with the rows that are embedded and all rows.
    """

    root: str
    stores: Stores
    name: str
    options: UpgradeOptions
    log: Callable[[str], None]
    on_progress: Callable[[int, int], None] = lambda done, rows: None
    _refused: dict[str, Refused] = field(default_factory=dict)
    _fitted_on: int = 0

    def run(self, embedder: Embedder) -> Upgraded:
        """Embed every row, and finish."""
        if self.options.live == "both":
            check_pair(self.stores.old, embedder)
        rows = RowEmbedder(self.stores, embedder, self.options)
        if not self.is_searched:
            self._prepare(rows)
        self._embed_rest(rows)
        return self._finish(rows)

    @property
    def is_searched(self) -> bool:
        """True once the new vectors are those that are searched."""
        return read_live(self.root).live == self.name

    def _prepare(self, rows: RowEmbedder) -> None:
        """Embed rows until the new vectors answer as well as the old ones, then search them."""
        target = self.options.sample
        while True:
            while (pending := self._pending(self.stores.old)) and (
                left := target - len(self.stores.embedded_ids())
            ) > 0:
                self._embed(rows, pending[: min(left, self.options.commit_rows)], is_searched=False)
            fitted = self._fit()
            compared = self._compare(fitted)
            self._report(fitted, compared)
            if self.options.live != "better" or not pending or compared.new_is_better:
                self._search_new(fitted, compared)
                return
            target = 2 * target

    def _embed_rest(self, rows: RowEmbedder) -> None:
        """Embed all other rows; the map is fitted anew whenever there are twice as many pairs."""
        # What the old model's users wrote before they were refused.
        copy_rows(self.stores, lambda vectors: self._fit().move(vectors), is_searched=True)
        while pending := self._pending(self.stores.new, MOVED):
            done = len(self.stores.embedded_ids())
            self._fitted_on = self._fitted_on or self.stores.new.about["upgrade"]["pairs"]
            if self._fitted_on < LARGEST and done >= 2 * self._fitted_on and done >= self.options.sample:
                fitted = self._fit()
                move_again(self.stores, fitted.move)
                self._record(fitted, self._compare(fitted))
            self._embed(rows, pending[: self.options.commit_rows], is_searched=True)

    def _embed(self, rows: RowEmbedder, ids: Sequence[str], *, is_searched: bool) -> None:
        before, total = len(self.stores.embedded_ids()), self.stores.old.count()
        refused = rows.embed(
            ids, is_searched=is_searched, on_commit=lambda done: self.on_progress(before + done.written, total)
        )
        for entry in refused.values():
            self.log(f"skipped {entry.path}: {entry.reason}")
        self._refused |= refused

    def _pending(self, store: Store, where: Condition | None = None) -> list[str]:
        """Return the ids of a set's rows that are to be embedded, in order."""
        ids, done = store.rows(["id"], where)["id"].to_pylist(), self.stores.embedded_ids()
        pending = [id for id in ids if id not in done and id not in self._refused]
        return by_class(self.stores.old.rows(["id", "dataset", "label"]), pending)

    def _fit(self) -> FittedMap:
        _, old, new = self.stores.pairs()
        self._fitted_on = max(1, len(old))
        if len(old):
            return fit_map(old, new)
        if self.stores.old.count():
            entry = next(iter(self._refused.values()), None)
            first = "" if entry is None else f"; the first is {entry.path}: {entry.reason}"
            raise UserError(f"none of the images of {self.root} can be read, so no vector can be moved{first}")
        # An empty database: there is nothing to move.
        size = self.stores.new.vector_size
        return FittedMap("orthogonal", lambda vectors: np.empty((len(vectors), size), np.float32), {})

    def _compare(self, fitted: FittedMap) -> Comparison:
        first, old, new = self.stores.pairs()
        # At most half of the gallery are queries; the other rows are those whose vectors are moved.
        first, old, new = first.slice(0, GALLERY // 2), old[: GALLERY // 2], new[: GALLERY // 2]
        ids = first["id"].to_pylist()
        others = sorted(set(self.stores.old.rows(["id"])["id"].to_pylist()) - set(ids))[: GALLERY - len(ids)]
        rest = self.stores.old.rows_of(others, ["id", "dataset", "label", "vector"])
        rows = [*first.to_pylist(), *rest.select(["dataset", "label"]).to_pylist()]
        classes = [(row["dataset"], row["label"]) if row["label"] else None for row in rows]
        vectors = np.concatenate([old, vectors_of(rest["vector"])])
        return compare(Gallery(vectors, classes, new), KINDS[fitted.kind], both=self.options.live == "both")

    def _report(self, fitted: FittedMap, compared: Comparison) -> None:
        alike = ", ".join(f"{name} {cosine:.2f}" for name, cosine in sorted(fitted.likeness.items()))
        self.log(
            f"{self._fitted_on} images are embedded by both models; the map is {fitted.kind}"
            + (f" (cosine with the true vectors: {alike})" if alike else "")
        )
        if compared.is_measured:
            others = f", both together {compared.both.mixed.recall:.3f}" if compared.both is not None else ""
            waits = self.options.live == "better" and not compared.new_is_better
            self.log(
                f"Recall@1 of {len(compared.old.genuine)} rows: the old model {compared.old.recall:.3f}, the new one "
                f"{compared.mixed.recall:.3f}{others}" + ("; the old one goes on answering" if waits else "")
            )

    def _search_new(self, fitted: FittedMap, compared: Comparison) -> None:
        """Move the vectors of all other rows, and make the new set the one that is searched."""
        self._record(fitted, compared)
        copy_rows(self.stores, fitted.move, is_searched=False)
        before = read_live(self.root)
        live = replace(before, live=self.name, preparing=None, previous=before.live)
        write_live(self.root, live)
        together = self.options.live == "both"
        self.log(f"{'Both models answer together' if together else 'The new model answers'} from now on.")

    def _record(self, fitted: FittedMap, compared: Comparison) -> None:
        """Record the map, and the thresholds of the mixture."""
        about = self.stores.new.read_about()
        upgrade = {
            **about["upgrade"],
            "map": fitted.kind,
            "pairs": self._fitted_on,
            "likeness": dict(fitted.likeness),
            "recall": {"old": compared.old.recall, "new": compared.mixed.recall} if compared.is_measured else None,
            "weight": None if compared.both is None else compared.both.weight,
        }
        calibration = upgrade["calibration"]
        if calibration is not None:
            share = 1 - min(1.0, len(self.stores.embedded_ids()) / max(1, self.stores.old.count()))
            by, before = compared.both or compared, compared.sample_new.impostors
            calibration = shifted(calibration, before, by.sample_moved.impostors, share)
            # The scores of embedded rows change as well where both models answer.
            calibration = shifted(calibration, before, by.sample_new.impostors, 1 - share)
            # Marked as the database's own, so that an index command keeps it.
            calibration = {**calibration, "database": True}
        self.stores.new.write_about({**about, "upgrade": upgrade, "calibration": calibration})

    def _finish(self, rows: RowEmbedder) -> Upgraded:
        moved = sorted(self.stores.new.rows(["id"], MOVED)["id"].to_pylist())
        refused = tuple(self._refused[id] for id in moved if id in self._refused)
        if moved and self.options.missing == "thumbnail":
            left = rows.embed(moved, is_searched=True, from_thumbnails=True)
            refused, moved = tuple(left.values()), sorted(left)
        elif moved and self.options.missing == "delete":
            # From the old set first: what it lacks does not come back.
            self.stores.old.delete_ids(moved)
            self.stores.new.delete_ids(moved)
            moved = []
        count = self.stores.new.count()
        done = count - len(moved)
        if moved and self.options.missing != "map":
            return Upgraded(False, done, count, refused)
        self._keep_thumbnails(moved)
        about = {name: value for name, value in self.stores.new.read_about().items() if name != "upgrade"}
        about["calibration"] = self.stores.new.about["upgrade"]["calibration"]
        self.stores.new.write_about(about)
        live = read_live(self.root)
        write_live(self.root, live.retiring(str(live.previous), previous=None))
        return Upgraded(True, done, count, refused)

    def _keep_thumbnails(self, ids: Sequence[str]) -> None:
        for some in portions(ids):
            rows = self.stores.new.rows_of(some, self.stores.new.column_names)
            old = self.stores.old.rows_of(some, ["id", "thumbnail"])
            thumbnails = old["thumbnail"].take(pc.index_in(rows["id"], value_set=old["id"].combine_chunks()))
            self.stores.new.merge(with_columns(rows, thumbnail=thumbnails), insert=False)


def by_class(rows: pa.Table, ids: Sequence[str]) -> list[str]:
    """Return ids in the order that helps most: one row of each class, then a second one of each, and so on.

    Within a class, and for rows without a label, the order is that of the ids, which are hashes: a random one. ``rows``
    has id, dataset and label of all rows.
    """
    places: dict[str, int] = {}
    counts: dict[tuple[str, str], int] = {}
    columns = (rows[name].to_pylist() for name in ("id", "dataset", "label"))
    for id, dataset, label in sorted(zip(*columns, strict=True)):
        places[id] = counts.get((dataset, label), 0) if label else 0
        counts[dataset, label] = places[id] + 1
    return sorted(ids, key=lambda id: (places.get(id, 0), id))


def start_upgrade(
    db: str | Path,
    source: ModelSource,
    *,
    metrics: str | Path | None = None,
    false_match_rate: float | None = None,
    options: UpgradeOptions | None = None,
    log: Callable[[str], None] = lambda line: None,
    on_progress: Callable[[int, int], None] = lambda done, rows: None,
) -> Upgrade:
    """Begin an upgrade of a database in a folder or in object storage, or take one up again.

    Measurement and rate are as for `SearchIndex.create`, the others as for `Upgrade`. Without a size, the source's is
    that of the database, if that has short vectors, else the model's own.

    Raises:
        UserError: the database has this model already, is being upgraded to another one, or one of the two models is
            hyperbolic.
    """
    root = location(db)
    live = read_live(root)
    going = live.preparing or (live.live if live.previous is not None else None)
    old = open_place(place_of(root, live.live if live.previous is None else live.previous))
    if source.size is None:
        begun = old if going is None else open_place(place_of(root, going))
        source = replace(source, size=begun.about["model"]["shortened_to"])
    about = describe(source, metrics, false_match_rate)
    fingerprint = about["model"]["fingerprint"]
    name = vectors_name(fingerprint)
    if going not in (None, name):
        other = open_place(place_of(root, str(going))).about["model"]["folder"]
        raise UserError(f"{root} is being upgraded to {other}: finish that with --model {other}, or --rollback")
    if old.about["model"]["fingerprint"] == fingerprint:
        raise UserError(f"{root} has the vectors of {source.path} already: there is nothing to upgrade")
    for side in (old.about["model"], about["model"]):
        if side["geometry"]["name"] == "poincare":
            raise UserError(
                f"{side['folder']} is hyperbolic, and its vectors cannot be moved: index the images into a new database"
            )
    if going is None and not is_uri(root) and name not in dict(live.retired):
        # A start that was killed may have left half a table that no record names.
        shutil.rmtree(place_of(root, name), ignore_errors=True)
    new = _new_store(root, name, {**about, "vector_type": old.about.get("vector_type", "float32")})
    if going is None:
        # Last, so that no reader finds tables that are still being made.
        write_live(root, replace(live.without_retired(name), preparing=name))
    upgrade = Upgrade(root, Stores(old, new, fingerprint), name, options or UpgradeOptions(), log, on_progress)
    if going is not None:
        log("Taking up the upgrade where it stopped.")
    return upgrade


def _new_store(root: str, name: str, about: dict[str, Any]) -> LanceStore:
    unmeasured: dict[str, Any] = {"map": None, "likeness": {}, "recall": None, "weight": None}
    upgrade = {"calibration": about["calibration"], "pairs": 1, **unmeasured}
    new = create_place(place_of(root, name), {**about, "upgrade": upgrade}, about["model"]["embedding_size"])
    if "upgrade" not in new.about:
        new.write_about({**new.about, "upgrade": upgrade})
    return new


@contextmanager
def upgrade_lock(db: str | Path) -> Iterator[None]:
    """Hold a local database against a second upgrade; a `UserError` if another process upgrades it."""
    root = location(db)
    if is_milvus(root):
        raise UnsupportedError("Milvus holds one model's vectors a name: index with the new model into another name")
    if is_uri(root) or not Path(root).is_dir():
        yield
        return
    try:
        held = FileLock(Path(root) / ".upgrade.lock", timeout=0).acquire()
    except Timeout as error:
        raise UserError(f"{root} is being upgraded by another process: wait for it, or stop it") from error
    with held:
        yield
