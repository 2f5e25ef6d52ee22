"""Row versions on the wire: ETag, If-Match, If-None-Match (RFC 9110 §8.8.3, §13.1).

The version of a row is the seq of its last change. Its ETag is that number in quotes; it is
strong, because a version always has the same bytes. If-Match and If-None-Match are lists of tags.
If-Match compares strongly, so that a weak tag matches nothing; If-None-Match compares weakly. The
writer judges the condition of a write, in the transaction of the write.

Called by `pylon.api.data.entities` and `pylon.api.client_files`.
"""

from __future__ import annotations

import re
from typing import Final

import falcon

from pylon.errors import SHOWN_CHARS, InvalidData, PreconditionFailed

SEQ_HEADER: Final = "x-pylon-change-seq"
_ETAG: Final = re.compile(r'"(0|[1-9][0-9]{0,17})"', re.ASCII)
_TAG: Final = re.compile(r'(?:W/)?"[\x21\x23-\x7e\x80-\xff]*+"')
_TAGS: Final = re.compile(  # RFC 9110 §5.6.1: a list may have empty elements, but not only them
    rf"(?:[ \t]*+,)*+[ \t]*+{_TAG.pattern}(?:[ \t]*+,(?:[ \t]*+{_TAG.pattern})?+)*+[ \t]*+"
)


def set_etag(resp: falcon.Response, seq: int) -> None:
    """Set the ETag: the version of the row that the response has, or that the write made."""
    resp.set_header("etag", f'"{seq}"')


def set_written_version(req: falcon.Request, resp: falcon.Response, seq: int) -> None:
    """Set the headers of a write: the seq of its change, which is the new version of the row."""
    env = req.env
    if "pylon.head" in env:  # see `middleware`
        # PERF: 0.2 us in place of 1.4, since no value comes twice.
        env["pylon.head"] += b'x-pylon-change-seq: %d\r\netag: "%d"\r\n' % (seq, seq)
    else:
        resp.set_header(SEQ_HEADER, str(seq))
        set_etag(resp, seq)


def if_match(req: falcon.Request) -> int | tuple[int, ...] | None:
    """Return the version that the row must have to be written, or several, of which it must have
    one; None: any version.

    ``If-Match: *`` requires that the row exists, which every write of a row requires.

    Raises:
        InvalidData: the header is no list of ETags.
        PreconditionFailed: no row can have any of them.
    """
    given = req.env.get("HTTP_IF_MATCH")
    if given is None or given.strip() == "*":
        return None
    text = given.strip()
    if _TAGS.fullmatch(text) is None:
        raise InvalidData(
            f"If-Match is {text[:SHOWN_CHARS]}: expected ETags in quotes, parted by commas, or *",
            hint="Send the ETag header of the row as it was answered",
        )
    # A weak tag never matches here (RFC 9110 §13.1.1), nor does a tag that is no seq.
    versions = tuple(
        int(version[1]) for tag in _TAG.findall(text) if (version := _ETAG.fullmatch(tag))
    )
    if not versions:
        raise PreconditionFailed(
            f"The row does not have the version {text[:SHOWN_CHARS]} that If-Match asks for",
            hint="Get the row again, and send its new ETag",
        )
    return versions[0] if len(versions) == 1 else versions


def is_known(req: falcon.Request, seq: int) -> bool:
    """Return whether the caller has this version of a row, so that the response is a 304."""
    return has_tag(req, str(seq))


def has_tag(req: falcon.Request, tag: str) -> bool:
    """Return whether If-None-Match has the ETag `tag`, which is given without its quotes."""
    given = req.env.get("HTTP_IF_NONE_MATCH")
    if given is None:
        return False
    return given.strip() == "*" or f'"{tag}"' in (
        each.removeprefix("W/") for each in _TAG.findall(given)
    )
