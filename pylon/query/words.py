"""Words: parses the text of a search into a condition.

An entity with text fields in its `search` config has a full-text index. For it `parse_words` makes
a `Match`: the row must have all words, in any order, in any text field. For another entity each
word must be a part of one of its string and richtext fields, whatever the case of ASCII letters.

In the index a word is a run of letters, digits and marks, without diacritics and case. A word like
``foo-bar`` becomes the phrase "foo bar". The last word also finds words that begin with it, unless
white space follows it or it is a single letter. (A single character of a script with thousands of
characters is enough.)

Invariant: a user's text is never syntax of a full-text engine. Bounds: `limits.SEARCH_CHARS`,
`SEARCH_WORDS` and `SEARCH_TERMS`. Called by `parse` and `rows` (`$search`) and by `search`.
"""

from __future__ import annotations

from typing import Final
from unicodedata import category

import orjson

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType
from pylon.query.conditions import and_, contains, or_
from pylon.query.predicate import FALSE, TRUE, Match, Predicate

_LIKE_FIELDS: Final = (FieldType.STRING, FieldType.RICHTEXT)
_WORD_CATEGORIES: Final = frozenset("LNM")  # and private use ("Co")
_MANY_LETTERS: Final = "\u2e80"  # from here on: the scripts of East Asia


def text_fields(entity: Entity) -> tuple[str, ...]:
    """The fields that the index of `entity` covers; empty where there is no index."""
    return tuple(dict.fromkeys(entity.search.text)) if entity.search is not None else ()


def text_of(field: Field | None, value: object) -> str | None:
    """A value as the index reads it: text as it is, anything else as in the row's JSON.

    Args:
        field: None for `id`.
        value: from a decoded row or from a column.
    """
    if value is None or isinstance(value, str):
        return value
    if field is not None and field.type is FieldType.BOOL:
        return "true" if value else "false"
    return orjson.dumps(value).decode()


def parse_match(entity: Entity, text: str) -> Match | None:
    """The search of a user's text in the full-text index.

    Returns: None for a text without words, which every row matches, and without an index.

    Raises:
        InvalidQuery: the text has a NUL character.
        LimitExceeded: `limits.SEARCH_CHARS`, `limits.SEARCH_WORDS` or `limits.SEARCH_TERMS`.
    """
    if not text_fields(entity):
        return None
    words = _split_words(entity, text)
    if not words:
        return None
    terms = len(runs_of(text))
    if terms > limits.SEARCH_TERMS:
        raise LimitExceeded(
            f"A search takes {limits.SEARCH_TERMS} runs of letters or digits at most, and this "
            f"has {terms}"
        )
    last = words.pop()
    words = [*dict.fromkeys(words), last]  # a repeated word changes no result, but costs time
    is_open = not text[-1].isspace() and _may_be_a_beginning(last)
    return Match(tuple(words), is_open)


def parse_words(entity: Entity, text: str) -> Predicate:
    """Return the condition that a row has all words of `text`, by the index or without one.

    Raises:
        InvalidQuery, LimitExceeded: as `parse_match`.
    """
    if text_fields(entity):
        return parse_match(entity, text) or TRUE
    words = _split_words(entity, text)
    names = [f.name for f in entity.fields if f.type in _LIKE_FIELDS]
    if not words:
        return TRUE
    if not names:
        return FALSE
    return and_(*[or_(*[contains(name, word) for name in names]) for word in words])


def runs_of(text: str) -> list[str]:
    """Return the runs of letters, digits and marks in a text, which are about the index's words."""
    return "".join([c if _is_of_word(c) else " " for c in text]).split()


def _is_of_word(character: str) -> bool:
    kind = category(character)
    return kind[0] in _WORD_CATEGORIES or kind == "Co"


def _may_be_a_beginning(word: str) -> bool:
    """Return whether a search for words that begin with `word` is quick enough.

    PERF: a single letter begins so many words that the merge of their rows takes 35 ms for 50,000
    rows of 36 words, where no time limit applies. A character of a script with thousands does not.
    """
    runs = runs_of(word)
    return bool(runs) and (len(runs[-1]) > 1 or runs[-1] >= _MANY_LETTERS)


def _split_words(entity: Entity, text: str) -> list[str]:
    if "\0" in text:
        raise InvalidQuery(f"The text to search {entity.name} for has a NUL character")
    if len(text) > limits.SEARCH_CHARS:
        raise LimitExceeded(
            f"A search takes {limits.SEARCH_CHARS} characters at most, and this has {len(text)}"
        )
    words = text.split()
    if len(words) > limits.SEARCH_WORDS:
        raise LimitExceeded(
            f"A search takes {limits.SEARCH_WORDS} words at most, and this has {len(words)}"
        )
    return words
