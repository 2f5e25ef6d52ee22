"""Datetimes: the notations of an instant that a client may send.

Called by the checks of field types.
"""

from __future__ import annotations

import re
from datetime import date

_DATETIME = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})"
    r"(?:[Tt ]([01]\d|2[0-3]):[0-5]\d(?::[0-5]\d(?:[.,]\d{1,9})?)?"
    r"(?:[Zz]|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?)?",
    re.ASCII,
)
_EPOCH = re.compile(r"-?\d{1,15}Z", re.ASCII)


def is_datetime(text: str) -> bool:
    """Whether `text` is an ISO 8601 date or date-time, or epoch seconds followed by Z."""
    match = _DATETIME.fullmatch(text)
    if match is None:
        return _EPOCH.fullmatch(text) is not None
    try:
        date(int(match[1]), int(match[2]), int(match[3]))
    except ValueError:
        return False
    return True
