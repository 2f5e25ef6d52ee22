"""The writer's engine: the only connection that changes rows (design.md §3, "Writer").

`apply` carries out many requests in one transaction. Each changes at most one row with one
statement, which SQLite undoes by itself when it fails; what goes with the change (its event,
its op_id) is only noted, and written for the whole batch just before COMMIT. So no request
needs a savepoint, but for the two that touch many rows (`maintenance`).

Invariants: `head` moves only after COMMIT; a seq is given to one committed event at most; an
exception that nobody foresaw undoes the batch and carries out the rest of it again; a failing
store leaves nothing written. The supervisor's writer thread is the only caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import apsw
import orjson

from pylon.auth.context import AuthContext
from pylon.bus.messages import (
    DeleteRow,
    DropSession,
    InsertRow,
    MarkClean,
    OpKey,
    PruneLog,
    PutSession,
    ResetRows,
    UpdateRow,
    WriteError,
    WriteReply,
    WriteRequest,
)
from pylon.changelog.event import ChangeBatch, ChangeEvent, Kind
from pylon.clock import Clock
from pylon.errors import (
    EntityNotFound,
    InternalError,
    NotFound,
    PylonError,
    StartRefused,
    StoreUnavailable,
)
from pylon.log import get_logger
from pylon.manifest.model import Entity, Manifest
from pylon.schema.apply import prepare_store
from pylon.storage.contract import BatchResult
from pylon.storage.names import quote
from pylon.storage.sqlite import epochs, log, maintenance, pragmas
from pylon.storage.sqlite.connect import STORE_FAILURES, open_writer
from pylon.storage.sqlite.refusal import Refusals
from pylon.values import EntityCodec

if TYPE_CHECKING:
    from pylon.policy.rules import EntityRules, RuleSet

_log: Final = get_logger("engine")
_UPDATE_TEXTS: Final = 256  # field combinations remembered for each entity; others set all fields


class _Table:
    """One entity's codec, rules and SQL texts."""

    __slots__ = ("_updates", "codec", "delete", "entity", "fill", "insert", "refusals", "rules",
                 "select")

    def __init__(
        self, entity: Entity, rules: EntityRules, fillers: Mapping[str, object]
    ) -> None:
        self.entity = entity
        self.rules = rules
        self.codec = EntityCodec(entity)
        self.refusals = Refusals(entity)
        self.fill = tuple(fillers.values())
        table = quote(entity.name)
        columns = ", ".join(quote(c) for c in (*entity.columns, "_json", *fillers))
        marks = ", ".join("?" * (len(entity.columns) + 1 + len(fillers)))
        self.insert = f"INSERT INTO {table} ({columns}) VALUES ({marks})"
        self.select = f"SELECT CAST(_json AS BLOB) FROM {table} WHERE id = ?"
        self.delete = f"DELETE FROM {table} WHERE id = ?"
        self._updates: dict[tuple[str, ...], str] = {}

    def update(self, fields: tuple[str, ...]) -> str:
        """Sets `fields` and the JSON. Columns that stay are left out: their indexes rest."""
        text = self._updates.get(fields)
        if text is None:
            sets = ", ".join(f"{quote(f)} = ?" for f in (*fields, "_json"))
            text = f"UPDATE {quote(self.entity.name)} SET {sets} WHERE id = ?"
            if len(self._updates) < _UPDATE_TEXTS:
                self._updates[fields] = text
        return text


class _Batch:
    """What a transaction has noted so far, to be written and published at its end."""

    __slots__ = ("clean", "events", "now_s", "ops", "seq")

    def __init__(self, head: int, now_s: int) -> None:
        self.seq = head
        self.now_s = now_s
        self.events: list[ChangeEvent] = []
        self.ops: dict[tuple[str, str], tuple[int, str]] = {}
        self.clean = False  # the run ends in order with this batch

    def note(
        self, entity: str, row_id: str, kind: Kind, data: bytes | None, prev: bytes | None,
        op: OpKey | None,
    ) -> int:
        self.seq += 1
        self.events.append(
            ChangeEvent(self.seq, entity, row_id, kind, data, prev, self.now_s)
        )
        if op is not None:
            self.ops[op.identity, op.op_id] = (self.seq, row_id)
        return self.seq


class SqliteEngine:
    """`pylon.storage.contract.WriteEngine` on one SQLite file."""

    def __init__(
        self, conn: apsw.Connection, manifest: Manifest, rules: RuleSet, clock: Clock,
        fillers: Mapping[str, Mapping[str, object]],
    ) -> None:
        """Used by `open`; the connection is prepared and becomes the engine's own."""
        self._conn = conn
        self._clock = clock
        self._manifest = manifest
        self._tables = {
            e.name: _Table(e, rules.of(e.name), fillers.get(e.name, {}))
            for e in manifest.entities
        }
        self._retention = maintenance.Retention(conn)
        self._clean = False
        self.head = log.head_seq(conn)
        self._carry_out: dict[type, Callable[[Any, _Batch], WriteReply]] = {
            InsertRow: self._insert,
            UpdateRow: self._update,
            DeleteRow: self._delete,
            PutSession: self._put_session,
            DropSession: self._drop_session,
            PruneLog: self._prune,
            ResetRows: self._reset,
            MarkClean: self._mark_clean,
        }

    @classmethod
    def open(
        cls,
        path: str | Path,
        manifest: Manifest,
        rules: RuleSet,
        clock: Clock,
        durability: str,
        boot_id: str | None = None,
    ) -> SqliteEngine:
        """Open the database, bring its schema to the manifest and note the start.

        Args:
            durability: `normal` or `full`.
            boot_id: names this boot of the machine; None asks the kernel.

        Raises:
            SchemaRefused: the schema cannot be reached by additive steps.
            StartRefused: the database cannot be opened or written.
        """
        conn: apsw.Connection | None = None
        try:
            conn = open_writer(path)
            prepared = prepare_store(conn, manifest, clock)
            boot = epochs.read_boot_id() if boot_id is None else boot_id
            epochs.begin_run(conn, durability, boot, clock)
            pragmas.set_durability(conn, durability)
            return cls(conn, manifest, rules, clock, prepared.fillers)
        except apsw.Error as error:
            if conn is not None:
                conn.close()
            raise StartRefused(f"the database {path} cannot be used: {error}") from error
        except PylonError:
            if conn is not None:
                conn.close()
            raise

    def apply(self, requests: Sequence[WriteRequest]) -> BatchResult:
        """See the contract. The policies of updates and deletes are judged here."""
        started_s = self._clock.monotonic_s()
        broken: dict[int, WriteReply] = {}
        while True:
            try:
                result = self._transaction(requests, broken, started_s)
            except apsw.ConstraintError as error:
                # The log has events that are not ours: somebody wrote beside us. Go on above.
                self.head = log.head_seq(self._conn)
                return self._refuse(requests, error, started_s)
            except apsw.Error as error:
                return self._refuse(requests, error, started_s)
            if result is not None:
                return result

    def close(self) -> None:
        self._conn.close()

    # --- The transaction -------------------------------------------------------------------

    def _transaction(
        self, requests: Sequence[WriteRequest], broken: dict[int, WriteReply], started_s: float
    ) -> BatchResult | None:
        """Carry out all requests but the `broken` ones; None if one more has broken.

        Raises:
            apsw.Error: the store failed, and the transaction has been undone.
        """
        batch = _Batch(self.head, self._clock.wall_ns() // 10**9)
        replies: list[WriteReply] = []
        self._conn.execute("BEGIN IMMEDIATE")
        try:
            for position, request in enumerate(requests):
                if position in broken:
                    replies.append(broken[position])
                    continue
                try:
                    reply = self._carry_out[type(request.op)](request.op, batch)
                    reply = WriteReply(
                        request.id, reply.seq, reply.row_id, reply.replayed, reply.count
                    )
                except PylonError as error:
                    reply = WriteReply(request.id, error=WriteError.of(error))
                except STORE_FAILURES:
                    raise
                except Exception as error:  # noqa: BLE001
                    # Not foreseen, so nobody knows how far it came: undo everything, and do
                    # the batch again without it.
                    _log.exception("write.broken", error=error, op=type(request.op).__name__)
                    failure = WriteError.of(InternalError("the write failed unexpectedly"))
                    broken[position] = WriteReply(request.id, error=failure)
                    return None
                replies.append(reply)
            self._finish(batch)
            self._conn.execute("COMMIT")
        finally:
            if self._conn.in_transaction:
                self._conn.execute("ROLLBACK")
                self._retention.forget()
        previous, self.head = self.head, batch.seq
        self._clean = batch.clean or (self._clean and not batch.events)
        self._retention.committed(len(batch.events), len(batch.ops))
        published = ChangeBatch(previous, batch.events) if batch.events else None
        return BatchResult(replies, published, self._clock.monotonic_s() - started_s)

    def _finish(self, batch: _Batch) -> None:
        if batch.clean:
            epochs.end_run(self._conn, batch.seq)
        elif self._clean and batch.events:  # the run has not ended after all
            epochs.resume_run(self._conn)
        if not batch.events:
            return
        self._conn.executemany(
            log.INSERT,
            [
                (e.seq, e.entity, e.row_id, e.kind, _text(e.data), _text(e.prev_data),
                 e.timestamp_s)
                for e in batch.events
            ],
        )
        if batch.ops:
            self._conn.executemany(
                "INSERT INTO _pylon_op_ids (identity, op_id, seq, row_id, at) "
                "VALUES (?, ?, ?, ?, ?)",
                [(*key, *done, batch.now_s) for key, done in batch.ops.items()],
            )

    def _refuse(
        self, requests: Sequence[WriteRequest], cause: apsw.Error, started_s: float
    ) -> BatchResult:
        error = WriteError.of(
            StoreUnavailable(
                f"the database is not available, nothing was written: {cause}",
                hint="see the server's log; free space on the disk if it is full",
            )
        )
        replies = [WriteReply(r.id, error=error) for r in requests]
        return BatchResult(replies, None, self._clock.monotonic_s() - started_s)

    # --- Rows ------------------------------------------------------------------------------

    def _insert(self, op: InsertRow, batch: _Batch) -> WriteReply:
        table = self._table(op.entity)
        if (replay := self._replay(op.op, batch)) is not None:
            return replay
        row_json = op.row_json
        try:
            self._conn.execute(
                table.insert, (op.row_id, *op.values, row_json.decode(), *table.fill)
            )
        except apsw.ConstraintError as error:
            row = orjson.loads(row_json)
            raise table.refusals.of(error, row, op.client_id_given) from error
        seq = batch.note(op.entity, op.row_id, "insert", row_json, None, op.op)
        return WriteReply(0, seq, op.row_id, False, 1)

    def _update(self, op: UpdateRow, batch: _Batch) -> WriteReply:
        table = self._table(op.entity)
        if (replay := self._replay(op.op, batch)) is not None:
            return replay
        before_json, before = self._readable(table, op.row_id, op.auth)
        after = table.codec.merge(before, op.patch)
        if not table.rules.may_update(op.auth, before, after.row):
            raise table.rules.denied("update", op.auth)
        fields = tuple(op.patch)
        changed = [after.row[f] for f in fields]
        values = [int(v) if isinstance(v, bool) else v for v in changed]
        try:
            self._conn.execute(
                table.update(fields), (*values, after.row_json.decode(), op.row_id)
            )
        except apsw.ConstraintError as error:
            raise table.refusals.of(error, after.row, client_id_given=False) from error
        seq = batch.note(op.entity, op.row_id, "update", after.row_json, before_json, op.op)
        return WriteReply(0, seq, op.row_id, False, 1)

    def _delete(self, op: DeleteRow, batch: _Batch) -> WriteReply:
        table = self._table(op.entity)
        if (replay := self._replay(op.op, batch)) is not None:
            return replay
        before_json, before = self._readable(table, op.row_id, op.auth)
        if not table.rules.may_delete(op.auth, before):
            raise table.rules.denied("delete", op.auth)
        self._conn.execute(table.delete, (op.row_id,))
        seq = batch.note(op.entity, op.row_id, "delete", None, before_json, op.op)
        return WriteReply(0, seq, op.row_id, False, 1)

    def _table(self, entity: str) -> _Table:
        table = self._tables.get(entity)
        if table is None:
            raise EntityNotFound(f'Unknown entity "{entity}"')
        return table

    def _readable(
        self, table: _Table, row_id: str, auth: AuthContext
    ) -> tuple[bytes, dict[str, Any]]:
        """The row, if it is there and the caller may know that it is."""
        row_json = self._conn.execute(table.select, (row_id,)).get
        if row_json is not None:
            row = orjson.loads(row_json)
            if table.rules.may_read(auth, row):
                return row_json, row
        raise NotFound("Row not found")

    def _replay(self, op: OpKey | None, batch: _Batch) -> WriteReply | None:
        """The answer of an operation that was carried out before, in this batch or earlier."""
        if op is None:
            return None
        done = batch.ops.get((op.identity, op.op_id))
        if done is None:
            done = self._conn.execute(
                "SELECT seq, row_id FROM _pylon_op_ids WHERE identity = ? AND op_id = ?",
                (op.identity, op.op_id),
            ).get
        return None if done is None else WriteReply(0, done[0], done[1], replayed=True)

    # --- Sessions and upkeep -----------------------------------------------------------------

    def _put_session(self, op: PutSession, batch: _Batch) -> WriteReply:
        self._conn.execute(
            "INSERT OR REPLACE INTO _pylon_auth_sessions (session_id, user_id, is_guest, "
            "created_at, expires_at, device, tenant_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
            (op.session_id, op.user_id, int(op.is_guest), op.created_at_s, op.expires_at_s,
             op.device, op.tenant_id),
        )
        return WriteReply(0, count=1)

    def _drop_session(self, op: DropSession, batch: _Batch) -> WriteReply:
        self._conn.execute(
            "DELETE FROM _pylon_auth_sessions WHERE session_id = ?", (op.session_id,)
        )
        return WriteReply(0, count=self._conn.changes())

    def _prune(self, op: PruneLog, batch: _Batch) -> WriteReply:
        return WriteReply(0, count=self._retention.prune(op, batch.now_s))

    def _reset(self, op: ResetRows, batch: _Batch) -> WriteReply:
        count = 0
        for table in self._tables.values():
            for row_id, row_json in maintenance.take_rows(self._conn, table.entity):
                batch.note(table.entity.name, row_id, "delete", None, row_json, None)
                count += 1
        return WriteReply(0, batch.seq if count else 0, count=count)

    def _mark_clean(self, op: MarkClean, batch: _Batch) -> WriteReply:
        batch.clean = True
        return WriteReply(0, count=1)


def _text(row_json: bytes | None) -> str | None:
    return None if row_json is None else row_json.decode()
