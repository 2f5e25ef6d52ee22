"""Search: makes, drops, fills and checks the column and the index of full-text search.

The rows determine the words. So they are written anew if the search config has changed.
`_pylon_meta` has the config of each entity, under `search:<Entity>`. An entity that is no longer
searched loses its index; the column stays, because nodes with the earlier manifest may still write
it.

Called by `apply` at a start, by `manager` for `pylonctl search`, and by
`pylon.storage.postgres.maintenance` for `pylonctl search rebuild` while the server runs.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

import orjson
import psycopg

from pylon.errors import SchemaRefused
from pylon.log import get_logger
from pylon.manifest.model import Entity, Manifest
from pylon.query.words import text_fields
from pylon.schema.columns import sort_index_name
from pylon.storage.postgres import meta
from pylon.storage.postgres.connect import error_text
from pylon.storage.postgres.names import WORDS_COLUMN, fitting_name, quote
from pylon.storage.postgres.schema import ddl
from pylon.storage.postgres.schema.backfill import Goal, RowWriter, backfill
from pylon.storage.postgres.schema.live import introspect
from pylon.storage.postgres.schema.online import OnlineSteps
from pylon.storage.postgres.schema.results import ask, ask_number
from pylon.storage.postgres.statements import Session
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.schemas import SearchCheck

_LAYOUT: Final = 1  # version of the words; a change has all of them written anew
_KEY: Final = "search:"
_CHECKED: Final = 500  # rows compared in one statement
_SHOWN: Final = 5

_log = get_logger("schema")


def forget_left(session: BlockingSession, manifest: Manifest, steps: OnlineSteps) -> None:
    """Drop the indexes of entities that are no longer searched."""
    wanted = {entity.name for entity in manifest.entities if text_fields(entity)}
    known = ask(session, "SELECT key FROM _pylon_meta WHERE starts_with(key, $1)", (_KEY,))
    for (key,) in known:
        name = str(key).removeprefix(_KEY)
        if name not in wanted:
            steps.drop_index(ddl.words_index_name(name))
            meta.remove(session, str(key))


def add_columns(
    session: BlockingSession, entity: Entity, steps: OnlineSteps, new_tables: Collection[str]
) -> None:
    """Make the missing column and indexes of an entity's search. `backfill` fills in the words."""
    if entity.search is None:
        return
    live = introspect(session, (entity.name,))
    table = live.tables[entity.name.lower()]
    if text_fields(entity):
        if WORDS_COLUMN not in table.columns:
            steps.change_table(ddl.add_words_column(entity), entity.name)
        if ddl.words_index_name(entity.name).lower() not in live.indexes:
            steps.make_index(
                ddl.words_index_name(entity.name), ddl.create_words_index(entity),
                is_new=entity.name in new_tables,
            )
    for field in entity.search.sortable if entity.search is not None else ():
        name = fitting_name(sort_index_name(entity, field))
        if field != "id" and name.lower() not in live.indexes:
            steps.make_index(
                name, ddl.create_sort_index(entity, field), is_new=entity.name in new_tables
            )


def is_current(session: Session, entity: Entity) -> bool:
    """Whether the words of an entity's rows are those of its search config."""
    return not text_fields(entity) or meta.get(session, _KEY + entity.name) == built_for(entity)


def note_current(session: Session, entity: Entity) -> None:
    """Note that all rows have their words."""
    if text_fields(entity):
        meta.put(session, _KEY + entity.name, built_for(entity))


def built_for(entity: Entity) -> str:
    """Return the config that determines the words of a row, as JSON."""
    types = [
        (name, entity.by_name[name].type.value if name in entity.by_name else "id")
        for name in text_fields(entity)
    ]
    return orjson.dumps([_LAYOUT, types]).decode()


def build(session: BlockingSession, entity: Entity) -> int:
    """Write the words of all rows anew. Return the number of rows.

    Raises:
        psycopg.Error: the entity's table is not (yet) as the manifest declares it.
    """
    rows = backfill(session, entity, Goal("words", has_words=True))
    note_current(session, entity)
    return rows


def renew(
    session: BlockingSession, manifest: Manifest, name: str, after_id: str, count: int
) -> tuple[int, str]:
    """Write the words of one batch of rows anew, within the open transaction, which has the
    writers' lock.

    Args:
        after_id: the last row of the previous batch; "" for the first batch.

    Returns: the number of rows in the batch, and the id of the last one; "" after the last batch.

    Raises:
        SchemaRefused: this server has no such index.
    """
    entity = manifest.by_name.get(name)
    if entity is None or not text_fields(entity):
        raise SchemaRefused(
            f"the running server has no search index of {name}",
            hint="restart it with the manifest that has it, which builds it too",
        )
    writer = RowWriter(session, entity, Goal("words", has_words=True))
    rows, last_id = writer.run_step((), after_id, count)
    if rows < count:
        note_current(session, entity)
        last_id = ""
    return rows, last_id


def check(session: BlockingSession, entity: Entity) -> SearchCheck:
    """Compare the words of the rows with their texts, all of one commit. It writes nothing.

    Raises:
        psycopg.Error: the entity's table is not (yet) as the manifest declares it.
    """
    session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    try:
        rows = ask_number(session, f"SELECT count(*) FROM {quote(entity.name)}")
        index = ddl.words_index_name(entity.name).lower()
        live = introspect(session, (entity.name,))
        if not is_current(session, entity) or index not in live.indexes:
            return SearchCheck(entity.name, rows, ("there is no index for this search config",))
        return SearchCheck(entity.name, rows, tuple(_problems(session, entity)))
    finally:
        session.execute("ROLLBACK")


def _problems(session: BlockingSession, entity: Entity) -> list[str]:
    """Return a line for the first rows whose words are not those of their texts."""
    writer = RowWriter(session, entity, Goal("words", has_words=True))
    compare = (
        f"SELECT t.id FROM unnest($1::text[], $2::text[]) AS n (id, words) "
        f"JOIN {quote(entity.name)} AS t ON t.id = n.id "
        f"WHERE t.{WORDS_COLUMN} IS DISTINCT FROM n.words::tsvector ORDER BY t.id"
    )
    after, wrong = "", []
    while True:
        ids, values = writer.read((), after, _CHECKED)
        if not ids:
            break
        wrong += [str(row_id) for (row_id,) in ask(session, compare, [ids, *values])]
        after = str(ids[-1])
    if not wrong:
        return []
    shown = ", ".join(wrong[:_SHOWN])
    return [f"{len(wrong)} rows have other words in the index than in their texts: {shown}"]


def mismatch(error: psycopg.Error, place: str) -> SchemaRefused:
    """Return the refusal for a table that is not as the manifest has it."""
    return SchemaRefused(
        f"{place} is not as the manifest has it: {error_text(error)}",
        hint="start the server once, or: pylonctl schema apply; both build missing indexes",
    )
