"""Identifiers as SQL text, which is the same text for all backends.

Entity, field and index names come from the manifest and never from a request; `quote` quotes them
all the same. Called by every module of a backend that writes SQL.
"""

from __future__ import annotations


def quote(identifier: str) -> str:
    """Return `identifier` as a quoted SQL name.

    Raises:
        ValueError: it contains a NUL character, which no SQL text can carry.
    """
    if "\0" in identifier:
        raise ValueError(f"an identifier may not contain NUL: {identifier!r}")
    return '"' + identifier.replace('"', '""') + '"'
