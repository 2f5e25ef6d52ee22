"""Types of files, found from their first bytes (after the WHATWG standard for MIME sniffing).

A client's word counts only where the bytes agree, because a browser would run an SVG or HTML file
that somebody has declared as a picture. `sniff` knows the types that a browser shows without
running anything (`INLINE`); all other files are `application/octet-stream` to a browser.

Invariant: a type of `INLINE` is returned only if the bytes begin as that type does, and a text has
no mark-up. Called by `pylon.api.files`.
"""

from __future__ import annotations

import re
from typing import Final

SNIFFED_BYTES: Final = 4_096
OCTETS: Final = "application/octet-stream"
INLINE: Final = frozenset({
    "image/png", "image/jpeg", "image/gif", "image/webp", "image/avif", "video/mp4", "video/webm",
    "audio/mpeg", "audio/ogg", "audio/wav", "application/pdf", "text/plain",
})

_STARTS: Final[tuple[tuple[bytes, str], ...]] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"OggS\x00", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\x1f\x8b\x08", "application/gzip"),
    (b"PK\x03\x04", "application/zip"),
)
_BRANDS: Final = {
    b"avif": "image/avif", b"avis": "image/avif",
    b"isom": "video/mp4", b"iso2": "video/mp4", b"iso4": "video/mp4", b"iso5": "video/mp4",
    b"iso6": "video/mp4", b"mp41": "video/mp4", b"mp42": "video/mp4", b"avc1": "video/mp4",
    b"dash": "video/mp4", b"M4V ": "video/mp4",
}
_TEXT: Final = re.compile(rb"[\t\n\f\r\x1b\x20-\x7e\x80-\xff]*")
_MARKUP: Final = re.compile(rb"<[!?/a-zA-Z]")
_DECLARED: Final = re.compile(r"[a-z0-9!#$&^_.+-]{1,64}/[a-z0-9!#$&^_.+-]{1,64}", re.ASCII)
# Declared types whose bytes are plain text, and which no browser runs.
_TEXTS: Final = frozenset({
    "text/csv", "text/markdown", "text/tab-separated-values", "application/json",
    "application/x-ndjson", "text/calendar", "text/vcard",
})


def sniff(head: bytes) -> str:
    """Return the type of a file that begins with `head`: `OCTETS` for an unknown one.

    Args:
        head: the first `SNIFFED_BYTES`, or the whole file.
    """
    for start, kind in _STARTS:
        if head.startswith(start):
            return kind
    if head[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(head[8:12], OCTETS)
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], OCTETS)
    if head[:4] == b"\x1aE\xdf\xa3":
        return "video/webm" if b"webm" in head[:64] else OCTETS
    if len(head) > 2 and head[0] == 0xFF and head[1] & 0xE6 == 0xE2:
        return "audio/mpeg"
    if _is_text(head):
        return "text/plain"
    return OCTETS


def stored_type(declared: str | None, head: bytes) -> str:
    """Return the type to store: what the bytes say, or what the client said if they agree.

    A text without mark-up may be one of several kinds of plain text. Bytes that no table knows
    keep a declared type only if no browser shows it.
    """
    found = sniff(head)
    said = (declared or "").partition(";")[0].strip().lower()
    if _DECLARED.fullmatch(said) is None or said == found:
        return found
    if found == "text/plain" and said in _TEXTS:
        return said
    if found == "application/zip" and said.startswith("application/vnd."):
        return said
    return found


def matches(kind: str, accept: tuple[str, ...]) -> bool:
    """Whether a type is one of a list such as ``("image/*", "application/pdf")``."""
    return any(
        kind == pattern or pattern in ("*", "*/*")
        or (pattern.endswith("/*") and kind.startswith(pattern[:-1]))
        for pattern in accept
    )


def _is_text(head: bytes) -> bool:
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"+/v" in head[:8]:
        return False  # UTF-16 and UTF-7 hide mark-up
    if _TEXT.fullmatch(head) is None or _MARKUP.search(head) is not None:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # the last character may be cut
    return True
