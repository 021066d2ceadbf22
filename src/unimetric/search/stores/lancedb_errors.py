"""Turn LanceDB's errors into one line with a remedy.

The kind of an error is found from facts (its type, permissions, free space), never from its wording. Conditions cannot
be at fault: the grammar prints none that LanceDB refuses.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unimetric.errors import UserError, escaped
from unimetric.search.errors import DatabaseError, DatabaseMissingError
from unimetric.search.stores.base import is_uri
from unimetric.storage.access import access_remedy

_LITTLE_SPACE = 1 << 20


@contextmanager
def explained(place: str, action: str) -> Iterator[None]:
    """Raise LanceDB's errors as a `DatabaseError`; ``action`` is ``open``, ``read`` or ``write to``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise _explanation(error, place, action) from error
    except BaseException as error:
        # A panic in LanceDB's Rust comes as an exception that no `except Exception` catches.
        if type(error).__name__ != "PanicException":
            raise
        raise _explanation(error, place, action) from error


def _explanation(error: BaseException, place: str, action: str) -> DatabaseError:
    reason = _reason(error)
    failed = f"cannot {action} the search database {place}"
    if isinstance(error, OSError) and error.errno is not None:
        return DatabaseError(f"{failed}: {os.strerror(error.errno)}")
    if is_uri(place):
        return DatabaseError(f"{failed}: {reason}; {access_remedy(place)}")
    folder = Path(place)
    if not folder.is_dir():
        return DatabaseMissingError(f"{failed}: the folder is gone")
    writes = action.startswith("write")
    if not os.access(folder, os.R_OK | os.X_OK | (os.W_OK if writes else 0)):
        return DatabaseError(f"{failed}: no permission")
    if writes and shutil.disk_usage(folder).free < _LITTLE_SPACE:
        return DatabaseError(f"{failed}: the disk is full; free some space, or choose another")
    if writes:
        return DatabaseError(f"{failed}: {reason}")
    return DatabaseError(
        f"the search database {place} cannot be read or is damaged ({reason}); index the images again into a new folder"
    )


def _reason(error: BaseException) -> str:
    """Return the message in one line of at most 200 characters, without places in LanceDB's source."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r",? /\S*\.cargo/\S*", "", text)
    return escaped((text if len(text) <= 200 else text[:197] + "...").rstrip(" .;,"))
