"""The write engine's part in rows: insert, update, delete, and all of them at once.

Each statement is SQLite's to undo when it fails; what goes with it (the event, the op_id) is
noted in the `Journal`. Policies of updates and deletes are judged here, on the rows as they are.
The search index and the row's document follow in the same transaction; an index that cannot is a
failure that nobody foresaw.

Invariant: a request that raises has changed nothing, here or in a document. Called by `engine`,
in its transaction, and by `document_writes` for the row of a document.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import apsw
import orjson

from pylon import limits
from pylon.clock import Clock
from pylon.errors import (
    EntityNotFound,
    IdempotencyKeyReused,
    NotFound,
    PreconditionFailed,
    PylonError,
)
from pylon.storage.ops import (
    DeleteRow,
    InsertRow,
    OpKey,
    PushDocument,
    ResetRows,
    UpdateRow,
    WriteReply,
)
from pylon.storage.sqlite import maintenance
from pylon.storage.sqlite.document_writes import DocumentWrites
from pylon.storage.sqlite.journal import Journal
from pylon.storage.sqlite.large_rows import LargeRowBudget
from pylon.storage.sqlite.short_rows import forget_short_rows
from pylon.storage.sqlite.table import Table
from pylon.values import check_row_size

_VERSIONS_SHOWN: Final = 5  # of those that If-Match asks for, in a message


class RowWrites:
    """All rows of a database, for the one who writes it, and their `documents`."""

    __slots__ = ("_conn", "_execute", "_tables", "documents", "large")

    def __init__(
        self, conn: apsw.Connection, tables: Mapping[str, Table], clock: Clock
    ) -> None:
        self._conn = conn
        # One cursor for all: a new one for each statement costs as much as a third of it.
        self._execute = conn.cursor().execute
        self._tables = tables
        self.large = LargeRowBudget()
        self.documents = DocumentWrites(conn, tables, self, clock)

    def insert(self, number: int, op: InsertRow, journal: Journal) -> WriteReply:
        """Add one row, whose policy was judged before.

        Raises:
            EntityNotFound, IdempotencyKeyReused, UniqueViolation, NullNotAllowed
        """
        key = op.op
        if key is not None and (replay := replayed(self._conn, number, key, journal)) is not None:
            return replay
        table = self.table(op.entity)
        row_id, row_json = op.row_id, op.row_json
        if len(row_json) > limits.LARGE_ROW_BYTES:
            check_row_size(op.entity, len(row_json), table.row_max_bytes)
            self.large.charge(op.entity, row_id, len(row_json))
        earlier = journal.event_of_deleted(op.entity, row_id) if journal.deleted else None
        seq = journal.seq + 1 if earlier is None else earlier.seq
        try:
            self._execute(
                table.insert, (row_id, *op.values, row_json.decode(), seq, *table.fill)
            )
        except apsw.ConstraintError as error:
            row = orjson.loads(row_json)
            raise table.refusals.of(error, row, op.client_id_given) from error
        if len(row_json) > limits.SHORT_ROW_BYTES:
            forget_short_rows(self._conn, op.entity)
        if table.search is not None:
            table.search.inserted(row_id, orjson.loads(row_json))
        journal.note(op.entity, row_id, earlier, row_json, None)
        if key is not None:
            journal.note_op(key, seq, row_id)
        return WriteReply(number, seq, row_id, False, 1)

    def update(self, number: int, op: UpdateRow, journal: Journal) -> WriteReply:
        """Change fields of one row.

        Raises:
            EntityNotFound, NotFound, PreconditionFailed, PolicyDenied
            IdempotencyKeyReused, UniqueViolation, NullNotAllowed
        """
        key = op.op
        if key is not None and (replay := replayed(self._conn, number, key, journal)) is not None:
            return replay
        table = self.table(op.entity)
        row_id, patch = op.row_id, op.patch
        before_json, before, version = self.readable(table, op)
        row, row_json = table.codec.merge(before, patch)
        if not table.rules.may_update(op.auth, before, row):
            raise table.rules.denied("update", op.auth)
        if len(row_json) > limits.LARGE_ROW_BYTES:
            check_row_size(op.entity, len(row_json), table.row_max_bytes, len(before_json))
            if len(before_json) <= limits.LARGE_ROW_BYTES:  # else it was counted as it was found
                self.large.charge(op.entity, row_id, len(row_json))
        if table.has_documents:
            change = self.documents.following(table, row_id, before, patch)
        else:
            change = None
        try:
            seq = self.put(
                table, row_id, patch, before_json, before, version, row_json, row, journal
            )
        except PylonError:
            if change is not None:
                self.documents.refuse(change)
            raise
        if change is not None:
            self.documents.append(table, change, seq, journal)
        if key is not None:
            journal.note_op(key, seq, row_id)
        return WriteReply(number, seq, row_id, False, 1)

    def put(
        self, table: Table, row_id: str, patch: Mapping[str, Any], before_json: bytes,
        before: Mapping[str, Any], version: int | None, row_json: bytes, row: Mapping[str, Any],
        journal: Journal,
    ) -> int:
        """Change a row's fields in `patch` and note the event; its seq. `before` and `row` are
        the whole row, then and now; `version` is that of `before`.

        Raises:
            UniqueViolation, NullNotAllowed: nothing was changed.
        """
        is_short = len(row_json) <= limits.SHORT_ROW_BYTES  # as nearly every row
        if not is_short:
            check_row_size(
                table.entity.name, len(row_json), table.row_max_bytes, len(before_json)
            )
        values = [row[field] for field in patch]
        earlier = journal.event_of(version)
        seq = journal.seq + 1 if earlier is None else earlier.seq
        try:
            self._execute(
                table.update(tuple(patch)), (*values, row_json.decode(), seq, row_id)
            )
        except apsw.ConstraintError as error:
            raise table.refusals.of(error, row, client_id_given=False) from error
        if not is_short:
            forget_short_rows(self._conn, table.entity.name)
        if table.search is not None:
            table.search.updated(row_id, before, row)
        return journal.note(table.entity.name, row_id, earlier, row_json, before_json)

    def delete(self, number: int, op: DeleteRow, journal: Journal) -> WriteReply:
        """Drop one row, and its document.

        Raises:
            EntityNotFound, NotFound, PreconditionFailed, PolicyDenied, IdempotencyKeyReused
        """
        key = op.op
        if key is not None and (replay := replayed(self._conn, number, key, journal)) is not None:
            return replay
        table = self.table(op.entity)
        row_id = op.row_id
        before_json, before, version = self.readable(table, op)
        if not table.rules.may_delete(op.auth, before):
            raise table.rules.denied("delete", op.auth)
        self._execute(table.delete, (row_id,))
        if table.has_documents:
            self.documents.deleted(op.entity, row_id)
        if table.search is not None:
            table.search.deleted(row_id)
        earlier = journal.event_of(version)
        seq = journal.note(op.entity, row_id, earlier, None, before_json)
        if key is not None:
            journal.note_op(key, seq, row_id)
        return WriteReply(number, seq, row_id, False, 1)

    def reset(self, number: int, op: ResetRows, journal: Journal) -> WriteReply:
        """Drop all rows of all entities."""
        count = 0
        for table in self._tables.values():
            for row_id, row_json, version in maintenance.take_rows(self._conn, table.entity):
                earlier = journal.event_of(version)
                journal.note(table.entity.name, row_id, earlier, None, row_json)
                count += 1
            if table.search is not None:
                table.search.cleared()
            if table.has_documents:
                self.documents.cleared(table.entity.name)
        return WriteReply(number, journal.seq if count else 0, count=count)

    def table(self, entity: str) -> Table:
        """
        Raises:
            EntityNotFound
        """
        table = self._tables.get(entity)
        if table is None:
            raise EntityNotFound(f'Unknown entity "{entity}"')
        return table

    def readable(
        self, table: Table, op: UpdateRow | DeleteRow | PushDocument
    ) -> tuple[bytes, dict[str, Any], int | None]:
        """The row's JSON, the row and its version, if it is there, the caller may know that it
        is, and it has the version that the caller wants. A row that is not small is judged as a
        whole before it is read.

        Raises:
            NotFound, PreconditionFailed
            PolicyDenied: the row is not small, and the caller may not change it as asked.
            DeferredError: see `large_rows`.
        """
        if self.large.known:
            self.large.check_known(op.entity, op.row_id)
        found = self._execute(table.select_small, (op.row_id,)).get
        if found is None:
            raise NotFound("Row not found")
        row_json, version = found
        if row_json is None:
            row_json = self._large(table, op)
        row: dict[str, Any] = orjson.loads(row_json)
        if not table.rules.may_read(op.auth, row):
            raise NotFound("Row not found")
        if (
            not isinstance(op, PushDocument)
            and op.if_match is not None and not _has_version(version, op.if_match)
        ):
            raise PreconditionFailed(
                f"{op.entity}/{op.row_id} has been changed: its version is {version}, "
                f"and If-Match asks for {_shown(op.if_match)}",
                hint="Get the row again, and send its new ETag",
            )
        return row_json, row, version

    def _large(self, table: Table, op: UpdateRow | DeleteRow | PushDocument) -> bytes:
        """The JSON of a row that is not small. Policies are judged by its columns before it is
        read, so that a caller who may not costs nothing.

        Raises: see `readable`.
        """
        found = self._execute(table.look, (op.row_id,)).get
        size_bytes, *values = found if isinstance(found, tuple) else (found,)
        auth, rules, row = op.auth, table.rules, table.judged(values)
        if not rules.may_read(auth, row):
            raise NotFound("Row not found")
        if isinstance(op, DeleteRow):
            is_allowed = rules.may_delete(auth, row)
        elif isinstance(op, UpdateRow):
            is_allowed = rules.may_update(auth, row, {**row, **op.patch})
        else:
            is_allowed = rules.may_begin_update(auth, row)
        if not is_allowed:
            raise rules.denied("delete" if isinstance(op, DeleteRow) else "update", auth)
        if size_bytes > limits.LARGE_ROW_BYTES:
            self.large.charge(op.entity, op.row_id, size_bytes)
        row_json: bytes = self._execute(table.select, (op.row_id,)).get[0]
        return row_json


def _has_version(version: int | None, wanted: int | tuple[int, ...]) -> bool:
    return version == wanted if isinstance(wanted, int) else version in wanted


def _shown(wanted: int | tuple[int, ...]) -> str:
    if isinstance(wanted, int):
        return str(wanted)
    shown = ", ".join(map(str, wanted[:_VERSIONS_SHOWN]))
    return f"one of {shown}{' ...' if len(wanted) > _VERSIONS_SHOWN else ''}"


def replayed(
    conn: apsw.Connection, number: int, key: OpKey, journal: Journal
) -> WriteReply | None:
    """The answer of an operation that was carried out before; None if it was not.

    Raises:
        IdempotencyKeyReused: it was another request.
    """
    done = journal.find_op(conn, key)
    if done is None:
        return None
    seq, row_id, digest = done
    if key.digest is not None and key.digest != digest:
        raise IdempotencyKeyReused(
            "This Idempotency-Key was used for another request",
            hint="Use a new key for each request; the same one only to repeat it unchanged",
        )
    return WriteReply(number, seq, row_id, True)
