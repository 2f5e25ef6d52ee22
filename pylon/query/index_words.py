"""Index words: splits a text into the words that a full-text index has of it.

A word is a run of letters, digits and marks, without case and diacritics (`folding_table`).
SQLite's FTS5 splits texts itself; other stores get the words from here, for rows and for searches,
and so find the same rows.

Invariant: the words of a text do not depend on the machine or on the version of Python. Called by
backends.
"""

from __future__ import annotations

import re
from typing import Final

from pylon.query.folding_table import DROPPED, FOLDED, SEPARATORS, UNFOLDED

_WORD: Final = re.compile(rf"[^\x00-/:-@\[-`{{-\x7f{SEPARATORS}]+")
_FOLDS: Final = str.maketrans(UNFOLDED, FOLDED, DROPPED)


def index_words(text: str) -> list[str]:
    """Return the words of a text, in order. A word of dropped marks alone is empty: it has its
    place between the others."""
    if text.isascii():  # PERF: 2.4 us for 36 words, in place of 9
        return _WORD.findall(text.lower())
    return [word.lower() if word.isascii() else _fold(word) for word in _WORD.findall(text)]


def _fold(word: str) -> str:
    return word.translate(_FOLDS).translate(_SMALL)


_SMALL: Final = str.maketrans({chr(n): chr(n + 32) for n in range(ord("A"), ord("Z") + 1)})
