"""Datetimes: reads the notations of an instant, and writes the one that the store keeps.

The stored notation is UTC with microseconds, ``2026-03-29T00:30:00.000000Z``. Its texts have one
width, so they compare as the instants do. A client may send an ISO 8601 date or date-time, with or
without an offset, or epoch seconds followed by Z. A time without an offset is UTC; further digits
of a second are cut off.

Invariants: `instant_of` returns 27 characters, or None for a text that is no datetime of the years
1 to 9999 in UTC. It returns a text of the stored notation unchanged. Called by the checks of field
types, by parsers of queries and policies, and by the conversion of rows of an earlier version.
"""

from __future__ import annotations

import re
from datetime import date, datetime, timedelta
from typing import Final

INSTANT_CHARS: Final = 27

_DATETIME = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})"
    r"(?:[Tt ]([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d)(?:[.,](\d{1,9}))?)?"
    r"([Zz]|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?)?",
    re.ASCII,
)
_EPOCH = re.compile(r"(-?\d{1,15})Z", re.ASCII)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)
_EPOCH_START: Final = datetime(1970, 1, 1)
_MILLISECONDS_CHARS: Final = 24  # 2026-03-29T00:30:00.000Z, the notation of JavaScript


def instant_of(text: str) -> str | None:
    """Return the stored notation of a datetime, or None if the text is no datetime."""
    # PERF: the notations of JavaScript and of the store: 0.5 us in place of 2.4 us.
    size = len(text)
    if size in (_MILLISECONDS_CHARS, INSTANT_CHARS) and (
        text[4] == text[7] == "-" and text[10] == "T" and text[13] == text[16] == ":"
        and text[19] == "." and text[-1] == "Z" and text[11:13] < "24" and text.isascii()
    ):
        try:
            datetime.fromisoformat(text)
        except ValueError:
            return None
        return text if size == INSTANT_CHARS else text[:-1] + "000Z"
    match = _DATETIME.fullmatch(text)
    if match is None:
        return _of_epoch(text)
    year, month, day, hour, minute, second, fraction, offset = match.groups()
    try:
        moment = datetime(
            int(year), int(month), int(day), int(hour or 0), int(minute or 0), int(second or 0),
            int(fraction[:6].ljust(6, "0")) if fraction else 0,
        )
        if offset is not None and offset not in "Zz":
            ahead = timedelta(hours=int(offset[1:3]), minutes=int(offset[-2:]))
            moment = moment - ahead if offset[0] == "+" else moment + ahead
    except (ValueError, OverflowError):
        return None
    return moment.isoformat(timespec="microseconds") + "Z"


def _of_epoch(text: str) -> str | None:
    match = _EPOCH.fullmatch(text)
    if match is None:
        return None
    try:
        moment = _EPOCH_START + timedelta(seconds=int(match[1]))
    except OverflowError:
        return None
    return moment.isoformat(timespec="microseconds") + "Z"


def instant_key(value: object) -> object:
    """Return what a datetime field's value compares as: the stored notation.

    A row that an earlier version wrote may have another notation. A text that is no datetime, in a
    table that another program filled, stays as it is.
    """
    if type(value) is not str:
        return value
    # PERF: texts of the stored notation are not parsed again: 0.13 us in place of 0.5 us. No other
    # notation that has 27 characters ends in Z with a T and a point at these places.
    if len(value) == INSTANT_CHARS and value[10] == "T" and value[19] == "." and value[26] == "Z":
        return value
    found = instant_of(value)
    return value if found is None else found


def is_datetime(text: str) -> bool:
    """Whether `text` is an ISO 8601 date or date-time, or epoch seconds followed by Z."""
    return instant_of(text) is not None


def is_date(text: str) -> bool:
    """Whether `text` is a date of the years 1 to 9999, as ``2026-03-29``."""
    if _DATE.fullmatch(text) is None:
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
