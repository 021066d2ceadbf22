"""The state of an upgrade, for people."""

import json
from dataclasses import dataclass
from pathlib import Path

from unimetric.search.stores import open_place
from unimetric.search.stores.base import location
from unimetric.search.stores.live import place_of, read_live
from unimetric.search.upgrade.both import weight_of_new
from unimetric.search.upgrade.moving import MOVED


@dataclass(frozen=True)
class UpgradeState:
    """Progress of a database's upgrade to another model."""

    answers: str
    """The model that queries are answered by: old, new or both."""
    model: str
    """Fingerprint of the new model."""
    embedded: int
    """Images that the new model has embedded."""
    rows: int
    """All images."""


def upgrade_state(db: str | Path) -> UpgradeState | None:
    """Return the state of a database's upgrade; None if none is under way."""
    root = location(db)
    live = read_live(root)
    name = live.preparing or (live.live if live.previous is not None else None)
    if name is None:
        return None
    new = open_place(place_of(root, name))
    moved = new.count(MOVED)
    rows = new.count()
    if live.preparing is not None:
        embedded, rows = rows, open_place(place_of(root, live.live)).count()
    else:
        embedded = rows - moved
    model = str(new.about["model"]["fingerprint"])
    answers = "old" if live.preparing is not None else "new" if weight_of_new(new) is None else "both"
    return UpgradeState(answers, model, embedded, rows)


def searched_version(db: str | Path) -> str:
    """Return a text that changes when a database is searched by other vectors or thresholds."""
    root = location(db)
    live = read_live(root)
    if live.previous is None:
        return live.live
    about = open_place(place_of(root, live.live)).about
    upgrade = about.get("upgrade", {})
    return f"{live.live} {json.dumps([about['calibration'], upgrade.get('weight')], sort_keys=True)}"
