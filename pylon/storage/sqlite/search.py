"""Full-text search in SQLite: what a user's words mean in SQL, and the index behind them.

An entity with text fields in its `search` config has an FTS5 table `_fts_<Entity>` over them
and beside it `_pylon_search_<Entity>`, which says under which number the index knows a row:
entity tables have no rowid, and to look for an id in an FTS table is a scan. The texts
themselves are not stored again (`content=''`); measured on 20,000 rows of 36 words: writes as
fast as with a stored copy, the file a fifth smaller. (`contentless_unindexed` could keep the id
in the FTS table, but SQLite 3.54 forgets to drop and to rename what it keeps it in.)

Invariants: `SearchIndex` writes in the transaction of the row's change and through the same
connection, so index and rows are of one commit; a user's text is never FTS5 syntax, for each
word of it becomes a quoted string. The engine calls the index, the API and the filter parser
`search_clause` and `match_of`; `pylon.storage.sqlite.schema.search` makes, drops and checks the
tables.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from unicodedata import category

import apsw
import orjson

from pylon import limits
from pylon.errors import InvalidQuery, LimitExceeded
from pylon.manifest.model import Entity, Field, FieldType
from pylon.storage.clause import SqlClause, Work
from pylon.storage.names import quote
from pylon.storage.sqlite.patterns import contains_clause
from pylon.storage.where import ALL, NOTHING, and_, or_

# Marks are letters' parts: Thai, Hindi and Arabic write vowels with them.
TOKENIZER: Final = "unicode61 remove_diacritics 2 categories 'L* N* Co M*'"
_NOT_FOR_COLUMNS: Final = frozenset({"rank", "rowid"})  # FTS5 keeps them for itself
RELEVANCE: Final = '".rank"'  # the best first; no field can have this name
_LIKE_FIELDS: Final = (FieldType.STRING, FieldType.RICHTEXT)
_WORD_CATEGORIES: Final = frozenset("LNM")  # as in TOKENIZER; private use ("Co") beside them
_MANY_LETTERS: Final = "\u2e80"  # from here on: the scripts of East Asia
_CHAIN: Final = 50  # SQLite bounds the depth of expressions


def text_fields(entity: Entity) -> tuple[str, ...]:
    """The fields that the index of `entity` covers; empty where there is no index."""
    return tuple(dict.fromkeys(entity.search.text)) if entity.search is not None else ()


def index_table(entity: Entity) -> str:
    """The name of the FTS5 table."""
    return f"_fts_{entity.name}"


def rowid_table(entity: Entity) -> str:
    """The name of the table of row ids and their row numbers in the FTS5 table."""
    return f"_pylon_search_{entity.name}"


def index_columns(entity: Entity) -> tuple[str, ...]:
    """The FTS5 table's columns, one for each text field. A field with a name that no column may
    have gets one that no field can have."""
    return tuple(
        f".{f}" if f.lower() in _NOT_FOR_COLUMNS else f for f in text_fields(entity)
    )


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


# --- Words ------------------------------------------------------------------------------------


def match_of(entity: Entity, text: str) -> str | None:
    """The FTS5 expression for a user's text: all words, in any order, anywhere in the row.

    A word that is still being typed, that is the last one unless white space follows it, also
    finds words that begin with it, from its second letter on. A word like ``foo-bar`` is found
    as the phrase "foo bar".

    Returns: None for a text without words, which every row matches.

    Raises:
        InvalidQuery: the text has a NUL character.
        LimitExceeded: `limits.SEARCH_CHARS`, `limits.SEARCH_WORDS` or `limits.SEARCH_TERMS`.
    """
    words = _words(entity, text)
    if not words:
        return None
    terms = len(runs_of(text))
    if terms > limits.SEARCH_TERMS:
        raise LimitExceeded(
            f"A search takes {limits.SEARCH_TERMS} runs of letters or digits at most, and this "
            f"has {terms}"
        )
    last = words.pop()
    words = [*dict.fromkeys(words), last]  # a word twice is no other search, and costs twice
    # Strings side by side are an AND in which one without letters or digits is left out.
    quoted = " ".join('"' + word.replace('"', '""') + '"' for word in words)
    is_open = not text[-1].isspace() and _may_be_a_beginning(words[-1])
    return quoted + " *" if is_open else quoted


def search_clause(entity: Entity, text: str) -> SqlClause:
    """The rows that have all words of `text`: by the index, or in the string and richtext
    fields of an entity without one (each word as a part of one of them, regardless of the
    case of ASCII letters).

    Raises:
        InvalidQuery, LimitExceeded: as `match_of`.
    """
    if text_fields(entity):
        match = match_of(entity, text)
        return ALL if match is None else match_clause(entity, match)
    words = _words(entity, text)
    columns = [quote(f.name) for f in entity.fields if f.type in _LIKE_FIELDS]
    if not words:
        return ALL
    if not columns:
        return NOTHING
    return and_(*[
        _either([contains_clause(column, word) for column in columns]) for word in words
    ])


def match_clause(entity: Entity, match: str) -> SqlClause:
    """The rows that an expression of `match_of` finds."""
    return SqlClause(f"{quote('id')} IN (SELECT {_matches(entity)})", (match,), Work.MATCH)


def relevant(entity: Entity) -> str:
    """What to select from, in place of the entity's table, for the rows that an expression
    finds (a parameter) with a further column `RELEVANCE`. CROSS: the index leads."""
    table = quote(entity.name)
    found = f"SELECT {_matches(entity, RELEVANCE)}"
    return f'({found}) CROSS JOIN {table} ON {table}.id = ".id"'


def _matches(entity: Entity, rank: str = "") -> str:
    table, numbers = quote(index_table(entity)), quote(rowid_table(entity))
    ranked = f", bm25({table}) AS {rank}" if rank else ""
    return (
        f'{numbers}.id AS ".id"{ranked} FROM {table} CROSS JOIN {numbers} '
        f"ON number = {table}.rowid WHERE {table} MATCH ?"
    )


def _may_be_a_beginning(word: str) -> bool:
    """A single letter begins so many words that to merge their rows takes long (35 ms for
    50,000 rows of 36 words, where no time limit is looked at); a single character of a script
    that has thousands does not."""
    runs = runs_of(word)
    return bool(runs) and (len(runs[-1]) > 1 or runs[-1] >= _MANY_LETTERS)


def runs_of(text: str) -> list[str]:
    """The runs of letters, digits and marks in a text: words of the index, or nearly."""
    return "".join([c if _is_of_word(c) else " " for c in text]).split()


def _is_of_word(character: str) -> bool:
    kind = category(character)
    return kind[0] in _WORD_CATEGORIES or kind == "Co"


def _words(entity: Entity, text: str) -> list[str]:
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


def _either(tests: list[SqlClause]) -> SqlClause:
    while len(tests) > 1:
        tests = [or_(*tests[i:i + _CHAIN]) for i in range(0, len(tests), _CHAIN)]
    return tests[0]


# --- The index ----------------------------------------------------------------------------------


class SearchIndex:
    """Keeps the index of one entity in step with its rows.

    Each call belongs into the transaction of the change that it is told of, after the change,
    and may raise apsw.Error; what it did is then undone with the transaction.
    """

    __slots__ = ("_clear", "_conn", "_fields", "_find", "_forget", "_insert", "_number",
                 "_remove", "_replace")

    def __init__(self, conn: apsw.Connection, entity: Entity) -> None:
        """Args: `entity` has text fields in its search config, and its tables exist."""
        self._conn = conn
        self._fields = tuple((f, entity.by_name.get(f)) for f in text_fields(entity))
        table, numbers = quote(index_table(entity)), quote(rowid_table(entity))
        columns = ", ".join(("rowid", *(quote(c) for c in index_columns(entity))))
        marks = ", ".join("?" * (1 + len(index_columns(entity))))
        self._insert = f"INSERT INTO {table} ({columns}) VALUES ({marks})"
        self._replace = f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})"
        self._remove = f"DELETE FROM {table} WHERE rowid = ?"
        self._find = f"SELECT number FROM {numbers} WHERE id = ?"
        self._number = f"INSERT INTO {numbers} (id) VALUES (?)"
        self._forget = f"DELETE FROM {numbers} WHERE id = ?"
        self._clear = (
            f"INSERT INTO {table} ({table}) VALUES ('delete-all')", f"DELETE FROM {numbers}"
        )

    def inserted(self, row_id: str, row: Mapping[str, Any]) -> None:
        """A row is there that was not."""
        self._conn.execute(self._number, (row_id,))
        number = self._conn.last_insert_rowid()
        self._conn.execute(self._insert, (number, *self._texts(row)))

    def updated(self, row_id: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
        """A row has changed. Costs nothing where no text field has."""
        texts = self._texts(after)
        if texts != self._texts(before):
            number = self._conn.execute(self._find, (row_id,)).get
            if number is None:  # somebody wrote the row beside us
                self.inserted(row_id, after)
                return
            self._conn.execute(self._replace, (number, *texts))

    def deleted(self, row_id: str) -> None:
        """A row is gone."""
        self._conn.execute(self._remove, (self._conn.execute(self._find, (row_id,)).get,))
        self._conn.execute(self._forget, (row_id,))

    def cleared(self) -> None:
        """All rows of the entity are gone."""
        for statement in self._clear:
            self._conn.execute(statement)

    def _texts(self, row: Mapping[str, Any]) -> tuple[str | None, ...]:
        return tuple([text_of(field, row[name]) for name, field in self._fields])
