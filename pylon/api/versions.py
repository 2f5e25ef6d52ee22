"""Row versions on the wire: ETag, If-Match, If-None-Match (RFC 9110 §8.8.3, §13.1).

A row's version is the seq of its last change, and its ETag that number in quotes: strong, since
the same version is always the same bytes. A condition on writing is judged by the writer, in
the transaction of the write.
"""

from __future__ import annotations

import re
from typing import Final

import falcon

from pylon.errors import InvalidData, PreconditionFailed

_ETAG: Final = re.compile(r'"([0-9]{1,18})"', re.ASCII)
_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*"')
_SHOWN_CHARS: Final = 100


def set_etag(resp: falcon.Response, seq: int) -> None:
    """Say which version of the row the answer has, or has made."""
    resp.set_header("etag", f'"{seq}"')


def if_match(req: falcon.Request) -> int | None:
    """The version that the row must have to be written; None where any will do.

    ``If-Match: *`` asks that the row is there, which every write of a row does.

    Raises:
        InvalidData: it is not one ETag.
        PreconditionFailed: it is one that no row of ours can have.
    """
    given = req.env.get("HTTP_IF_MATCH")
    if given is None or given.strip() == "*":
        return None
    text = given.strip()
    if _TAG.fullmatch(text) is None:
        raise InvalidData(
            f"If-Match is {text[:_SHOWN_CHARS]}: expected one ETag in quotes, or *",
            hint="Send the ETag header of the row as it was answered",
        )
    version = _ETAG.fullmatch(text)
    if version is None:  # a weak one never matches here (RFC 9110 §13.1.1)
        raise PreconditionFailed(
            f"The row does not have the version {text[:_SHOWN_CHARS]} that If-Match asks for",
            hint="Get the row again, and send its new ETag",
        )
    return int(version[1])


def is_known(req: falcon.Request, seq: int) -> bool:
    """Whether the caller has this version already: the answer is then 304 without a body."""
    given = req.env.get("HTTP_IF_NONE_MATCH")
    if given is None:
        return False
    return given.strip() == "*" or f'"{seq}"' in (
        tag.removeprefix("W/") for tag in _TAG.findall(given)
    )
