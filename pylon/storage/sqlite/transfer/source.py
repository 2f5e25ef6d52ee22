"""SQLite source: reads all data of a database file in one read transaction.

Rows come out as the newest version of Pylon would write them: datetimes of earlier versions have
the stored notation, and events of the published server have their images in the right columns.

Invariant: the file is only read. Called by `manager`, and by `target` for its own rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

import apsw
import orjson

from pylon.errors import MigrationRefused, StoreUnavailable
from pylon.manifest.model import Entity, FieldType, Manifest
from pylon.query.words import text_fields
from pylon.storage.sqlite import documents, log, meta
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.instants import is_converted
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.schema import history
from pylon.storage.sqlite.schema.apply import has_current_rows
from pylon.storage.sqlite.schema.catalogue import plan_for
from pylon.storage.sqlite.schema.live import introspect, table_names
from pylon.storage.sqlite.search import index_table, rowid_table
from pylon.storage.transfer import (
    CHANGE_LOG,
    HISTORY,
    JSON_COLUMN,
    ColumnKind,
    Key,
    Row,
    SourceFacts,
    TransferTable,
    is_moved_fact,
)
from pylon.values import encode_row
from pylon.values.datetimes import instant_key

_KEYS_AT_ONCE: Final = 200
_HARMLESS_STEPS: Final = frozenset({"add_index", "remove_index"})

Convert = Callable[[Row], Row]


class SqliteSource:
    """See the module, and `pylon.storage.transfer.TransferSource`."""

    def __init__(self, conn: apsw.Connection, place: str, manifest: Manifest) -> None:
        """Use the connection, which becomes the source's own.

        Raises:
            MigrationRefused: this version has not brought the schema to the manifest.
        """
        self._conn = conn
        self._manifest = manifest
        try:
            conn.execute("BEGIN")
            _require_current(conn, manifest, place)
            self.facts = _read_facts(conn, place)
            self._rows = RowReads(conn, manifest)
        except apsw.Error as ex:
            conn.close()
            raise unreadable(place, ex) from ex
        except MigrationRefused:
            conn.close()
            raise

    def list_left_behind(self) -> list[str]:
        """See `TransferSource`."""
        known = {entity.name.lower(): entity for entity in self._manifest.entities}
        derived = {
            name for entity in self._manifest.entities
            for name in (index_table(entity).lower(), rowid_table(entity).lower())
        }
        found = []
        for table in introspect(self._conn, tuple(table_names(self._conn))).tables.values():
            name = table.name.lower()
            if name in known:
                own = {c.lower() for c in _columns_of(known[name])}
                found += [
                    f"{table.name}.{column.name}: the manifest has no such field"
                    for key, column in table.columns.items() if key not in own
                ]
            elif not name.startswith("_pylon_") and not _is_part_of(name, derived):
                found.append(f"{table.name}: the manifest has no such entity")
        return found

    def count_rows(self, table: TransferTable) -> int:
        """See `TransferSource`."""
        return self._rows.count(table)

    def read_rows(self, table: TransferTable, after: Key | None = None) -> Iterator[Row]:
        """See `TransferSource`."""
        return self._rows.read(table, after)

    def find_rows(self, table: TransferTable, keys: Sequence[Key]) -> list[Row]:
        """See `TransferSource`."""
        return self._rows.find(table, keys)

    def read_facts(self) -> dict[str, str]:
        """See `TransferSource`."""
        return moved_facts(self._conn)

    def close(self) -> None:
        """See `TransferSource`."""
        self._conn.close()


class RowReads:
    """The rows of moved tables on one connection."""

    def __init__(self, conn: apsw.Connection, manifest: Manifest) -> None:
        self._conn = conn
        self._unconverted = {
            entity.name for entity in manifest.entities if not is_converted(conn, entity)
        }

    def count(self, table: TransferTable) -> int:
        """Return the number of rows of a table."""
        return int(self._conn.execute(f"SELECT count(*) FROM {quote(table.name)}").get)

    def read(self, table: TransferTable, after: Key | None = None) -> Iterator[Row]:
        """Yield the rows by primary key, behind a key.

        Raises:
            MigrationRefused: a text is not UTF-8.
            StoreUnavailable: the database cannot be read.
        """
        key = ", ".join(_source_column(table, name) for name in table.key)
        where = ""
        if after is not None:
            where = f"WHERE ({key}) > ({', '.join('?' * table.key_size)})"
        convert = self._conversion(table)
        last: Key | None = after
        try:
            for row in self._conn.cursor().execute(
                f"{_select(table)} {where} ORDER BY {key}", after or ()
            ):
                row = row if convert is None else convert(row)
                last = row[: table.key_size]
                yield row
        except UnicodeDecodeError as ex:
            place = "the first row" if last is None else f"the row after {last[-1]}"
            raise MigrationRefused(
                f"{table.name}: {place} has a text that is not UTF-8: correct it, or delete the row"
            ) from ex
        except apsw.Error as ex:
            raise unreadable(self._conn.filename, ex) from ex

    def find(self, table: TransferTable, keys: Sequence[Key]) -> list[Row]:
        """Return the rows of these primary keys."""
        convert = self._conversion(table)
        columns = ", ".join(_source_column(table, name) for name in table.key)
        found: list[Row] = []
        mark = f"({', '.join('?' * table.key_size)})"
        try:
            for at in range(0, len(keys), _KEYS_AT_ONCE):
                some = keys[at : at + _KEYS_AT_ONCE]
                marks = ", ".join([mark] * len(some))
                sql = f"{_select(table)} WHERE ({columns}) IN (VALUES {marks})"
                found += self._conn.execute(sql, [value for key in some for value in key])
        except apsw.Error as ex:
            raise unreadable(self._conn.filename, ex) from ex
        return found if convert is None else list(map(convert, found))

    def _conversion(self, table: TransferTable) -> Convert | None:
        """Return what turns a row of SQLite into a moved one; None: it is the same."""
        if table.name == CHANGE_LOG:
            return _convert_event
        steps: list[Convert] = []
        flags = [at for at, kind in enumerate(table.kinds) if kind is ColumnKind.BOOL]
        if flags:
            steps.append(lambda row: _with_flags(row, flags))
        if table.entity is not None and table.entity.name in self._unconverted:
            steps.append(_instant_conversion(table, table.entity))
        match steps:
            case []:
                return None
            case [step]:
                return step
        return lambda row: steps[1](steps[0](row))


def moved_facts(conn: apsw.Connection) -> dict[str, str]:
    """Return the facts of `_pylon_meta` that are moved."""
    return {
        str(key): str(value) for key, value in conn.execute("SELECT key, value FROM _pylon_meta")
        if is_moved_fact(key)
    }


def unreadable(place: str, error: apsw.Error) -> StoreUnavailable:
    """Return the error of a database that failed."""
    return StoreUnavailable(f"the database {place} failed: {error_text(error)}")


def _require_current(conn: apsw.Connection, manifest: Manifest, place: str) -> None:
    remedy = "start the server on it once with this manifest, stop it, and move it then"
    if not history.has_table(conn, "_pylon_meta") or meta.get(conn, "lineage") is None:
        raise MigrationRefused(f"Pylon has never opened the database {place}", hint=remedy)
    history.refuse_newer(conn)
    if not has_current_rows(conn, manifest):
        raise MigrationRefused(
            f"the rows of {place} are not as this version and manifest write them", hint=remedy
        )
    for step in plan_for(conn, manifest).steps:
        if step.kind not in _HARMLESS_STEPS:
            raise MigrationRefused(
                f"the database {place} has not the schema of the manifest: {step.render()}",
                hint=remedy,
            )


def _read_facts(conn: apsw.Connection, place: str) -> SourceFacts:
    head, number = log.head_seq(conn), documents.head_number(conn)
    return SourceFacts(
        store="sqlite", place=place, lineage=meta.get(conn, "lineage") or "", head=head,
        document_number=number, log_from=log.oldest_seq(conn) - 1,
        stamp=f"{head}/{number}/{history.row_count(conn)}",
    )


def _columns_of(entity: Entity) -> list[str]:
    folds = [f"_fold_{field.name}" for field in entity.fields if field.nocase]
    return [*entity.columns, *folds, JSON_COLUMN, "_seq"]


def _is_part_of(name: str, derived: set[str]) -> bool:
    """Whether a table is one of full-text search, or one that FTS5 made for it."""
    return name in derived or any(name.startswith(f"{table}_") for table in derived)


def _source_column(table: TransferTable, name: str) -> str:
    # The history of the published server may have texts as ids; its rows are in order.
    return "rowid" if (table.name, name) == (HISTORY, "id") else quote(name)


def _select(table: TransferTable) -> str:
    columns = ", ".join(_source_column(table, name) for name in table.columns)
    return f"SELECT {columns} FROM {quote(table.name)}"


def _convert_event(row: Row) -> Row:
    seq, entity, row_id, kind, data, prev_data, timestamp = row
    if kind == "delete" and data is not None:
        data, prev_data = None, prev_data or data
    return seq, entity, row_id, kind, data, prev_data, log.timestamp_s(timestamp)


def _with_flags(row: Row, flags: list[int]) -> Row:
    values = list(row)
    for at in flags:
        if type(values[at]) is int:
            values[at] = values[at] != 0
    return tuple(values)


def _instant_conversion(table: TransferTable, entity: Entity) -> Convert:
    """Return what rewrites the datetimes of a row, as `pylon.storage.sqlite.instants` does."""
    fields = [f.name for f in entity.fields if f.type is FieldType.DATETIME]
    places = [table.columns.index(name) for name in fields]
    json_at = table.columns.index(JSON_COLUMN)

    def convert(row: Row) -> Row:
        keys = [instant_key(row[at]) for at in places]
        if keys == [row[at] for at in places]:
            return row
        values: list[Any] = list(row)
        for at, key in zip(places, keys, strict=True):
            values[at] = key
        decoded = orjson.loads(row[json_at]) | dict(zip(fields, keys, strict=True))
        values[json_at] = encode_row(decoded).decode()
        return tuple(values)

    return convert


def searched(manifest: Manifest) -> list[Entity]:
    """Return the entities with a full-text index."""
    return [entity for entity in manifest.entities if text_fields(entity)]
