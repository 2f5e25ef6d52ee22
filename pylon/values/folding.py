"""Folding: texts without regard to case, as Unicode defines it (canonical caseless matching).

Called by backends for fields with `"unique": "nocase"`.
"""

from __future__ import annotations

from unicodedata import normalize


def fold_case(text: object) -> str | None:
    """Return what all spellings of a text have in common; None for a value that is no text.

    ``Straße`` and ``STRASSE`` are equal; so are a letter with an accent, and the letter
    followed by the accent.
    """
    if not isinstance(text, str):
        return None
    if text.isascii():
        return text.lower()
    return normalize("NFC", normalize("NFD", normalize("NFD", text).casefold()))
