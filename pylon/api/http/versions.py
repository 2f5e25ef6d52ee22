"""Row versions on the wire: ETag, If-Match, If-None-Match (RFC 9110 §8.8.3, §13.1).

A row's version is the seq of its last change, and its ETag that number in quotes: strong, since
the same version is always the same bytes. If-Match and If-None-Match are lists of tags. If-Match
compares strongly, so that a weak tag in it matches nothing; If-None-Match compares weakly. A
condition on writing is judged by the writer, in the transaction of the write.
"""

from __future__ import annotations

import re
from typing import Final

import falcon

from pylon.errors import InvalidData, PreconditionFailed

_ETAG: Final = re.compile(r'"(0|[1-9][0-9]{0,17})"', re.ASCII)
_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*+"')
_TAGS: Final = re.compile(  # RFC 9110 §5.6.1: a list may have empty elements, and not only those
    rf"(?:[ \t]*+,)*+[ \t]*+{_TAG.pattern}(?:[ \t]*+,(?:[ \t]*+{_TAG.pattern})?+)*+[ \t]*+"
)
_SHOWN_CHARS: Final = 100


def set_etag(resp: falcon.Response, seq: int) -> None:
    """Say which version of the row the answer has, or has made."""
    resp.set_header("etag", f'"{seq}"')


def if_match(req: falcon.Request) -> int | tuple[int, ...] | None:
    """The version that the row must have to be written, or several of which it must have one;
    None where any will do.

    ``If-Match: *`` asks that the row is there, which every write of a row does.

    Raises:
        InvalidData: it is no list of ETags.
        PreconditionFailed: no row of ours can have any of them.
    """
    given = req.env.get("HTTP_IF_MATCH")
    if given is None or given.strip() == "*":
        return None
    text = given.strip()
    if _TAGS.fullmatch(text) is None:
        raise InvalidData(
            f"If-Match is {text[:_SHOWN_CHARS]}: expected ETags in quotes, parted by commas, or *",
            hint="Send the ETag header of the row as it was answered",
        )
    # A weak tag never matches here (RFC 9110 §13.1.1), nor does one that is no number of ours.
    versions = tuple(
        int(version[1]) for tag in _TAG.findall(text) if (version := _ETAG.fullmatch(tag))
    )
    if not versions:
        raise PreconditionFailed(
            f"The row does not have the version {text[:_SHOWN_CHARS]} that If-Match asks for",
            hint="Get the row again, and send its new ETag",
        )
    return versions[0] if len(versions) == 1 else versions


def is_known(req: falcon.Request, seq: int) -> bool:
    """Whether the caller has this version already: the answer is then 304 without a body."""
    given = req.env.get("HTTP_IF_NONE_MATCH")
    if given is None:
        return False
    return given.strip() == "*" or f'"{seq}"' in (
        tag.removeprefix("W/") for tag in _TAG.findall(given)
    )
