"""Instants: converts datetimes of earlier versions and of other servers to the stored notation.

A row that an earlier version or another program wrote may have a datetime in another notation. The
supervisor's flusher converts such rows in small steps. A step rewrites the columns and the JSON of
its rows; it logs no change, and the versions of the rows stay, because the instants are the same.
`_pylon_meta` has a key `instants:<Entity>` with the progress, in the transaction of each step, so a
killed server goes on where it was.

Until an entity is converted, a reader has a temporary view over its table that converts on the fly
(`DatetimeViews`). So conditions, orders and figures are right meanwhile, but no index over a
datetime serves them. A row whose unique datetime equals another row's instant cannot be converted:
it stays, the view stays, and each start tries again.

Invariant: a table without its view has no datetime in another notation. Bounds:
`limits.CONVERSION_ROWS` rows and `limits.CONVERSION_BYTES` of JSON in a step. Called by the schema
(`note_instants`), by `maintenance` (`convert_step`), by `reader` (`DatetimeViews`), and by
`transaction`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final

import apsw
import msgspec
import orjson

from pylon import limits
from pylon.clock import Clock
from pylon.manifest.model import Entity, FieldType, Manifest
from pylon.query.words import text_fields
from pylon.schema.columns import (
    JSON_COLUMN,
    SEQ_COLUMN,
    fold_column,
    fold_fields,
)
from pylon.storage.records import ConversionStep
from pylon.storage.sqlite import meta
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.search import SearchIndex
from pylon.values import encode_row
from pylon.values.datetimes import instant_key

_KEY: Final = "instants:"
_FUNCTION: Final = "pylon_instant"
_LOOK_EVERY_NS: Final = 1_000_000_000


class _Progress(msgspec.Struct, frozen=True):
    """The progress of one entity. `after`: the id of the last row that was read; None: all were.
    `left`: rows that could not be converted."""

    fields: tuple[str, ...]
    after: str | None
    rows: int = 0
    left: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether every row has the stored notation."""
        return self.after is None and not self.left


def datetime_fields(entity: Entity) -> tuple[str, ...]:
    """Return the names of the entity's datetimes."""
    return tuple(f.name for f in entity.fields if f.type is FieldType.DATETIME)


def note_instants(
    conn: apsw.Connection, manifest: Manifest, added: Collection[tuple[str, str]], is_stale: bool
) -> None:
    """Store at a start which entities have to be converted, within the open transaction.

    Args:
        added: entities and fields whose columns this transaction has added, without values.
        is_stale: another program has written to the database.
    """
    for entity in manifest.entities:
        fields = datetime_fields(entity)
        if not fields:
            continue
        known = None if is_stale else _progress(conn, entity.name)
        if known is not None:
            covered = {*known.fields, *(f for f in fields if (entity.name, f) in added)}
            if covered >= set(fields):
                if known.after is None and known.left:  # try the rest again
                    known = _Progress(fields, "")
                _put(conn, entity.name, msgspec.structs.replace(known, fields=fields))
                continue
        is_empty = conn.execute(f"SELECT 1 FROM {quote(entity.name)} LIMIT 1").get is None
        _put(conn, entity.name, _Progress(fields, None if is_empty else ""))


def convert_step(conn: apsw.Connection, manifest: Manifest) -> ConversionStep | None:
    """Convert the next rows, within the open transaction. None: nothing is left to do."""
    waiting: list[tuple[Entity, _Progress]] = []
    for entity in manifest.entities:
        if datetime_fields(entity):
            known = _progress(conn, entity.name)
            if known is not None and known.after is not None:
                waiting.append((entity, known))
    if not waiting:
        return None
    entity, known = waiting[0]
    after = _convert_rows(conn, entity, known)
    _put(conn, entity.name, after)
    return ConversionStep(
        entity.name, after.rows - known.rows, after.rows, after.left, after.after is None,
        len(waiting) - (after.after is None),
    )


def _convert_rows(conn: apsw.Connection, entity: Entity, known: _Progress) -> _Progress:
    fields = known.fields
    table = quote(entity.name)
    search = SearchIndex(conn, entity) if set(fields) & set(text_fields(entity)) else None
    found: list[Any] = conn.execute(
        f"SELECT id, octet_length({JSON_COLUMN}), {', '.join(map(quote, fields))} FROM {table} "
        "WHERE id > ? ORDER BY id LIMIT ?", (known.after, limits.CONVERSION_ROWS),
    ).fetchall()
    sets = ", ".join(f"{quote(name)} = ?" for name in (*fields, JSON_COLUMN))
    update = f"UPDATE {table} SET {sets} WHERE id = ?"
    changed = left = size_bytes = 0
    last = known.after
    for row_id, json_bytes, *values in found:
        last = row_id
        keys = [instant_key(value) for value in values]
        if keys == values:
            continue
        before = orjson.loads(conn.execute(
            f"SELECT CAST({JSON_COLUMN} AS BLOB) FROM {table} WHERE id = ?", (row_id,)
        ).get)
        row = before | dict(zip(fields, keys, strict=True))
        try:
            conn.execute(update, (*keys, encode_row(row).decode(), row_id))
        except apsw.ConstraintError:
            left += 1
            continue
        if search is not None:
            search.update_row(row_id, before, row)
        changed += 1
        size_bytes += json_bytes
        if size_bytes >= limits.CONVERSION_BYTES:
            break
    is_last = not found or (len(found) < limits.CONVERSION_ROWS and last == found[-1][0])
    return _Progress(
        fields, None if is_last else last, known.rows + changed, known.left + left
    )


def is_converted(conn: apsw.Connection, entity: Entity) -> bool:
    """Whether no row of the entity has a datetime in another notation."""
    fields = datetime_fields(entity)
    known = _progress(conn, entity.name) if fields else None
    return not fields or (
        known is not None and known.is_whole and set(known.fields) >= set(fields)
    )


def converting_source(entity: Entity) -> str:
    """Return what a SELECT reads in place of the table: its rows, with converted datetimes."""
    return f"({_select(entity)}) AS {quote(entity.name)}"


def add_conversion(conn: apsw.Connection) -> None:
    """Register the function that the views and `converting_source` call."""
    conn.create_scalar_function(_FUNCTION, _convert, 1, deterministic=True)


class DatetimeViews:
    """The views of one reader's connection, over the tables that are not yet converted."""

    __slots__ = ("_clock", "_conn", "_looked_ns", "waiting")

    def __init__(self, conn: apsw.Connection, entities: Iterable[Entity], clock: Clock) -> None:
        """Make the views. Raises apsw.Error."""
        self._conn = conn
        self._clock = clock
        self._looked_ns = clock.wall_ns()
        self.waiting = {
            entity.name: entity for entity in entities
            if not is_converted(conn, entity)
        }
        if self.waiting:
            add_conversion(conn)
            for entity in self.waiting.values():
                self._execute(_create_view(entity))

    def drop_converted(self) -> None:
        """Drop the views of tables that were converted since; looks at most once a second."""
        now_ns = self._clock.wall_ns()
        if 0 <= now_ns - self._looked_ns < _LOOK_EVERY_NS:
            return
        self._looked_ns = now_ns
        for name, entity in list(self.waiting.items()):
            if is_converted(self._conn, entity):
                self._execute(f"DROP VIEW temp.{quote(name)}")
                del self.waiting[name]

    def _execute(self, sql: str) -> None:
        self._conn.execute("PRAGMA query_only = OFF")
        try:
            self._conn.execute(sql)
        finally:
            self._conn.execute("PRAGMA query_only = ON")


def _convert(*values: Any) -> Any:
    return instant_key(values[0])


def _create_view(entity: Entity) -> str:
    """Return the statement for a view that has the name of the table, which it covers."""
    return f"CREATE TEMP VIEW {quote(entity.name)} AS {_select(entity)}"


def _select(entity: Entity) -> str:
    dates = datetime_fields(entity)
    columns = [
        f"{_FUNCTION}({quote(name)}) AS {quote(name)}" if name in dates else quote(name)
        for name in (
            *entity.columns, *map(fold_column, fold_fields(entity)), JSON_COLUMN, SEQ_COLUMN,
        )
    ]
    return f"SELECT {', '.join(columns)} FROM main.{quote(entity.name)}"


def _progress(conn: apsw.Connection, entity: str) -> _Progress | None:
    text = meta.get(conn, _KEY + entity)
    return None if text is None else msgspec.json.decode(text, type=_Progress)


def _put(conn: apsw.Connection, entity: str, progress: _Progress) -> None:
    if progress == _progress(conn, entity):
        return
    meta.put(conn, _KEY + entity, msgspec.json.encode(progress).decode())
