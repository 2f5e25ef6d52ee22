"""Word vector: the words of a searchable row as the text of a `tsvector`.

`_words` has the words of the index by the rule of `pylon.query.words`, not by one of PostgreSQL's
parsers, so a search finds the same rows on every store. The fields follow each other in the order
of the search config, with a gap between two, so that no phrase reaches from one into the next.

Bounds: PostgreSQL's own, `POSITION_MAX` and `WORDS_BYTES`. Words behind them are not found; metric
pylon_search_words_cut_total. Called by `table` and `maintenance`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pylon import metrics
from pylon.manifest.model import Entity
from pylon.query.index_words import index_words
from pylon.query.words import text_fields, text_of

POSITION_MAX: Final = 16_383
POSITIONS_OF_WORD: Final = 255  # PostgreSQL keeps no more
WORDS_BYTES: Final = 1_000_000  # the server takes 1,048,575
LEXEME_BYTES: Final = 2_046  # of a word; the rest is cut off, in searches too
_GAP: Final = 10


def vector_of(entity: Entity, row: Mapping[str, Any]) -> bytes:
    """Return the text of the vector of a whole row."""
    places: dict[str, list[int]] = {}
    position = size_bytes = 0
    is_cut = False
    for name in text_fields(entity):
        text = text_of(entity.by_name.get(name), row.get(name))
        if not text:
            continue
        for found in index_words(text):
            position += 1
            word = _lexeme_of(found)
            if not word:  # marks alone
                continue
            known = places.get(word)
            if known is None:
                encoded_bytes = len(word.encode())
                if size_bytes + encoded_bytes > WORDS_BYTES:
                    is_cut = True
                    continue
                size_bytes += encoded_bytes + 4
                known = places[word] = []
            if position > POSITION_MAX or len(known) >= POSITIONS_OF_WORD:
                is_cut = True
                if known:
                    continue
            known.append(min(position, POSITION_MAX))
        position += _GAP
    if is_cut:
        metrics.SEARCH_WORDS_CUT.inc()
    return " ".join(
        f"'{_escape(word)}':{','.join(map(str, known))}" for word, known in places.items()
    ).encode()


def _lexeme_of(word: str) -> str:
    if len(word) * 4 <= LEXEME_BYTES:
        return word
    return word.encode(errors="replace")[:LEXEME_BYTES].decode(errors="ignore")


def _escape(word: str) -> str:
    return word.replace("\\", "\\\\").replace("'", "''")
