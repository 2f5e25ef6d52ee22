"""Full-text search: writes a `Match` as a tsquery over the words of `_words`.

The words of a row are made by `pylon.query.index_words` at each write, and those of a search here
by the same rule. So the found rows are those of the other stores, and a client's text is never
syntax of PostgreSQL. Bound: a word is cut to `LEXEME_BYTES`, on both sides.

Called by `dialect` and `reads`, and by the writer for `lexeme_of`.
"""

from __future__ import annotations

from typing import Final

from pylon.query.index_words import index_words
from pylon.query.predicate import Match
from pylon.storage.postgres.names import WORDS_COLUMN

LEXEME_BYTES: Final = 2_046  # of a tsvector
RELEVANCE: Final = "_rank"  # the best first


def lexeme_of(word: str) -> str:
    """Return the lexeme of a word; empty for none."""
    if len(word) * 4 <= LEXEME_BYTES:
        return word
    return word.encode(errors="replace")[:LEXEME_BYTES].decode(errors="ignore")


def match_expression(match: Match) -> str:
    """Return the tsquery of a match; empty if it has no word.

    The parts of one word stand side by side. The last word is open: words that begin with it match.
    """
    phrases: list[str] = []
    for number, word in enumerate(match.words, 1):
        phrase = _phrase(word, match.is_open and number == len(match.words))
        if phrase:
            phrases.append(phrase)
    return " & ".join(phrases)


def _phrase(word: str, is_open: bool) -> str:
    text, distance = "", 0
    parts = index_words(word)
    for number, part in enumerate(parts, 1):
        distance += 1
        if part:
            between = "" if not text else f" <{distance}> "
            text += f"{between}'{lexeme_of(part)}'{':*' * (is_open and number == len(parts))}"
            distance = 0
    return f"({text})" if len(parts) > 1 and text else text


def match_condition(mark: str) -> str:
    """Return the condition for the rows that a tsquery (a parameter) finds."""
    return f'"{WORDS_COLUMN}" @@ {mark}::tsquery'


def relevance_of(mark: str) -> str:
    """Return the order of relevance: a value that is less for a better row. A word in a short text
    says more than in a long one, as with FTS5."""
    return f'-ts_rank("{WORDS_COLUMN}", {mark}::tsquery, 1)'
