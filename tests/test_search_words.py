"""What a user's text means as a search: in an index, and without one."""

from __future__ import annotations

import apsw
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType, Search
from pylon.query.words import parse_match, parse_words, runs_of, text_of
from pylon.storage.sql.compiler import compile_predicate
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.schema import ddl
from pylon.storage.sqlite.schema.search import build
from pylon.storage.sqlite.search import (
    SearchIndex,
    index_columns,
    match_expression,
)

TITLE = Field("title", FieldType.STRING, optional=False, unique=False)
BODY = Field("body", FieldType.RICHTEXT, optional=True, unique=False)
OPEN = Field("open", FieldType.BOOL, optional=True, unique=False)
INDEXED = Entity("Page", (TITLE, BODY, OPEN), search=Search(("title", "body"), (), ()))
PLAIN = Entity("Page", (TITLE, BODY, OPEN))
BARE = Entity("Page", (OPEN,))

ROWS = [
    ("1", "Pump leaks at 100%", "Replace the seal, AND tighten it"),
    ("2", "Café menu", None),
    ("3", "foo-bar \U0001f680 launch", "NEAR the \"old\" pier (east) OR west*"),
    ("4", "日本語 の本", "under_score c:\\path"),
]


@pytest.fixture(scope="module")
def conn() -> apsw.Connection:
    conn = apsw.Connection(":memory:")
    for statement in (*ddl.SYSTEM_TABLES, ddl.create_table(INDEXED)):
        conn.execute(statement)
    build(conn, INDEXED)
    index = SearchIndex(conn, INDEXED)
    for row_id, title, body in ROWS:
        conn.execute("INSERT INTO Page (id, title, body) VALUES (?, ?, ?)", (row_id, title, body))
        index.add_row(row_id, {"id": row_id, "title": title, "body": body})
    return conn


def found(conn: apsw.Connection, entity: Entity, text: str) -> str:
    clause = compile_predicate(SQLITE, entity, parse_words(entity, text))
    rows = conn.execute(f"SELECT id FROM Page WHERE {clause.sql} ORDER BY id", clause.params)
    return "".join(row_id for (row_id,) in rows)


@pytest.mark.parametrize(("word", "beginning"), [
    ("สวัสดี", "สวัส"),  # Thai: vowels above and below are marks
    ("हिन्दी", "हिन्"),  # Hindi: so are vowels and the virama
    ("مُحَمَّد", "مُحَ"),  # Arabic, vocalised
    ("שָׁלוֹם", "שָׁל"),  # Hebrew, pointed
    ("ភាសាខ្មែរ", "ភាសា"),  # Khmer
])
def test_a_mark_belongs_to_its_word(word: str, beginning: str) -> None:
    conn = apsw.Connection(":memory:")
    for statement in (*ddl.SYSTEM_TABLES, ddl.create_table(INDEXED)):
        conn.execute(statement)
    build(conn, INDEXED)
    index = SearchIndex(conn, INDEXED)
    conn.execute("INSERT INTO Page (id, title) VALUES ('1', ?)", (word,))
    index.add_row("1", {"id": "1", "title": word, "body": None})
    assert runs_of(f"{word}, {word}") == [word, word]
    for text in (word, beginning):
        assert found(conn, INDEXED, text) == "1"
    assert found(conn, INDEXED, beginning + " ") == "", "a finished word is no beginning"
    assert found(conn, INDEXED, word[1:]) == "", "the middle of a word is no word"


@pytest.mark.parametrize(("text", "indexed", "plain"), [
    ("", "1234", "1234"),
    (" \t\n", "1234", "1234"),
    ("pump", "1", "1"),
    ("PUMP leaks", "1", "1"),
    ("leaks pump", "1", "1"),
    ("leak", "1", "1"),  # the last word may be unfinished
    ("le", "1", "1"),
    ("l", "", "13"),  # one letter is too little
    ("re-l", "", ""),
    ("日", "4", "4"),  # one character of these is not
    ("leak ", "", "1"),  # this one is finished
    ("pum leaks", "", "1"),  # and so is every word but the last
    ("cafe", "2", ""),
    ("CAFÉ", "2", ""),
    ("Café", "2", "2"),
    ("foo-bar", "3", "3"),
    ("foo bar", "3", "3"),
    ("bar-foo", "", ""),
    ("AND", "1", "1"),
    ("seal AND tighten", "1", "1"),
    ("OR", "3", "34"),
    ("NEAR", "3", "3"),
    ("NEAR(old pier)", "", ""),
    ("old pier", "3", "3"),
    ('"old"', "3", "3"),
    ('"old pier"', "3", ""),
    ('"', "", "3"),
    ("*", "", "3"),
    ("west*", "3", "3"),
    ("pier *", "3", "3"),
    ("title:pump", "", ""),
    ("title : pump", "", ""),
    ("^pump", "1", ""),
    ("-pump", "1", ""),
    ("+ pump", "1", ""),
    ("{title}", "", ""),
    ("\U0001f680", "", "3"),
    ("\U0001f680 launch", "3", "3"),
    ("日本語", "4", "4"),
    ("日本", "4", "4"),
    ("本語", "", "4"),  # within a run of letters only beginnings are found
    ("100%", "1", "1"),
    ("%", "", "1"),
    ("_", "", "4"),
    ("under_score", "4", "4"),
    ("c:\\path", "4", "4"),
    ("'; DROP TABLE Page; --", "", ""),
])
def test_answers(conn: apsw.Connection, text: str, indexed: str, plain: str) -> None:
    assert (found(conn, INDEXED, text), found(conn, PLAIN, text)) == (indexed, plain)


def test_an_entity_without_texts_has_no_words(conn: apsw.Connection) -> None:
    assert found(conn, BARE, "pump") == ""
    assert found(conn, BARE, "") == "1234"


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
@example('""" NEAR(" AND *:^-+(){}')
def test_no_text_is_syntax(conn: apsw.Connection, text: str) -> None:
    for entity in (INDEXED, PLAIN):
        if "\0" in text:
            with pytest.raises(InvalidQuery, match="NUL"):
                parse_words(entity, text)
        else:
            assert set(found(conn, entity, text)) <= set("1234")


def test_a_long_text_is_refused() -> None:
    with pytest.raises(LimitExceeded, match="1000 characters"):
        parse_match(INDEXED, "x" * (limits.SEARCH_CHARS + 1))
    with pytest.raises(LimitExceeded, match="32 words"):
        parse_words(PLAIN, "x " * (limits.SEARCH_WORDS + 1))
    assert parse_match(INDEXED, "x " * limits.SEARCH_WORDS) is not None
    with pytest.raises(LimitExceeded, match="runs of letters or digits"):
        parse_match(INDEXED, "a." * (limits.SEARCH_TERMS + 1))
    match = parse_match(INDEXED, "a b a b pump")
    assert match is not None
    assert match_expression(match) == '"a" "b" "pump" *', "no word is asked for twice"


def test_a_wide_entity_can_be_searched() -> None:
    fields = tuple(
        Field(f"f{n}", FieldType.STRING, optional=True, unique=False) for n in range(1_500)
    )
    wide = Entity("Wide", fields)
    conn = apsw.Connection(":memory:")
    conn.execute(f"CREATE TABLE Wide (id TEXT, {', '.join(f.name for f in fields)})")
    conn.execute("INSERT INTO Wide (id, f1499) VALUES ('1', 'needle')")
    clause = compile_predicate(SQLITE, wide, parse_words(wide, "nee dle"))
    assert conn.execute(f"SELECT id FROM Wide WHERE {clause.sql}", clause.params).get == "1"


def test_names_that_fts5_keeps_for_itself_get_others() -> None:
    fields = tuple(
        Field(name, FieldType.STRING, optional=True, unique=False)
        for name in ("rank", "RowId", "text")
    )
    entity = Entity("E", fields, search=Search(tuple(f.name for f in fields), (), ()))
    assert index_columns(entity) == (".rank", ".RowId", "text")


def test_values_that_are_no_texts_are_indexed_as_the_row_shows_them() -> None:
    number = Field("n", FieldType.FLOAT, optional=True, unique=False)
    assert [text_of(OPEN, v) for v in (True, 0, None)] == ["true", "false", None]
    assert [text_of(number, v) for v in (3.0, 2.5, 7)] == ["3.0", "2.5", "7"]
    assert text_of(None, "ab") == "ab"
