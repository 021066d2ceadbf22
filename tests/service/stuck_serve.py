"""``unimetric serve`` with a database that never gives an item."""

from __future__ import annotations

import sys
import threading
from typing import Any

from unimetric.cli import main
from unimetric.search import SearchIndex


def wait_for_ever(self: Any, id: str) -> Any:
    """Take the place of `SearchIndex.item`."""
    threading.Event().wait()


if __name__ == "__main__":
    SearchIndex.item = wait_for_ever  # type: ignore[method-assign]
    sys.exit(main(["serve", *sys.argv[1:]]))
