"""Errors of a search database; each class carries its meaning in ``code``."""

from typing import ClassVar

from unimetric.errors import ArgumentError, UserError, escaped, shown


class FilterError(ArgumentError):
    """A condition (``where``) that is not one of the grammar in `unimetric.search.conditions`.

    ``position`` is the character at fault, counted from 1, or None; ``reason`` names the fault and its remedy.
    """

    code: ClassVar[str] = "invalid_where"

    def __init__(self, where: str, position: int | None, reason: str) -> None:
        self.where, self.position, self.reason = where, position, reason
        place = "" if position is None else f" at character {position}"
        super().__init__(f"the condition (where) {shown(where)} cannot be read{place}: {escaped(reason)}")


class NotCalibratedError(ArgumentError):
    """The promised probability was not calibrated for this search, or with too few queries."""

    code: ClassVar[str] = "not_calibrated"


class UnsupportedError(ArgumentError):
    """The engine of this database cannot do it; another one can."""

    code: ClassVar[str] = "unsupported"


class NoOriginalError(ArgumentError):
    """The file that an item was indexed from is missing, was changed, or cannot be shown; its message names no path."""

    code: ClassVar[str] = "no_original"


class DatabaseError(UserError):
    """A search database that cannot be read or written: damaged, locked up by permissions, or on a full disk."""

    code: ClassVar[str] = "database_unusable"


class DatabaseMissingError(DatabaseError):
    """There is no search database at this place, or none that was finished."""

    code: ClassVar[str] = "database_missing"


class ModelMismatchError(UserError):
    """The model is not the one that the database's vectors come from."""

    code: ClassVar[str] = "model_mismatch"


class ReplacedError(ModelMismatchError):
    """The vectors that were opened are no longer those of the database, which was upgraded to another model."""

    code: ClassVar[str] = "model_replaced"
