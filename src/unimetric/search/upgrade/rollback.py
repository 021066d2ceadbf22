"""Undo an upgrade that is not finished, without losing what was written meanwhile."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from unimetric.config import DeviceConfig
from unimetric.errors import UserError
from unimetric.models.source import ModelSource
from unimetric.search.conditions.tree import Always
from unimetric.search.model import load_embedder
from unimetric.search.rows import signatures
from unimetric.search.scoring import vectors_of
from unimetric.search.stores import open_place
from unimetric.search.stores.base import Store, is_uri, location
from unimetric.search.stores.live import KEPT_SECONDS, place_of, read_live, write_live
from unimetric.search.upgrade.embedding import RowEmbedder, UpgradeOptions
from unimetric.search.upgrade.maps import fit_map
from unimetric.search.upgrade.moving import Stores, columns_of, moved_rows, same_images, with_columns


def roll_back(db: str | Path, device: DeviceConfig, log: Callable[[str], None] = lambda line: None) -> int:
    """Make the old model's vectors those that are searched again.

    Rows that were added or changed meanwhile are embedded by the old model, or moved where their image is gone; their
    number is returned. ``log`` is called with lines for the user. A `UserError` if no upgrade is under way, or the old
    model is needed and cannot be read.
    """
    root = location(db)
    live = read_live(root)
    if live.preparing is not None:
        write_live(root, live.retiring(live.preparing, preparing=None))
        return 0
    if live.previous is None:
        raise UserError(f"{root}: no upgrade is under way, so there is nothing to roll back")
    old, new = (open_place(place_of(root, name)) for name in (live.previous, live.live))
    carried: set[str] = set()
    while changed := _changed(old, new) - carried:
        _carry_over(Stores(new, old, old.about["model"]["fingerprint"]), sorted(changed), device, log)
        carried |= changed
    write_live(root, live.retiring(live.live, live=live.previous, previous=None))
    return len(carried)


def clean(db: str | Path) -> None:
    """Delete vectors that were replaced, once no reader can have them open any more."""
    root = location(db)
    live = read_live(root)
    for name, since in live.retired:
        if time.time() - since < KEPT_SECONDS:
            continue
        place = place_of(root, name)
        if name and not is_uri(root):
            shutil.rmtree(place, ignore_errors=True)
        else:
            store = open_place(place)
            store.delete(Always(True))
            store.compact()
            store.close()
        live = live.without_retired(name)
        write_live(root, live)


def _changed(old: Store, new: Store) -> set[str]:
    """Return the ids of new rows that the old set has not, or with another content, label or metadata."""
    changed = set()
    for block in new.blocks(columns_of(new)):
        wanted = signatures(block)
        present = signatures(old.rows_of(list(wanted), columns_of(old)))
        changed |= {id for id, (_, sign) in wanted.items() if id not in present or present[id][1] != sign}
    return changed


def _carry_over(back: Stores, ids: list[str], device: DeviceConfig, log: Callable[[str], None]) -> None:
    """Write rows of the set ``back.old``, which is given up, into ``back.new``."""
    relabelled = _relabel(back, ids)
    others = [id for id in ids if id not in relabelled]
    if not others:
        return
    embedder = load_embedder(back.new, ModelSource(device=device))
    rows = RowEmbedder(back, embedder, UpgradeOptions(precision=device.precision))
    refused = rows.embed(others, is_searched=False)
    if refused:
        refused = rows.embed(sorted(refused), is_searched=False, from_thumbnails=True)
    for entry in refused.values():
        log(f"{entry.path}: {entry.reason}; its vector is moved back")
    if refused:
        _, old, new = Stores(back.new, back.old, back.old.about["model"]["fingerprint"]).pairs()
        move = fit_map(new, old).move
        moved = back.old.rows_of(sorted(refused), [*columns_of(back.old), "vector"])
        back.new.merge(moved_rows(moved, move(vectors_of(moved["vector"]))))


def _relabel(back: Stores, ids: list[str]) -> set[str]:
    """Write rows of which only label or metadata changed, with their old vectors; return their ids."""
    kept = back.new.rows_of(ids, ["id", "content_hash", "vector", "thumbnail"])
    fresh, kept = same_images(back.old.rows_of(ids, columns_of(back.old)), kept)
    if len(kept):
        marks = pa.array([back.fingerprint] * len(kept), pa.string())
        back.new.merge(with_columns(fresh, fingerprint=marks, vector=kept["vector"], thumbnail=kept["thumbnail"]))
    return set(kept["id"].to_pylist())
