"""Search tables: makes, drops and checks the tables of full-text search (spec/http.md §2.7).

The rows determine the content of an index. So an index is built if it is missing, if its search
config has changed, or if another program has written to the database. It is dropped when its
config leaves the manifest. `_pylon_meta` has the config of each index, under `search:<Entity>`.

Invariant: everything here runs in the transaction of its caller. Called by `apply` at a start, by
`manager` for `pylonctl search`, and by `pylon.storage.sqlite.maintenance` for `pylonctl search
rebuild` while the server runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any, Final

import apsw
import orjson

from pylon.errors import SchemaRefused
from pylon.log import get_logger
from pylon.manifest.model import Entity, Index, Manifest
from pylon.query.words import text_fields, text_of
from pylon.schema.columns import sort_index_name
from pylon.storage.schemas import SearchCheck
from pylon.storage.sqlite import meta
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import ddl
from pylon.storage.sqlite.search import (
    TOKENIZER,
    index_columns,
    index_table,
    rowid_table,
)

_log = get_logger("schema")
_LAYOUT: Final = 1  # version of the tables; a change has all indexes built anew
_KEY: Final = "search:"
# Tables that a check makes in the temporary database.
_FRESH: Final = "pylon_fresh_index"
_LIVE_WORDS: Final = "pylon_live_words"
_FRESH_WORDS: Final = "pylon_fresh_words"


def migrate(conn: apsw.Connection, manifest: Manifest, stale: bool) -> list[str]:
    """Build and drop indexes as the manifest requires.

    Args:
        stale: another program has written to the database: build all indexes.

    Returns: the names of the entities whose index was built.
    """
    wanted = {e.name: e for e in manifest.entities if text_fields(e)}
    for name in _known(conn) - wanted.keys():
        _drop(conn, name)
    built = []
    for entity in wanted.values():
        if stale or not _is_current(conn, entity):
            rows = build(conn, entity)
            built.append(entity.name)
            _log.info("search.built", entity=entity.name, rows=rows)
    for entity in manifest.entities:
        _add_sort_indexes(conn, entity)
    return built


def build(conn: apsw.Connection, entity: Entity) -> int:
    """Build the index of `entity` anew from its rows.

    Returns: the number of indexed rows.

    Raises:
        apsw.SQLError: the entity's table is not (yet) as the manifest declares it.
    """
    _drop(conn, entity.name)
    table, numbers = quote(index_table(entity)), quote(rowid_table(entity))
    conn.execute(_create_index(entity, table))
    conn.execute(_create_numbers(entity))
    conn.execute(f"INSERT INTO {numbers} (id) SELECT id FROM {quote(entity.name)} ORDER BY id")
    rows = conn.changes()
    _fill(conn, entity, table)
    meta.put(conn, _KEY + entity.name, _built_for(entity))
    return rows


def renew(
    conn: apsw.Connection, manifest: Manifest, name: str, after_id: str, count: int
) -> tuple[int, str]:
    """Index one batch of the rows of an entity anew; clients may write between batches.

    A batch replaces the entries of its rows. After the last batch the entries without a row are
    removed. Until then the index counts as missing, so that a start would build it. A batch makes
    all changes or none, within the open transaction.

    Args:
        after_id: the last row of the previous batch; "" for the first batch.

    Returns: the number of rows in the batch, and the id of the last one; "" after the last batch.

    Raises:
        SchemaRefused: this server has no such index, or the index is too damaged.
    """
    entity = manifest.by_name.get(name)
    if entity is None or not text_fields(entity):
        raise SchemaRefused(
            f"the running server has no search index of {name}",
            hint="restart it with the manifest that has it, which builds it too",
        )
    conn.execute("SAVEPOINT renew")
    try:
        if not after_id:
            _make_missing(conn, entity)
        rows, last_id = _renew_rows(conn, entity, after_id, count)
        if not last_id:
            _drop_strays(conn, entity)
            meta.put(conn, _KEY + name, _built_for(entity))
    except (apsw.CorruptError, apsw.SQLError, apsw.ConstraintError) as error:
        conn.execute("ROLLBACK TO renew")
        conn.execute("RELEASE renew")
        raise SchemaRefused(
            f"the index of {name} is too damaged to be renewed beside writes: {error_text(error)}",
            hint="stop the server (pylonctl stop), then: pylonctl search rebuild",
        ) from error
    conn.execute("RELEASE renew")
    return rows, last_id


def check(conn: apsw.Connection, entity: Entity) -> SearchCheck:
    """Compare the index with the rows: it must have the same rows, and each word at its place.

    It makes a fresh index in the temporary database and writes nothing else. Call it in a
    transaction, so that index and rows are of one commit.
    """
    rows = int(conn.execute(f"SELECT count(*) FROM {quote(entity.name)}").get)
    if not _is_current(conn, entity):
        return SearchCheck(entity.name, rows, ("there is no index for this search config",))
    problems = _row_problems(conn, entity)
    if not problems:
        problems = _word_problems(conn, entity)
    return SearchCheck(entity.name, rows, tuple(problems))


def _known(conn: apsw.Connection) -> set[str]:
    """Return the names of the entities that have a search index of Pylon."""
    keys: list[Any] = conn.execute(
        "SELECT key FROM _pylon_meta WHERE key >= ? AND key < ?", (_KEY, _KEY[:-1] + ";")
    ).fetchall()
    return {key.removeprefix(_KEY) for (key,) in keys}


def _is_current(conn: apsw.Connection, entity: Entity) -> bool:
    tables = int(conn.execute(
        "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name IN (?, ?)",
        (index_table(entity), rowid_table(entity)),
    ).get)
    return tables == 2 and meta.get(conn, _KEY + entity.name) == _built_for(entity)


def _built_for(entity: Entity) -> str:
    """Return the config that determines the content of an index, as JSON."""
    types = [
        (name, entity.by_name[name].type.value if name in entity.by_name else "id")
        for name in text_fields(entity)
    ]
    return orjson.dumps([_LAYOUT, TOKENIZER, types]).decode()


def _drop(conn: apsw.Connection, name: str) -> None:
    conn.execute(f"DROP TABLE IF EXISTS {quote(f'_fts_{name}')}")
    conn.execute(f"DROP TABLE IF EXISTS {quote(f'_pylon_search_{name}')}")
    meta.delete(conn, _KEY + name)


def _make_missing(conn: apsw.Connection, entity: Entity) -> None:
    """Make missing tables, and mark the index as incomplete."""
    tables: list[Any] = conn.execute(
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name IN (?, ?)",
        (index_table(entity), rowid_table(entity)),
    ).fetchall()
    if len(tables) < 2 or meta.get(conn, _KEY + entity.name) not in (None, _built_for(entity)):
        _drop(conn, entity.name)
        conn.execute(_create_index(entity, quote(index_table(entity))))
        conn.execute(_create_numbers(entity))
    meta.delete(conn, _KEY + entity.name)


def _renew_rows(
    conn: apsw.Connection, entity: Entity, after_id: str, count: int
) -> tuple[int, str]:
    names = text_fields(entity)
    fields = [entity.by_name.get(name) for name in names]
    values = ", ".join(quote(name) for name in names)
    rows: list[Any] = conn.execute(
        f"SELECT id, {values} FROM {quote(entity.name)} WHERE id > ? ORDER BY id LIMIT ?",
        (after_id, count),
    ).fetchall()
    table, numbers = quote(index_table(entity)), quote(rowid_table(entity))
    columns = ", ".join(("rowid", *(quote(c) for c in index_columns(entity))))
    marks = ", ".join("?" * (1 + len(names)))
    for row_id, *row in rows:
        conn.execute(f"INSERT OR IGNORE INTO {numbers} (id) VALUES (?)", (row_id,))
        number = conn.execute(f"SELECT number FROM {numbers} WHERE id = ?", (row_id,)).get
        texts = [text_of(f, v) for f, v in zip(fields, row, strict=True)]
        conn.execute(
            f"INSERT OR REPLACE INTO {table} ({columns}) VALUES ({marks})", (number, *texts)
        )
    return len(rows), rows[-1][0] if len(rows) == count else ""


def _drop_strays(conn: apsw.Connection, entity: Entity) -> None:
    """Remove numbers without a row, and entries without a number."""
    table, numbers = quote(index_table(entity)), quote(rowid_table(entity))
    conn.execute(
        f"DELETE FROM {numbers} WHERE id IN "
        f"(SELECT id FROM {numbers} EXCEPT SELECT id FROM {quote(entity.name)})"
    )
    strays: list[Any] = conn.execute(
        f"SELECT rowid FROM {table} EXCEPT SELECT number FROM {numbers}"
    ).fetchall()
    conn.executemany(f"DELETE FROM {table} WHERE rowid = ?", strays)


def _create_numbers(entity: Entity) -> str:
    return (
        f"CREATE TABLE {quote(rowid_table(entity))} "
        "(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE)"
    )


def _create_index(entity: Entity, table: str) -> str:
    columns = ", ".join(quote(c) for c in index_columns(entity))
    return (
        f'CREATE VIRTUAL TABLE {table} USING fts5({columns}, tokenize="{TOKENIZER}", '
        "content='', contentless_delete=1)"
    )


def _fill(conn: apsw.Connection, entity: Entity, table: str) -> None:
    """Insert the texts of all rows into the empty index `table`, under their numbers."""
    names = text_fields(entity)
    fields = [entity.by_name.get(name) for name in names]
    columns = ", ".join(("rowid", *(quote(c) for c in index_columns(entity))))
    marks = ", ".join("?" * (1 + len(names)))

    def entries() -> Iterator[tuple[int | str | None, ...]]:
        rows, numbers = quote(entity.name), quote(rowid_table(entity))
        values = ", ".join(f"{rows}.{quote(name)}" for name in names)
        found: Any = conn.execute(
            f"SELECT number, {values} FROM {numbers} CROSS JOIN {rows} "
            f"ON {rows}.id = {numbers}.id ORDER BY number"
        )
        for number, *row in found:
            yield (number, *(text_of(f, v) for f, v in zip(fields, row, strict=True)))

    conn.executemany(f"INSERT INTO {table} ({columns}) VALUES ({marks})", entries())


def _add_sort_indexes(conn: apsw.Connection, entity: Entity) -> None:
    for field in entity.search.sortable if entity.search is not None else ():
        if field != "id":
            name = sort_index_name(entity, field)
            sql = ddl.create_index(name, entity, Index(name, (field,), False))
            conn.execute(sql.replace("CREATE INDEX", "CREATE INDEX IF NOT EXISTS", 1))


def _row_problems(conn: apsw.Connection, entity: Entity) -> list[str]:
    """Return a line for each kind of mismatch between rows, numbers and index entries."""
    rows = f"SELECT id FROM {quote(entity.name)}"
    entries = f"SELECT rowid FROM {quote(index_table(entity))}"
    ids, numbers = (f"SELECT {c} FROM {quote(rowid_table(entity))}" for c in ("id", "number"))
    comparisons = {
        "rows have no number": (rows, ids),
        "numbers have no row": (ids, rows),
        "rows are not in the index": (numbers, entries),
        "entries have no number": (entries, numbers),
    }
    found = []
    for what, (these, those) in comparisons.items():
        count = conn.execute(f"SELECT count(*) FROM ({these} EXCEPT {those})").get
        if count:
            found.append(f"{count} {what}")
    return found


def _word_problems(conn: apsw.Connection, entity: Entity) -> list[str]:
    """Return a line for the first word at another place than in a fresh index."""
    live, fresh = conn.cursor(), conn.cursor()
    try:
        conn.execute(_create_index(entity, f"temp.{_FRESH}"))
        _fill(conn, entity, f"temp.{_FRESH}")
        conn.execute(
            f"CREATE VIRTUAL TABLE temp.{_LIVE_WORDS} USING "
            f"fts5vocab('main', {quote(index_table(entity))}, 'instance')"
        )
        conn.execute(
            f"CREATE VIRTUAL TABLE temp.{_FRESH_WORDS} USING "
            f"fts5vocab('temp', {_FRESH}, 'instance')"
        )
        places = "SELECT term, doc, col, offset FROM temp."
        pairs: Any = zip_longest(
            live.execute(places + _LIVE_WORDS), fresh.execute(places + _FRESH_WORDS)
        )
        for ours, right in pairs:
            if ours != right:
                found, wanted = _describe_place(ours), _describe_place(right)
                return [f"the index has {found} where the rows have {wanted}"]
    finally:
        live.close(force=True)
        fresh.close(force=True)
        for name in (_LIVE_WORDS, _FRESH_WORDS, _FRESH):
            conn.execute(f"DROP TABLE IF EXISTS temp.{name}")
    return []


def _describe_place(place: tuple[Any, ...] | None) -> str:
    if place is None:
        return "no further word"
    term, number, column, offset = place
    return f'"{str(term)[:40]}" in {column}, row number {number}, word {offset + 1}'
