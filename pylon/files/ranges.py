"""Ranges of bytes: the headers Range and If-Range (RFC 9110 §13.1.5, §14).

One range is answered. A list of ranges, an unknown unit, or a malformed header is ignored, as the
standard allows, and the whole file is sent: a list could multiply the bytes of a response.

Called by `pylon.api.files`.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from pylon.errors import RangeNotSatisfiable

_RANGE: Final = re.compile(r"bytes=[ \t]*([0-9]{0,20})-([0-9]{0,20})[ \t]*", re.ASCII)


class ByteRange(NamedTuple):
    """The bytes from `first` to `last`, both included."""

    first: int
    last: int


def find_range(
    header: str | None, if_range: str | None, etag: str, size_bytes: int
) -> ByteRange | None:
    """Return the range to send; None for the whole file.

    Args:
        if_range: a strong ETag; any other value lets the range be ignored.
        etag: of the file, in quotes.

    Raises:
        RangeNotSatisfiable: the range begins behind the end of the file.
    """
    if header is None or (if_range is not None and if_range.strip() != etag):
        return None
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first_text, last_text = match.groups()
    if not first_text:
        length = int(last_text)
        if not length or not size_bytes:
            raise _outside(size_bytes)
        return ByteRange(max(0, size_bytes - length), size_bytes - 1)
    first = int(first_text)
    last = int(last_text) if last_text else size_bytes - 1
    if last_text and last < first:
        return None
    if first >= size_bytes:
        raise _outside(size_bytes)
    return ByteRange(first, min(last, size_bytes - 1))


def has_etag(header: str, etag: str) -> bool:
    """Whether an If-None-Match has this ETag, or ``*``; a weak tag compares as a strong one."""
    tags = [tag.strip().removeprefix("W/") for tag in header.split(",")]
    return "*" in tags or etag in tags


def _outside(size_bytes: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(
        f"The range lies outside of the file, which has {size_bytes} bytes", size=size_bytes
    )
