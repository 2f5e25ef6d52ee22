"""SQLite table: implements `pylon.storage.core.transaction.RowTable` for one entity.

The SQL texts are made once. An update sets only the changed columns, so that SQLite leaves the
indexes of the others alone. The search index changes in the same transaction. The first long row
deletes the key of short rows (`short_rows`).

Invariant: a text names only columns of the live table, quoted. Made by `transaction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

import apsw
import orjson

from pylon import limits
from pylon.manifest.model import Entity
from pylon.policy.entity_rules import EntityRules
from pylon.schema.columns import JSON_COLUMN, SEQ_COLUMN, fold_column, fold_fields
from pylon.storage.sqlite.constraint_errors import ConstraintErrors
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.search import SearchIndex
from pylon.storage.sqlite.short_rows import forget_short_rows
from pylon.values import EntityCodec, fold_case

_UPDATE_TEXTS: Final = 256  # cached field combinations for each entity


class SqliteTable:
    """See the module."""

    __slots__ = ("_codec", "_conn", "_delete", "_entity", "_errors", "_execute", "_fill", "_find",
                 "_find_judged", "_find_small", "_folded", "_folds", "_has", "_insert",
                 "_judged", "_name", "_search", "_updates")

    def __init__(
        self, conn: apsw.Connection, execute: Any, entity: Entity, rules: EntityRules,
        retained: Mapping[str, object], search: SearchIndex | None,
    ) -> None:
        """
        Args:
            execute: of the cursor that all tables of the connection share. PERF: a new cursor
                for each statement costs as much as a third of it.
            retained: columns that the manifest no longer names but that want a value.
            search: the index to keep, if the entity has one.
        """
        self._conn = conn
        self._execute = execute
        self._entity = entity
        self._errors = ConstraintErrors(entity)
        self._search = search
        self._codec = EntityCodec(entity)
        self._fill = tuple(retained.values())
        folds = fold_fields(entity)
        self._folds = {field.name: fold_column(field) for field in folds}
        positions = {field.name: place for place, field in enumerate(entity.fields)}
        self._folded = tuple(positions[field.name] for field in folds)
        table = self._name = quote(entity.name)
        names = (
            *entity.columns, JSON_COLUMN, SEQ_COLUMN, *retained, *self._folds.values()
        )
        columns = ", ".join(quote(name) for name in names)
        marks = ", ".join("?" * len(names))
        self._insert = f"INSERT INTO {table} ({columns}) VALUES ({marks})"
        json = f"CAST({JSON_COLUMN} AS BLOB)"
        self._find = f"SELECT {json}, {SEQ_COLUMN} FROM {table} WHERE id = ?"
        self._has = f"SELECT 1 FROM {table} WHERE id = ?"
        # These two statements do not read the pages of a large JSON.
        size = f"octet_length({JSON_COLUMN})"
        self._find_small = (
            f"SELECT CASE WHEN {size} <= {limits.JUDGED_FIRST_BYTES} THEN {json} END, "
            f"{SEQ_COLUMN} FROM {table} WHERE id = ?"
        )
        self._judged = tuple(name for name in entity.columns if name in rules.fields)
        judged = "".join(f", {quote(name)}" for name in self._judged)
        self._find_judged = f"SELECT {size}{judged} FROM {table} WHERE id = ?"
        self._delete = f"DELETE FROM {table} WHERE id = ?"
        self._updates: dict[tuple[str, ...], str] = {}

    def find(self, row_id: str) -> tuple[bytes, int | None] | None:
        """See `RowTable`."""
        found: tuple[bytes, int | None] | None = self._execute(self._find, (row_id,)).get
        return found

    def find_small(self, row_id: str) -> tuple[bytes | None, int | None] | None:
        """See `RowTable`."""
        found: tuple[bytes | None, int | None] | None
        found = self._execute(self._find_small, (row_id,)).get
        return found

    def has(self, row_id: str) -> bool:
        """See `RowTable`."""
        return self._execute(self._has, (row_id,)).get is not None

    def find_referring(self, field: str, row_id: str, limit: int) -> list[str]:
        """See `RowTable`."""
        found: list[Any] = self._execute(
            f"SELECT id FROM {self._name} WHERE {quote(field)} = ? LIMIT ?", (row_id, limit)
        ).fetchall()
        return [row for (row,) in found]

    def find_judged(self, row_id: str) -> tuple[int, dict[str, Any]]:
        """See `RowTable`."""
        found = self._execute(self._find_judged, (row_id,)).get
        size_bytes, *values = found if isinstance(found, tuple) else (found,)
        return size_bytes, self._codec.row_from_sql(values, self._judged)

    def insert(
        self, row_id: str, values: Sequence[Any], row_json: bytes, seq: int
    ) -> None:
        """See `RowTable`."""
        folds: Sequence[str | None] = ()
        if self._folded:
            folds = [fold_case(values[place]) for place in self._folded]
        try:
            self._execute(
                self._insert, (row_id, *values, row_json.decode(), seq, *self._fill, *folds)
            )
        except apsw.ConstraintError as error:
            self._raise_constraint(error)
        if len(row_json) > limits.SHORT_ROW_BYTES:
            forget_short_rows(self._conn, self._entity.name)
        if self._search is not None:
            self._search.add_row(row_id, orjson.loads(row_json))

    def update(
        self, row_id: str, patch: Mapping[str, Any], before: Mapping[str, Any],
        row: Mapping[str, Any], row_json: bytes, seq: int,
    ) -> None:
        """See `RowTable`."""
        fields = tuple(patch)
        folds: Sequence[str | None] = ()
        if self._folds:
            folds = [fold_case(row[field]) for field in fields if field in self._folds]
        try:
            self._execute(
                self._updates.get(fields) or self._update_text(fields),
                (
                    *self._codec.column_values(row, fields), *folds, row_json.decode(), seq,
                    row_id,
                ),
            )
        except apsw.ConstraintError as error:
            self._raise_constraint(error)
        if len(row_json) > limits.SHORT_ROW_BYTES:
            forget_short_rows(self._conn, self._entity.name)
        if self._search is not None:
            self._search.update_row(row_id, before, row)

    def delete(self, row_id: str) -> None:
        """See `RowTable`."""
        self._execute(self._delete, (row_id,))
        if self._search is not None:
            self._search.remove_row(row_id)

    def take_all(self) -> list[tuple[str, bytes, int | None]]:
        """See `RowTable`."""
        rows: list[Any] = self._execute(
            f"SELECT id, CAST({JSON_COLUMN} AS BLOB), {SEQ_COLUMN} FROM {self._name} ORDER BY id"
        ).fetchall()
        self._execute(f"DELETE FROM {self._name}")
        if self._search is not None:
            self._search.clear()
        return rows

    def _update_text(self, fields: tuple[str, ...]) -> str:
        folds = [self._folds[field] for field in fields if field in self._folds]
        sets = ", ".join(f"{quote(f)} = ?" for f in (*fields, *folds, JSON_COLUMN, SEQ_COLUMN))
        text = f"UPDATE {self._name} SET {sets} WHERE id = ?"
        if len(self._updates) < _UPDATE_TEXTS:
            self._updates[fields] = text
        return text

    def _raise_constraint(self, error: apsw.ConstraintError) -> NoReturn:
        raise self._errors.translate(error) from error
