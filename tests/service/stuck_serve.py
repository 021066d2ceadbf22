"""``unimetric serve`` with a database that never gives an item, nor ends its maintenance."""

from __future__ import annotations

import sys
import threading
from typing import Any

from unimetric.cli import main
from unimetric.search import SearchIndex


def wait_for_ever(self: Any, id: str = "") -> Any:
    """Take the place of `SearchIndex.item` and of `SearchIndex.optimise`."""
    threading.Event().wait()


if __name__ == "__main__":
    SearchIndex.item = SearchIndex.optimise = wait_for_ever  # type: ignore[method-assign]
    sys.exit(main(["serve", *sys.argv[1:]]))
