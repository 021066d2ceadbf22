"""Commits to a LanceDB table that other processes may write at the same time, as in object storage, where no lock is.

LanceDB writes optimistically: a commit that another one preempted is refused, or repeated by LanceDB itself where it
can. `KEYED` makes it notice that two writers add rows of the same id, so that neither doubles the other's.
"""

from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

KEYED = {b"lance-schema:unenforced-primary-key": b"true"}
"""The metadata of the column that identifies a row."""

_ATTEMPTS = 20


def commit(table: Any, work: Callable[[], T]) -> T:
    """Return the result of ``work``, a change on the newest version of a table; repeat it if another writer was faster.

    Args:
        table: LanceDB's.
        work: Makes one commit, or several of which each may be made again.
    """
    for _ in range(_ATTEMPTS):
        before = table.version
        try:
            return work()
        except Exception:
            table.checkout_latest()
            if table.version == before:
                raise
    return work()
