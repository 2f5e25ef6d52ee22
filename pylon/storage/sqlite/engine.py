"""The writer's engine: the only connection that changes rows (design.md §3, "Writer").

`apply` carries out many requests in one transaction. Each changes at most one row with one
statement (`row_writes`), which SQLite undoes by itself when it fails; what goes with the change
(its event, its op_id) is only noted (`journal`), and written for the whole batch just before
COMMIT. So no request needs a savepoint, but for `Transact`, which is all or nothing.

Invariants: `head` moves only after COMMIT; a seq is given to one committed event at most; an
exception that nobody foresaw undoes the batch and carries out the rest of it again; a failing
store leaves nothing written, and nothing is acknowledged into a file that is no longer there. The
supervisor's writer thread is the only caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import apsw
import orjson

from pylon import limits
from pylon.clock import Clock
from pylon.errors import (
    InternalError,
    LimitExceeded,
    PylonError,
    StartDelayed,
    StartRefused,
    StoreUnavailable,
)
from pylon.errors.wire import WireError
from pylon.log import get_logger
from pylon.manifest.model import Manifest
from pylon.storage.events import ChangeBatch
from pylon.storage.interface import BatchRefusal, BatchResult
from pylon.storage.ops import (
    DeleteRow,
    DropSession,
    DropShard,
    InsertRow,
    MarkClean,
    MoveShard,
    OpenDocument,
    PruneLog,
    PruneSessions,
    PushDocument,
    PutIndexes,
    PutSession,
    PutShard,
    RenewSearch,
    ResetRows,
    Transact,
    UpdateRow,
    UseSessions,
    WriteReply,
    WriteRequest,
)
from pylon.storage.sqlite import epochs, log, maintenance, pragmas, sessions, shards
from pylon.storage.sqlite.connect import STORE_FAILURES, open_writer, refusal_reason
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.file_watch import FileProblem, FileWatch
from pylon.storage.sqlite.journal import Journal
from pylon.storage.sqlite.large_rows import DeferredError
from pylon.storage.sqlite.row_writes import RowWrites, replayed
from pylon.storage.sqlite.schema.apply import prepare_store
from pylon.storage.sqlite.schema.indexes import put_indexes
from pylon.storage.sqlite.schema.search import renew
from pylon.storage.sqlite.search import SearchIndex, text_fields
from pylon.storage.sqlite.table import Table

if TYPE_CHECKING:
    from pylon.policy.rules import RuleSet

_log: Final = get_logger("engine")


class SqliteEngine:
    """`pylon.storage.interface.WriteEngine` on one SQLite file."""

    def __init__(
        self, conn: apsw.Connection, manifest: Manifest, rules: RuleSet, clock: Clock,
        retained_columns: Mapping[str, Mapping[str, object]], row_max_bytes: int,
    ) -> None:
        """Used by `open`; the connection is prepared and becomes the engine's own."""
        self._conn = conn
        self._execute = conn.cursor().execute
        self._clock = clock
        self._manifest = manifest
        tables = {
            e.name: Table(
                e, rules.of(e.name), retained_columns.get(e.name, {}),
                SearchIndex(conn, e) if text_fields(e) else None, row_max_bytes,
            )
            for e in manifest.entities
        }
        rows = RowWrites(conn, tables, clock)
        self._documents = rows.documents
        self._large = rows.large
        self._retention = maintenance.Retention(conn)
        self._clean = False
        self._file = FileWatch(conn.filename, clock)
        self._file_problem: FileProblem | None = None
        self.head = log.head_seq(conn)
        self._handlers: dict[type, Callable[[int, Any, Journal], WriteReply]] = {
            InsertRow: rows.insert,
            UpdateRow: rows.update,
            DeleteRow: rows.delete,
            Transact: self._transact,
            PutSession: self._put_session,
            DropSession: self._drop_session,
            PutShard: self._put_shard,
            MoveShard: self._move_shard,
            DropShard: self._drop_shard,
            PruneLog: self._prune,
            PruneSessions: self._prune_sessions,
            UseSessions: self._use_sessions,
            ResetRows: rows.reset,
            PutIndexes: self._put_indexes,
            RenewSearch: self._renew_search,
            MarkClean: self._mark_clean,
            OpenDocument: self._documents.open,
            PushDocument: self._documents.push,
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
        row_max_bytes: int = limits.BODY_BYTES,
    ) -> SqliteEngine:
        """Open the database, bring its schema to the manifest and note the start.

        Args:
            durability: `normal` or `full`.
            boot_id: names this boot of the machine; None asks the kernel.
            row_max_bytes: of a row's JSON (PYLON_ROW_MAX_BYTES).

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
            return cls(conn, manifest, rules, clock, prepared.retained_columns, row_max_bytes)
        except apsw.Error as error:
            if conn is not None:
                conn.close()
            if isinstance(error, (apsw.FullError, apsw.IOError)):
                raise StartDelayed(
                    f"the database {path} cannot be used: {error_text(error)}: make room on its "
                    "disk or mend it, and start again"
                ) from error
            raise StartRefused(
                f"the database {path} cannot be used: {error_text(error)}"
            ) from error
        except PylonError:
            if conn is not None:
                conn.close()
            raise

    def apply(
        self, requests: Sequence[WriteRequest], *, large_bytes: int | None = None
    ) -> BatchResult:
        """See the contract. The policies of updates and deletes are judged here."""
        started_s = self._clock.monotonic_s()
        broken: dict[int, WriteReply] = {}
        if self._file_problem is not None:
            self._file_problem = self._file.find_problem()
            if self._file_problem is not None:
                return self._refuse_file(requests, self._file_problem, started_s)
        while True:
            try:
                result = self._transaction(requests, broken, started_s, large_bytes)
            except apsw.ConstraintError as error:
                # The log has events that are not ours: somebody wrote beside us. Go on above.
                self.head = log.head_seq(self._conn)
                return self._refuse(requests, error, started_s)
            except apsw.Error as error:
                return self._refuse(requests, error, started_s)
            if result is not None:
                # After the commit and before its answers: what is not under the path is lost.
                self._file_problem = self._file.find_problem()
                if self._file_problem is not None:
                    return self._refuse_file(requests, self._file_problem, started_s)
                return result

    def close(self) -> None:
        self._conn.close()

    # --- The transaction -------------------------------------------------------------------

    def _transaction(
        self, requests: Sequence[WriteRequest], broken: dict[int, WriteReply], started_s: float,
        large_bytes: int | None,
    ) -> BatchResult | None:
        """Carry out all requests but the `broken` ones; None if one more has broken.

        Raises:
            apsw.Error: the store failed, and the transaction has been undone.
        """
        journal = Journal(self.head, self._clock.wall_ns() // 10**9)
        replies: list[WriteReply] = []
        deferred: list[WriteRequest] = []
        is_deferring = False  # until the end of the call whose request was deferred
        carry_out = self._handlers
        self._large.begin(large_bytes)
        self._execute("BEGIN IMMEDIATE")
        try:
            for position, request in enumerate(requests):
                if broken and position in broken:
                    replies.append(broken[position])
                    continue
                if is_deferring:
                    deferred.append(request)
                    is_deferring = request.has_more
                    continue
                op = request.op
                try:
                    replies.append(carry_out[type(op)](request.id, op, journal))
                except PylonError as error:
                    replies.append(WriteReply(request.id, error=WireError.of(error)))
                except DeferredError:
                    deferred.append(request)
                    is_deferring = request.has_more
                except STORE_FAILURES:
                    raise
                except Exception as error:  # noqa: BLE001
                    # Not foreseen, so nobody knows how far it came: undo everything, and do
                    # the batch again without it.
                    _log.exception("write.broken", error=error, op=type(op).__name__)
                    failure = WireError.of(InternalError("the write failed unexpectedly"))
                    broken[position] = WriteReply(request.id, error=failure)
                    return None
            self._finish(journal)
            self._execute("COMMIT")
        finally:
            if self._conn.in_transaction:
                self._execute("ROLLBACK")
                self._retention.forget()
                self._documents.undone()
        previous, self.head = self.head, journal.seq
        events = journal.events
        self._clean = journal.clean or (self._clean and not events)
        self._retention.committed(len(events), len(journal.ops))
        self._documents.committed()
        published = ChangeBatch(previous, events) if events else None
        return BatchResult(
            replies, published, self._clock.monotonic_s() - started_s, journal.documents,
            deferred, self._large.rows, self._large.spent_bytes,
        )

    def _finish(self, journal: Journal) -> None:
        if journal.clean:
            epochs.end_run(self._conn, journal.seq)
        elif self._clean and journal.seq > self.head:  # the run has not ended after all
            epochs.resume_run(self._conn)
        journal.write(self._conn)

    def _refuse(
        self, requests: Sequence[WriteRequest], cause: apsw.Error, started_s: float
    ) -> BatchResult:
        text = error_text(cause)
        error = WireError.of(
            StoreUnavailable(
                f"the database is not available, nothing was written: {text}",
                hint="see the server's log; free space on the disk if it is full",
            )
        )
        replies = [WriteReply(r.id, error=error) for r in requests]
        refusal = BatchRefusal(refusal_reason(cause), f"{self._conn.filename}: {text}")
        return BatchResult(
            replies, None, self._clock.monotonic_s() - started_s, refusal=refusal
        )

    def _refuse_file(
        self, requests: Sequence[WriteRequest], problem: FileProblem, started_s: float
    ) -> BatchResult:
        error = WireError.of(
            StoreUnavailable(
                "the database file is no longer in its place, nothing was written",
                hint="see the server's log, which says what to do",
            )
        )
        replies = [WriteReply(r.id, error=error) for r in requests]
        return BatchResult(
            replies, None, self._clock.monotonic_s() - started_s, refusal=BatchRefusal(*problem)
        )

    # --- What is not one row's ----------------------------------------------------------

    def _transact(self, number: int, op: Transact, journal: Journal) -> WriteReply:
        key = op.key
        if key is not None and (replay := replayed(self._conn, number, key, journal)) is not None:
            ids = orjson.loads(replay.row_id)
            results = [WriteReply(n, 0, row_id, True) for n, row_id in enumerate(ids)]
            return WriteReply(number, replay.seq, "", True, 0, None, results)
        done: list[WriteReply] = []
        self._execute("SAVEPOINT transact")
        journal.open_step()
        self._large.hold()
        try:
            for position, step in enumerate(op.ops):
                try:
                    done.append(self._handlers[type(step)](position, step, journal))
                    _check_transact_size(journal.step_bytes)
                except PylonError as error:
                    del done[position:]
                    done.append(WriteReply(position, error=WireError.of(error)))
                    self._undo_transact(journal)
                    return WriteReply(number, results=done)
                except DeferredError:
                    self._undo_transact(journal)
                    raise
        finally:
            self._large.release()
        self._execute("RELEASE transact")
        journal.keep_step()
        # A row that the same commit had changed before keeps its seq, so the last need not be it.
        seq = max((reply.seq for reply in done), default=0)
        if key is not None:
            ids = orjson.dumps([reply.row_id for reply in done]).decode()
            journal.note_op(key, seq or journal.seq, ids)
        return WriteReply(number, seq, "", False, len(done), None, done)

    def _undo_transact(self, journal: Journal) -> None:
        self._execute("ROLLBACK TO transact")
        self._documents.undone()
        self._execute("RELEASE transact")
        journal.undo_step()

    def _put_session(self, number: int, op: PutSession, journal: Journal) -> WriteReply:
        sessions.put(self._conn, op)
        return WriteReply(number, count=1)

    def _drop_session(self, number: int, op: DropSession, journal: Journal) -> WriteReply:
        return WriteReply(number, count=sessions.drop(self._conn, op.session_id))

    def _put_shard(self, number: int, op: PutShard, journal: Journal) -> WriteReply:
        shards.put(self._conn, op.shard_id, op.tick, op.data, journal.now_s)
        return WriteReply(number, count=1)

    def _move_shard(self, number: int, op: MoveShard, journal: Journal) -> WriteReply:
        shards.move(self._conn, op.shard_id, op.home, journal.now_s)
        return WriteReply(number, count=1)

    def _drop_shard(self, number: int, op: DropShard, journal: Journal) -> WriteReply:
        return WriteReply(number, count=shards.drop(self._conn, op.shard_id))

    def _prune(self, number: int, op: PruneLog, journal: Journal) -> WriteReply:
        return WriteReply(number, count=self._retention.prune(op))

    def _prune_sessions(self, number: int, op: PruneSessions, journal: Journal) -> WriteReply:
        expired = sessions.drop_expired(self._conn, journal.now_s, op.limit)
        unused = sessions.drop_unused(self._conn, op.unused_before_s, op.limit)
        return WriteReply(number, count=expired + unused)

    def _use_sessions(self, number: int, op: UseSessions, journal: Journal) -> WriteReply:
        return WriteReply(number, count=sessions.mark_used(self._conn, op.session_ids))

    def _put_indexes(self, number: int, op: PutIndexes, journal: Journal) -> WriteReply:
        done = put_indexes(self._conn, self._manifest, op.indexes, self._clock)
        return WriteReply(number, count=done)

    def _renew_search(self, number: int, op: RenewSearch, journal: Journal) -> WriteReply:
        rows, last_id = renew(self._conn, self._manifest, op.entity, op.after_id, op.rows)
        return WriteReply(number, row_id=last_id, count=rows)

    def _mark_clean(self, number: int, op: MarkClean, journal: Journal) -> WriteReply:
        journal.clean = True
        return WriteReply(number, count=1)


def _check_transact_size(size_bytes: int) -> None:
    """
    Raises:
        LimitExceeded
    """
    if size_bytes > limits.TRANSACT_BYTES:
        raise LimitExceeded(
            f"A transaction may change {limits.TRANSACT_BYTES} bytes of rows, as they were and as "
            f"they become, and with this operation it is {size_bytes} (TRANSACT_BYTES)",
            hint="Change fewer or smaller rows at once, in several transactions",
        )
