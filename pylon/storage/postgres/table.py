"""PostgreSQL table: implements `pylon.storage.core.transaction.RowTable` for one entity.

Reads come from the overlay, which `prefetch` has filled; a row that it lacks costs a round trip.
Writes are checked here, encoded at once, and gathered for the flush. An update sets only the
changed columns, so that the server leaves the other indexes alone.

Invariant: a primitive that raises has gathered nothing. Made by `transaction`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson
import psycopg

from pylon import limits
from pylon.errors import InternalError, InvalidValue, PylonError
from pylon.manifest.model import Entity, FieldType
from pylon.policy.entity_rules import EntityRules
from pylon.query.words import text_fields
from pylon.schema.columns import JSON_COLUMN, SEQ_COLUMN, fold_column, fold_fields
from pylon.storage.core.constraint_errors import constraint_error
from pylon.storage.core.transaction import ConstraintFailed, OutdatedError
from pylon.storage.postgres.batch import Batch
from pylon.storage.postgres.column_values import (
    ESCAPED_NUL,
    IndexTexts,
    decode_value,
    encode_values,
    refuse_nul,
)
from pylon.storage.postgres.constraint_errors import ConstraintErrors
from pylon.storage.postgres.flush import NO_SEQ, Gathered, InsertShape
from pylon.storage.postgres.names import WORDS_COLUMN, quote
from pylon.storage.postgres.overlay import NO_ROWS, ReferenceRows, RowKey
from pylon.storage.postgres.sequences import SEQ
from pylon.storage.postgres.unique_checks import UniqueChecks
from pylon.storage.postgres.unique_keys import UniqueKey, Values, unique_keys
from pylon.storage.postgres.word_vector import vector_of
from pylon.values import EntityCodec, fold_case

_UPDATE_TEXTS: Final = 256  # cached field combinations for each entity
_UNKNOWN: Final = object()
_ID: Final = ("id",)


class PostgresTable:
    """See the module. `uniques`: its unique keys without that of `id`. `name`: of the entity."""

    __slots__ = (
        "_batch", "_codec", "_delete", "_entity", "_errors", "_fill", "_find", "_find_judged",
        "_folded", "_folds", "_has_words", "_indexed", "_judged", "_overlay", "_places",
        "_reads_rows", "_references", "_required", "_shape", "_table", "_unique_checks", "_updates",
        "name", "select_small", "uniques",
    )

    def __init__(
        self, batch: Batch, entity: Entity, rules: EntityRules,
        retained: Mapping[str, object], indexed: Sequence[Sequence[str]],
        references: Sequence[str] = (),
    ) -> None:
        """
        Args:
            retained: columns that the manifest no longer names but that want a value.
            indexed: the fields of each index.
            references: the fields whose references are checked.
        """
        self._batch = batch
        self._overlay = batch.overlay
        self._entity = entity
        self.name = entity.name
        self._codec = EntityCodec(entity)
        self.uniques = unique_keys(entity, self._codec)
        self._unique_checks = UniqueChecks(batch, entity.name, self.uniques)
        self._errors = ConstraintErrors(entity, self.uniques)
        self._fill = encode_values(list(retained.values()))
        folds = fold_fields(entity)
        self._folds = {field.name: fold_column(field) for field in folds}
        self._places = {field.name: place for place, field in enumerate(entity.fields)}
        self._folded = tuple(self._places[field.name] for field in folds)
        self._references = [(name, self._places[name]) for name in references]
        self._required = {
            field.name: self._places[field.name] for field in entity.fields if not field.optional
        }
        self._has_words = bool(text_fields(entity))
        self._reads_rows = bool(self.uniques or self._folded or self._has_words)
        self._indexed = IndexTexts(entity, indexed)
        table = self._table = quote(entity.name)
        columns = [SEQ_COLUMN, *entity.columns, JSON_COLUMN, *retained, *self._folds.values()]
        casts = [""] * len(columns)
        if self._has_words:
            columns.append(WORDS_COLUMN)
            casts.append("::text::tsvector")
        values = ", ".join(f"{{{n}}}{cast}" for n, cast in enumerate(casts[1:], 1))
        self._shape = InsertShape(
            f"INSERT INTO {table} ({', '.join(map(quote, columns))})", len(columns),
            f"({SEQ}{{0}}, {values})",
        )
        self._find = f"SELECT {JSON_COLUMN}, {SEQ_COLUMN} FROM {table} WHERE id = $1"
        size = f"octet_length({JSON_COLUMN})"  # does not read a large text
        self.select_small = (
            f"SELECT id, CASE WHEN {size} <= {limits.JUDGED_FIRST_BYTES} THEN {JSON_COLUMN} END, "
            f"{SEQ_COLUMN} FROM {table} WHERE id = ANY($1::text[])"
        )
        self._judged = tuple(name for name in entity.columns if name in rules.fields)
        judged = "".join(f", {quote(name)}" for name in self._judged)
        self._find_judged = f"SELECT {size}{judged} FROM {table} WHERE id = $1"
        self._delete = f"DELETE FROM {table} WHERE id = $1"
        self._updates: dict[tuple[str, ...], str] = {}

    # --- Reads ---------------------------------------------------------------------------------

    def find(self, row_id: str) -> tuple[bytes, int | None] | None:
        """See `RowTable`."""
        key = (self.name, row_id)
        known: Any = self._overlay.rows.get(key, _UNKNOWN)
        if known is None or "\0" in row_id:
            return None
        if known is not _UNKNOWN and known[0] is not None:
            return known  # type: ignore[no-any-return]
        found = self._batch.read(self._find, (row_id,))
        if not found.ntuples:
            if known is not _UNKNOWN:
                raise OutdatedError(f"{self.name}/{row_id}")
            self._overlay.rows[key] = None
            return None
        row = (found.get_value(0, 0) or b"", _version(found.get_value(0, 1)))
        if known is not _UNKNOWN and known[1] != row[1]:
            raise OutdatedError(f"{self.name}/{row_id}")
        self._batch.note_read(key, row)
        return row

    def find_small(self, row_id: str) -> tuple[bytes | None, int | None] | None:
        """See `RowTable`."""
        known: Any = self._overlay.rows.get((self.name, row_id), _UNKNOWN)
        if known is None:
            return None
        if known is _UNKNOWN:
            return self.find(row_id)
        row_json = known[0]
        if row_json is not None and len(row_json) > limits.JUDGED_FIRST_BYTES:
            return None, known[1]
        return known  # type: ignore[no-any-return]

    def has(self, row_id: str) -> bool:
        """See `RowTable`. Whoever asks relies on a row that is there."""
        overlay, key = self._overlay, (self.name, row_id)
        known: Any = overlay.rows.get(key, _UNKNOWN)
        if known is not _UNKNOWN:
            exists = known is not None
        elif key in overlay.exists:
            exists = overlay.exists[key]
        else:
            found = self._batch.read(f"SELECT 1 FROM {self._table} WHERE id = $1", (row_id,))
            exists = overlay.exists[key] = bool(found.ntuples)
        if exists:
            overlay.parents[key] = None
        return exists

    def find_referring(self, field: str, row_id: str, limit: int) -> list[str]:
        """See `RowTable`."""
        overlay, key = self._overlay, (self.name, field, row_id)
        known = overlay.referring.get(key)
        if known is not None and (not known.has_more or len(known.ids) >= limit):
            overlay.used_referring[key] = None
            return list(known.ids[:limit])
        found = self._batch.scan(
            f"SELECT id FROM {self._table} WHERE {quote(field)} = $1 LIMIT $2", (row_id, limit)
        )
        ids = tuple([(found.get_value(n, 0) or b"").decode() for n in range(found.ntuples)])
        overlay.put(overlay.referring, key, ReferenceRows(ids, len(ids) >= limit))
        return list(ids)

    def find_judged(self, row_id: str) -> tuple[int, dict[str, Any]]:
        """See `RowTable`."""
        known = self._overlay.rows.get((self.name, row_id))
        if known is not None and known[0] is not None:
            row = orjson.loads(known[0])
            return len(known[0]), {name: row.get(name) for name in self._judged}
        found = self._batch.read(self._find_judged, (row_id,))
        if not found.ntuples:
            raise OutdatedError(f"{self.name}/{row_id}")
        size, *values = (found.get_value(0, n) for n in range(1 + len(self._judged)))
        decoded = [
            decode_value(FieldType.ID if name == "id" else self._entity.by_name[name].type, value)
            for name, value in zip(self._judged, values, strict=True)
        ]
        return int(size or 0), self._codec.row_from_sql(decoded, self._judged)

    # --- Writes --------------------------------------------------------------------------------

    def insert(
        self, row_id: str, values: Sequence[Any], row_json: bytes, seq: int
    ) -> None:
        """See `RowTable`."""
        overlay, key = self._overlay, (self.name, row_id)
        if len(values) != len(self._places):
            raise ValueError(f"{self.name} has {len(self._places)} fields, not {len(values)}")
        if None in values:
            for name, place in self._required.items():
                if values[place] is None:
                    raise ConstraintFailed("not_null", (name,))
        if not row_json.isascii():
            row_json.decode()  # raises here, and not in the flush
        if len(row_json) > limits.INDEXED_TEXT_BYTES:
            self._indexed.check(orjson.loads(row_json))
        parameters = [None, row_id.encode(), *encode_values(values), row_json]
        if self._fill:
            parameters += self._fill
        if ESCAPED_NUL in row_json or "\0" in row_id:
            refuse_nul(self.name, parameters)
        owned: Sequence[tuple[Any, ...]] = ()
        if self._reads_rows:
            row = orjson.loads(row_json)
            owned = self._unique_checks.free_keys(row)
            if self._folded:
                parameters += encode_values([fold_case(values[place]) for place in self._folded])
            if self._has_words:
                parameters.append(vector_of(self._entity, row))
        # Last, since SQLite reports the unique value where a row breaks both.
        if overlay.rows.get(key) is not None or (
            key not in overlay.rows and overlay.exists.get(key)
        ):
            raise ConstraintFailed("unique", _ID)
        batch = self._batch
        batch.gathered.append(Gathered(
            "", parameters, batch.position, seq, self._shape, self, row_json
        ))
        for owner in owned:
            overlay.put(overlay.owners, owner, row_id)
        overlay.put(overlay.rows, key, (row_json, seq))
        if overlay.referring:
            for name, place in self._references:
                overlay.note_reference(self.name, name, row_id, None, values[place])
        if overlay.is_asked(self.name):
            overlay.note_change(self.name, None, orjson.loads(row_json))

    def update(
        self, row_id: str, patch: Mapping[str, Any], before: Mapping[str, Any],
        row: Mapping[str, Any], row_json: bytes, seq: int,
    ) -> None:
        """See `RowTable`."""
        overlay, key = self._overlay, (self.name, row_id)
        fields = tuple(patch)
        for name in fields:
            if row[name] is None and name in self._required:
                raise ConstraintFailed("not_null", (name,))
        if not row_json.isascii():
            row_json.decode()
        if len(row_json) > limits.INDEXED_TEXT_BYTES:
            self._indexed.check(row)
        changes: list[tuple[UniqueKey, Values | None, Values | None]] = []
        for unique in self.uniques:
            if unique.affected_by.isdisjoint(fields):
                continue
            old, new = unique.values_of(before), unique.values_of(row)
            if old != new:
                if new is not None:
                    self._unique_checks.check_free(unique, new, row_id)
                changes.append((unique, old, new))
        encoded = encode_values(self._codec.column_values(row, fields))
        if self._folds:
            folded = [fold_case(row[name]) for name in fields if name in self._folds]
            encoded += encode_values(folded)
        parameters = [None, *encoded, row_json, row_id.encode()]
        if ESCAPED_NUL in row_json:
            refuse_nul(self.name, parameters)
        if self._has_words:
            parameters.append(vector_of(self._entity, row))
        self._batch.gathered.append(Gathered(
            self._updates.get(fields) or self._update_text(fields), parameters,
            self._batch.position, seq, None, self, row_json,
        ))
        for unique, old, new in changes:
            if old is not None:
                overlay.put(overlay.owners, (unique, old), None)
            if new is not None:
                overlay.put(overlay.owners, (unique, new), row_id)
        self._note_changed(key, (row_json, seq), before, row)

    def delete(self, row_id: str) -> None:
        """See `RowTable`."""
        overlay, key = self._overlay, (self.name, row_id)
        freed: list[tuple[Any, ...]] = []
        row: dict[str, Any] = {}
        if self.uniques or (overlay.referring and self._references) or overlay.is_asked(self.name):
            found = self.find(row_id)
            row = {} if found is None else orjson.loads(found[0])
            freed = [
                (unique, values) for unique in self.uniques
                if row and (values := unique.values_of(row)) is not None
            ]
        self._batch.gathered.append(Gathered(
            self._delete, [row_id.encode()], self._batch.position, NO_SEQ, None, self
        ))
        for owner in freed:
            overlay.put(overlay.owners, owner, None)
        self._note_changed(key, None, row, {})

    def take_all(self) -> list[tuple[str, bytes, int | None]]:
        """See `RowTable`."""
        found = self._batch.scan(
            f"SELECT id, {JSON_COLUMN}, {SEQ_COLUMN} FROM {self._table} ORDER BY id", ()
        )
        rows = [
            ((found.get_value(n, 0) or b"").decode(), found.get_value(n, 1) or b"",
             self._batch.version_now(_version(found.get_value(n, 2))))
            for n in range(found.ntuples)
        ]
        self._batch.gathered.append(Gathered(
            f"DELETE FROM {self._table}", [], self._batch.position, NO_SEQ, None, self
        ))
        overlay = self._overlay
        for row_id, _, _ in rows:
            overlay.put(overlay.rows, (self.name, row_id), None)
        for unique, *values in list(overlay.owners):
            if unique in self.uniques:
                overlay.put(overlay.owners, (unique, *values), None)
        overlay.drop_checks(self.name)
        for reference in list(overlay.referring):
            if reference[0] == self.name:
                overlay.put(overlay.referring, reference, NO_ROWS)
        return rows

    def _note_changed(
        self, key: RowKey, stored: tuple[bytes, int] | None, before: Mapping[str, Any],
        after: Mapping[str, Any],
    ) -> None:
        """Note that a row was changed or deleted. Args: `after`: empty if it was deleted."""
        overlay = self._overlay
        if key in overlay.read_versions:
            overlay.touched[key] = None
        overlay.put(overlay.rows, key, stored)
        if overlay.referring:
            for name, _ in self._references:
                overlay.note_reference(
                    self.name, name, key[1], before.get(name), after.get(name)
                )
        if overlay.is_asked(self.name):
            overlay.note_change(self.name, before, after or None)

    # --- Statements ----------------------------------------------------------------------------

    def refuse(self, error: psycopg.Error, row_json: bytes) -> PylonError:
        """Return the error of a request whose statement the database has refused."""
        if isinstance(error, psycopg.errors.CharacterNotInRepertoire):
            return InvalidValue(f"{self.name} has a text that cannot be stored", entity=self.name)
        failure = self._errors.translate(error)
        if failure.kind == "other":
            return InternalError(f"{self.name}: the database refused the row")
        return constraint_error(
            self.name, failure, orjson.loads(row_json), client_id_given=False
        )

    def _update_text(self, fields: tuple[str, ...]) -> str:
        folds = [self._folds[name] for name in fields if name in self._folds]
        columns = (*fields, *folds, JSON_COLUMN)
        sets = ", ".join(f"{quote(name)} = ${n}" for n, name in enumerate(columns, 2))
        mark = len(columns) + 2
        words = f", {WORDS_COLUMN} = ${mark + 1}::text::tsvector" if self._has_words else ""
        text = (
            f"UPDATE {self._table} SET {SEQ_COLUMN} = {SEQ}$1, {sets}{words} WHERE id = ${mark}"
        )
        if len(self._updates) < _UPDATE_TEXTS:
            self._updates[fields] = text
        return text


def _version(value: bytes | None) -> int | None:
    return None if value is None else int(value)
