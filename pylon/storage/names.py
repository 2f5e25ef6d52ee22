"""The one place where an identifier becomes SQL text.

Entity, field and index names come from the manifest and never from a request; they are quoted
all the same. Called by the schema, the store and the policy compiler.
"""

from __future__ import annotations


def quote(identifier: str) -> str:
    """`identifier` as a quoted SQL name, for SQLite and PostgreSQL alike.

    Raises:
        ValueError: it contains a NUL character, which no SQL text can carry.
    """
    if "\0" in identifier:
        raise ValueError(f"an identifier may not contain NUL: {identifier!r}")
    return '"' + identifier.replace('"', '""') + '"'
