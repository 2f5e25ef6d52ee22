"""The words of a full-text index are those of SQLite's FTS5, for every character and any text."""

from __future__ import annotations

from collections.abc import Iterator

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pylon.query.index_words import index_words
from pylon.storage.sqlite.search import TOKENIZER
from tests.support.examples import count_examples

CHARACTERS = [n for n in range(1, 0x110000) if not 0xD800 <= n <= 0xDFFF]


@pytest.fixture(scope="module")
def fts() -> Iterator[apsw.Connection]:
    conn = apsw.Connection(":memory:")
    conn.execute(f'CREATE VIRTUAL TABLE f USING fts5(t, tokenize="{TOKENIZER}")')
    conn.execute("CREATE VIRTUAL TABLE v USING fts5vocab(f, instance)")
    yield conn
    conn.close()


def words_of_fts(conn: apsw.Connection, text: str) -> list[str]:
    conn.execute("DELETE FROM f")
    conn.execute("INSERT INTO f(rowid, t) VALUES (1, ?)", (text,))
    found = dict(conn.execute("SELECT offset, term FROM v"))
    return [str(found[place]) for place in sorted(found)]


def test_each_character_separates_or_is_folded_as_fts5_does(fts: apsw.Connection) -> None:
    """Sixteen characters in a text, each between two letters that no word ends with."""
    for begin in range(0, len(CHARACTERS), 4096):
        part = CHARACTERS[begin : begin + 4096]
        text = "\n".join(f"q{chr(n)}w" for n in part)
        assert index_words(text) == words_of_fts(fts, text), hex(part[0])


TEXTS = st.text(
    st.sampled_from("aBcÄé\u0301\u0300ß İıΣσςЖ-_'\"*1٣一丁ก็ा\U0001f600\U0001f914\ue000\n\t")
    | st.characters(exclude_categories=["Cs"], exclude_characters="\0"),
    max_size=24,
)


@settings(max_examples=count_examples(2_000))
@given(TEXTS)
def test_a_text_has_the_words_of_fts5(text: str) -> None:
    conn = apsw.Connection(":memory:")
    conn.execute(f'CREATE VIRTUAL TABLE f USING fts5(t, tokenize="{TOKENIZER}")')
    conn.execute("CREATE VIRTUAL TABLE v USING fts5vocab(f, instance)")
    assert index_words(text) == words_of_fts(conn, text)
