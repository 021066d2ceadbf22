"""Numbers, dates and times as they are written in a condition."""

import math
import re
from datetime import date, datetime, timezone

_DATE = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_TIME = re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d(\.(\d{3}|\d{6}))?)?(Z|[+-]\d\d:\d\d)?", re.ASCII)

DATE_FORM = "a date is written '2020-01-31'"
TIME_FORM = "a time is written '2020-01-31 12:00:00', in UTC or with its offset such as +02:00"


def read_number(text: str) -> float:
    """Read a number as the 64-bit float that it is compared as.

    Raises:
        ValueError: it is beyond the range, or a whole number written out that no 64-bit float holds exactly.

    >>> read_number("20"), read_number(".5"), read_number("1e3")
    (20.0, 0.5, 1000.0)
    """
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("the number is beyond the range of a 64-bit float, 1.8e308")
    digits = text.lstrip("0")
    # Shorter ones are exact; int() refuses thousands of digits.
    if digits.isdigit() and len(digits) > 15 and (len(digits) > 400 or int(digits) != int(value)):
        raise ValueError("no 64-bit float is exactly this whole number; write it with an exponent, such as 1.5e17")
    return value


def read_date(text: str) -> date:
    """Read a date.

    Raises:
        ValueError: it is none.

    >>> read_date("2020-02-29")
    datetime.date(2020, 2, 29)
    """
    if not _DATE.fullmatch(text):
        raise ValueError(DATE_FORM)
    return date.fromisoformat(text)


def read_time(text: str) -> datetime:
    """Read a time, or a date as its first moment, in UTC without a zone.

    Raises:
        ValueError: it is none, or before the year 1 or after 9999 in UTC.

    >>> read_time("2020-01-31T12:00+02:00")
    datetime.datetime(2020, 1, 31, 10, 0)
    """
    if _DATE.fullmatch(text):
        return datetime.fromisoformat(text)
    if not _TIME.fullmatch(text):
        raise ValueError(TIME_FORM)
    value = datetime.fromisoformat(text.replace("Z", "+00:00"))
    try:
        return value if value.tzinfo is None else value.astimezone(timezone.utc).replace(tzinfo=None)
    except OverflowError as error:
        raise ValueError("the time is out of range in UTC") from error
