"""Brings a SQLite database to the manifest, in one transaction, before anything else runs.

A database of the other server opens as it is: its tables get `_json`, filled from the columns
with the same encoder that writes use, and `_seq`; its change log is kept. Every start leaves a
line in `_pylon_schema_history`; by their number the next start knows whether somebody else has
written in between, whose rows then have no JSON, or an old one, and whose changes no client
has seen.

Invariants: after `prepare_store` every row has its `_json`, with the manifest's fields and no
other, and a row whose JSON has changed on the way has a `_seq` that it never had before; rows
exist only where the head seq is above 0 (an epoch is opened for rows that no event tells of);
on any error the database is as it was. An unchanged schema costs a few look-ups in the
catalogue. Called by the engine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import apsw
import orjson

from pylon.clock import Clock, SystemRandom
from pylon.errors import SchemaRefused
from pylon.manifest.model import Entity, Manifest
from pylon.schema.steps import Plan
from pylon.storage.sqlite import log, meta
from pylon.storage.sqlite.epochs import open_epoch
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import ddl, history, search
from pylon.storage.sqlite.schema.live import introspect
from pylon.storage.sqlite.schema.plan import left_over, make_plan
from pylon.storage.sqlite.short_rows import note_short_rows
from pylon.values import EntityCodec

_LINEAGE_BYTES: Final = 16
_PORTION_COLUMNS: Final = 500  # of a row that is handed to Python; SQLite's bound is 1,000
_FILLERS: Final = {"TEXT": "", "INTEGER": 0, "REAL": 0.0}


@dataclass(frozen=True, slots=True)
class Prepared:
    """What `prepare_store` found and did.

    `retained_columns` has, for each entity, the columns that the manifest no longer names but that
    the table wants a value for, with the value that inserts give them.
    """

    plan: Plan
    created: bool  # the database had no lineage: it is new to us
    epoch_opened: bool
    lineage: str
    retained_columns: dict[str, dict[str, object]]


def prepare_store(conn: apsw.Connection, manifest: Manifest, clock: Clock) -> Prepared:
    """Make or complete all tables; see the module's text.

    Raises:
        SchemaRefused: additive steps cannot do it; nothing was changed.
        apsw.Error: the database cannot be used.
    """
    conn.execute("BEGIN IMMEDIATE")
    try:
        make_system_tables(conn)
        prepared = complete(conn, manifest, clock, "start", [])
        conn.execute("COMMIT")
    finally:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
    return prepared


def make_system_tables(conn: apsw.Connection) -> None:
    """Make what is missing of our own tables, within the transaction that is open.

    Raises:
        SchemaRefused: the database is a newer Pylon's.
    """
    history.refuse_newer(conn)
    for statement in ddl.SYSTEM_TABLES:
        conn.execute(statement)
    for table, column, statement in ddl.LATER_COLUMNS:
        known = "SELECT 1 FROM pragma_table_info(?) WHERE name = ?"
        if conn.execute(known, (table, column)).get is None:
            conn.execute(statement)
    conn.execute("INSERT OR IGNORE INTO _pylon_change_seq (id, value) VALUES (1, 0)")


def complete(
    conn: apsw.Connection, manifest: Manifest, clock: Clock, baseline: str, before: list[str]
) -> Prepared:
    """The additive part, within the transaction that is open.

    Args:
        baseline: `start` or `apply`, for the history.
        before: what has been done in this transaction already, for the history.
    """
    plan = make_plan(conn, manifest)
    plan.check()
    carry_out(conn, plan)
    note_indexes(conn, manifest, plan)

    lineage = meta.get(conn, "lineage")
    written_elsewhere = lineage is not None and _written_elsewhere(conn)
    epoch_opened = False
    if written_elsewhere:
        # Whoever was here may have written without our log: no earlier cursor can be trusted.
        open_epoch(conn, "written by another server", clock, void_from=0)
        epoch_opened = True
    elif log.head_seq(conn) == 0 and _has_rows(conn, manifest):
        open_epoch(conn, "rows without a change log", clock)
        epoch_opened = True
    _bring_rows_up(conn, manifest, plan, written_elsewhere, epoch_opened)
    search.migrate(conn, manifest, stale=written_elsewhere)
    note_short_rows(conn, manifest, is_stale=written_elsewhere)

    created = lineage is None
    if lineage is None:
        lineage = SystemRandom().token_hex(_LINEAGE_BYTES)
        meta.put(conn, "lineage", lineage)
    lines = [*before, *(s.render() for s in plan.steps)]
    history.record(conn, manifest, baseline, lines, clock)
    return Prepared(plan, created, epoch_opened, lineage, _fillers(conn, manifest))


def carry_out(conn: apsw.Connection, plan: Plan) -> None:
    """Execute the additive steps, within the transaction that is open.

    Raises:
        SchemaRefused: SQLite does not carry one out; names it.
    """
    for step in plan.steps:
        try:
            conn.execute(step.sql)
        except (apsw.ConstraintError, apsw.SQLError) as error:
            raise SchemaRefused(f"{step.render()}: {error_text(error)}") from error


def _bring_rows_up(
    conn: apsw.Connection, manifest: Manifest, plan: Plan, written_elsewhere: bool,
    epoch_opened: bool,
) -> None:
    """Make `_json` and `_seq` anew where the rows' JSON has to change."""
    unversioned = {s.entity for s in plan.steps if s.kind == "add_seq"}
    version = log.head_seq(conn)
    fresh = epoch_opened  # whether no row can have had this version with other content
    for entity in manifest.entities:
        shape = _shape(entity)
        if written_elsewhere or meta.get(conn, f"shape:{entity.name}") != shape:
            if not fresh and entity.name not in unversioned and _exists(conn, entity):
                version, fresh = _next_version(conn), True
            rebuild_rows(conn, entity, version)
            meta.put(conn, f"shape:{entity.name}", shape)
        elif entity.name in unversioned:
            conn.execute(f"UPDATE {quote(entity.name)} SET {ddl.SEQ_COLUMN} = ?", (version,))


def _next_version(conn: apsw.Connection) -> int:
    """Take a seq that no event has. Rows whose JSON becomes another must get another version
    than any they had, or a client would be told that its copy is still good."""
    seq = log.head_seq(conn) + 1
    conn.execute("INSERT OR REPLACE INTO _pylon_change_seq (id, value) VALUES (1, ?)", (seq,))
    return seq


def rebuild_rows(conn: apsw.Connection, entity: Entity, version: int) -> None:
    """Make `_json` of every row of `entity` anew from its columns, and `_seq` the version.

    SQLite calls a function with 1,000 values at most, and an entity may have twice as many
    columns. So a row comes in portions, each noted by a function of its own that answers with
    the portion's number, and one more function that takes the numbers.
    """
    codec = EntityCodec(entity)
    portions: list[tuple[object, ...]] = []

    def note_portion(*values: object) -> int:
        portions.append(values)
        return len(portions) - 1

    def row_json(*numbers: Any) -> str:
        values = [value for number in numbers for value in portions[number]]
        portions.clear()
        return codec.encode(codec.row_from_sql(values)).decode()

    conn.create_scalar_function("pylon_row_portion", note_portion)
    conn.create_scalar_function("pylon_row_json", row_json)
    columns = [quote(c) for c in entity.columns]
    calls = ", ".join(
        f"pylon_row_portion({', '.join(columns[at:at + _PORTION_COLUMNS])})"
        for at in range(0, len(columns), _PORTION_COLUMNS)
    )
    conn.execute(
        f"UPDATE {quote(entity.name)} SET {ddl.JSON_COLUMN} = pylon_row_json({calls}), "
        f"{ddl.SEQ_COLUMN} = ?", (version,)
    )
    conn.create_scalar_function("pylon_row_portion", None)
    conn.create_scalar_function("pylon_row_json", None)


def _shape(entity: Entity) -> str:
    """What decides the JSON of a row. A field that leaves the manifest must leave the rows'
    JSON too, though its column stays."""
    return orjson.dumps([[f.name, f.type.value] for f in entity.fields]).decode()


def _has_rows(conn: apsw.Connection, manifest: Manifest) -> bool:
    return any(_exists(conn, e) for e in manifest.entities)


def _exists(conn: apsw.Connection, entity: Entity) -> bool:
    return conn.execute(f"SELECT 1 FROM {quote(entity.name)} LIMIT 1").get is not None


def _written_elsewhere(conn: apsw.Connection) -> bool:
    return meta.get(conn, "history_rows") != str(history.row_count(conn))


def note_indexes(conn: apsw.Connection, manifest: Manifest, plan: Plan) -> None:
    """Remember which indexes are ours, so that they may go with the manifest's wish."""
    own = history.own_indexes(conn)
    wanted = {ddl.index_name(e, i).lower() for e in manifest.entities for i in e.indexes}
    for step in plan.steps:
        if step.kind == "remove_index":
            own.pop(step.name.lower(), None)
        elif step.kind == "add_index" and step.name.lower() in wanted:
            own[step.name.lower()] = step.entity
    history.note_own_indexes(conn, own)


def _fillers(conn: apsw.Connection, manifest: Manifest) -> dict[str, dict[str, object]]:
    live = introspect(conn, tuple(e.name for e in manifest.entities))
    found: dict[str, dict[str, object]] = {}
    for entity in manifest.entities:
        columns = left_over(conn, entity, live.tables[entity.name.lower()])
        if columns:
            found[entity.name] = {c.name: _FILLERS.get(c.type, "") for c in columns}
    return found
