"""Ids and names of files.

An id is `file_`, 40 hex characters and a safe form of the name: `file_0193…_report_pdf`. The hex
characters are the *key*: 12 of the time in milliseconds, so that ids sort by creation, and 28
random ones, so that nobody guesses an id. The file on disk has the key as its name, and no
character of a client's name.

Invariant: a name that `clean_name` returns has no path, no control or bidirectional character, and
at most limits.FILE_NAME_BYTES. Called by `pylon.api.files`.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import quote

from pylon import limits
from pylon.clock import Clock, RandomSource

_ID: Final = re.compile(r"file_([0-9a-f]{40})(?:_[A-Za-z0-9_-]{0,80})?", re.ASCII)
_KEY: Final = re.compile(r"[0-9a-f]{40}", re.ASCII)
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+", re.ASCII)
_SAFE_CHARS: Final = 80
_PLAIN: Final = re.compile(r"[^A-Za-z0-9 !#$&+.^_`|~()@=-]", re.ASCII)
_MS_NS: Final = 1_000_000
DEFAULT_NAME: Final = "upload"


def make_id(name: str, clock: Clock, random: RandomSource) -> str:
    """Return a new id for a file of this name."""
    ms = clock.wall_ns() // _MS_NS & 0xFFFFFFFFFFFF
    safe = _UNSAFE.sub("_", name).strip("_")[:_SAFE_CHARS] or DEFAULT_NAME
    return f"file_{ms:012x}{random.token_hex(14)}_{safe}"


def key_of(file_id: str) -> str | None:
    """Return the key of an id; None if the text is no id."""
    match = _ID.fullmatch(file_id)
    return None if match is None else match[1]


def is_key(text: str) -> bool:
    """Whether a text has the form of a key: the name of a file on disk."""
    return _KEY.fullmatch(text) is not None


def clean_name(given: str | None) -> str:
    """Return the name that a client gave a file, as other clients may see it.

    Paths, control characters, and characters that change the direction of a text are removed.
    """
    text = (given or "").encode("utf-8", "replace").decode("utf-8", "replace")
    text = re.split(r"[/\\]", unicodedata.normalize("NFC", text[:limits.FILE_NAME_BYTES * 4]))[-1]
    text = "".join(each for each in text if not unicodedata.category(each).startswith("C"))
    text = text.replace("\N{LINE SEPARATOR}", "").replace("\N{PARAGRAPH SEPARATOR}", "")
    text = text.encode()[:limits.FILE_NAME_BYTES].decode("utf-8", "ignore").strip(" .")
    return text or DEFAULT_NAME


def disposition(name: str, *, is_inline: bool) -> str:
    """Return a Content-Disposition (RFC 6266): a plain name, and the exact one beside it."""
    kind = "inline" if is_inline else "attachment"
    plain = _PLAIN.sub("_", name)
    if plain == name:
        return f'{kind}; filename="{plain}"'
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
