"""Checks that the samplers' options share."""

from __future__ import annotations

from unimetric.errors import UserError


def require(condition: bool, sampler: str, option: str, value: object, remedy: str) -> None:
    """Refuse a value of an option.

    Raises:
        UserError: the condition does not hold.
    """
    if not condition:
        raise UserError(f"option {option} of sampler {sampler} is {value!r}: {remedy}")
