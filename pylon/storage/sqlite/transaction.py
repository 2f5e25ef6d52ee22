"""SQLite transaction: implements `pylon.storage.core.transaction.RowTransaction`.

The statements on `_pylon_*` tables are in `log`, `op_ids`, `documents`, `sessions`, `shards`,
`meta` and `epochs`; those on entity tables are in `table`. BEGIN IMMEDIATE excludes other writers.

Invariant: SQLite itself undoes a failed statement, so a primitive that raises has changed nothing.
Made by `engine`; one thread at a time uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import apsw
from msgspec.structs import astuple

from pylon.clock import Clock
from pylon.manifest.model import Entity
from pylon.policy.entity_rules import EntityRules
from pylon.query.predicate import Predicate
from pylon.query.words import text_fields
from pylon.storage.auth_ops import Condition
from pylon.storage.core.transaction import (
    DocumentKey,
    DoneOp,
    ForeignWriterError,
    LoggedEvent,
    OpName,
)
from pylon.storage.events import ChangeEvent
from pylon.storage.ops import WriteRequest
from pylon.storage.records import (
    BatchRefusal,
    DocumentView,
    SessionNote,
    SessionRow,
    StoredDocument,
)
from pylon.storage.sql.compiler import CompiledCache, PredicateCompiler
from pylon.storage.sqlite import documents, epochs, log, meta, op_ids, sessions, shards
from pylon.storage.sqlite.connect import STORE_FAILURES, refusal_reason
from pylon.storage.sqlite.dialect import SQLITE
from pylon.storage.sqlite.error_text import error_text
from pylon.storage.sqlite.file_watch import FileWatch
from pylon.storage.sqlite.instants import add_conversion, converting_source, is_converted
from pylon.storage.sqlite.names import quote
from pylon.storage.sqlite.records import SqliteRecords
from pylon.storage.sqlite.search import SearchIndex
from pylon.storage.sqlite.table import SqliteTable

_DRIVER_ERRORS: Final = (apsw.Error,)


class SqliteTransaction:
    """See the module. `maintenance`: the scans of upkeep, in a transaction of the same connection.
    """

    def __init__(
        self, conn: apsw.Connection, clock: Clock,
        retained_columns: Mapping[str, Mapping[str, object]],
    ) -> None:
        """
        Args:
            conn: a writer's; it has written already.
            retained_columns: see `schema.apply.Prepared`.
        """
        self._conn = conn
        self._execute = conn.cursor().execute
        self._retained = retained_columns
        self._compiled = CompiledCache()
        self._compilers: dict[str, PredicateCompiler] = {}
        self._unconverted: dict[str, Entity] = {}  # with datetimes in other notations
        self._file = FileWatch(conn.filename, clock)
        self.log = _Log(conn)
        self.documents = _Documents(conn)
        self.sessions = _Sessions(conn)
        self.records = SqliteRecords(conn)
        self.shards = _Shards(conn)
        self.maintenance = _Maintenance(conn)
        self.position = 0  # never read: a primitive fails at once, or not at all
        self.shares_documents = False
        self.store_failures: tuple[type[Exception], ...] = STORE_FAILURES
        self.errors: tuple[type[Exception], ...] = _DRIVER_ERRORS

    def table(self, entity: Entity, rules: EntityRules) -> SqliteTable:
        """See `RowTransaction`."""
        self._compilers[entity.name] = PredicateCompiler(SQLITE, entity, self._compiled)
        if not is_converted(self._conn, entity):
            add_conversion(self._conn)
            self._unconverted[entity.name] = entity
        search = SearchIndex(self._conn, entity) if text_fields(entity) else None
        return SqliteTable(
            self._conn, self._execute, entity, rules, self._retained.get(entity.name, {}), search
        )

    def has_row(self, entity: str, where: Predicate) -> bool:
        """See `RowTransaction`."""
        clause = self._compilers[entity].compile(where)
        source = self._source(entity) if entity in self._unconverted else quote(entity)
        text = f"SELECT EXISTS (SELECT 1 FROM {source} WHERE {clause.sql})"
        return bool(self._execute(text, clause.params).get)

    def _source(self, entity: str) -> str:
        """Return what a SELECT reads while the entity's datetimes are converted."""
        if is_converted(self._conn, self._unconverted[entity]):
            del self._unconverted[entity]
            return quote(entity)
        return converting_source(self._unconverted[entity])

    def begin(self, requests: Sequence[WriteRequest], head: int, locked: bool) -> int:
        """See `RowTransaction`. Seqs are never provisional: BEGIN IMMEDIATE excludes others."""
        self._execute("BEGIN IMMEDIATE")
        return head

    def begin_step(self) -> None:
        """See `RowTransaction`."""
        self._execute("BEGIN IMMEDIATE")

    def commit(self) -> None:
        """See `RowTransaction`."""
        self._execute("COMMIT")

    def roll_back(self) -> None:
        """See `RowTransaction`."""
        if self._conn.in_transaction:
            self._execute("ROLLBACK")

    def open_savepoint(self) -> None:
        """See `RowTransaction`."""
        self._execute("SAVEPOINT step")

    def keep_savepoint(self) -> None:
        """See `RowTransaction`."""
        self._execute("RELEASE step")

    def undo_savepoint(self) -> None:
        """See `RowTransaction`."""
        self._execute("ROLLBACK TO step")
        self._execute("RELEASE step")

    def get_fact(self, key: str) -> str | None:
        """See `RowTransaction`."""
        return meta.get(self._conn, key)

    def put_fact(self, key: str, value: str) -> None:
        """See `RowTransaction`."""
        meta.put(self._conn, key, value)

    def end_run(self, head: int) -> None:
        """See `RowTransaction`."""
        epochs.end_run(self._conn, head)

    def resume_run(self) -> None:
        """See `RowTransaction`."""
        epochs.resume_run(self._conn)

    def refusal_of(self, error: Exception) -> tuple[BatchRefusal, str]:
        """See `RowTransaction`."""
        text = error_text(error)
        return BatchRefusal(refusal_reason(error), f"{self._conn.filename}: {text}"), text

    def find_problem(self) -> BatchRefusal | None:
        """Return the reason if the file at the path is not the opened one: see `file_watch`."""
        problem = self._file.find_problem()
        return None if problem is None else BatchRefusal(*problem)


class _Log:
    """`pylon.storage.core.transaction.LogRows`."""

    __slots__ = ("_conn", "_execute")

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn
        self._execute = conn.cursor().execute

    def head_seq(self) -> int:
        """See `LogRows`."""
        return log.head_seq(self._conn)

    def append_events(self, events: Sequence[ChangeEvent]) -> None:
        """See `LogRows`."""
        try:
            self._conn.executemany(log.INSERT, map(astuple, events))
        except apsw.ConstraintError as error:
            raise ForeignWriterError from error

    def find_op(self, name: OpName) -> DoneOp | None:
        """See `LogRows`."""
        done: DoneOp | None = self._execute(op_ids.FIND, name).get
        return done

    def put_ops(self, ops: Mapping[OpName, DoneOp], now_s: int) -> None:
        """See `LogRows`."""
        op_ids.put(self._conn, ops, now_s)


class _Documents:
    """`pylon.storage.core.transaction.DocumentRows`."""

    __slots__ = ("_conn",)

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn

    def document_number(self, key: DocumentKey) -> int | None:
        """See `DocumentRows`."""
        stored = self.find_document(key)
        return None if stored is None else stored.number

    def document_keys(self) -> Iterable[DocumentKey]:
        """See `DocumentRows`."""
        return documents.keys(self._conn)

    def find_document(self, key: DocumentKey) -> StoredDocument | None:
        """See `DocumentRows`."""
        return documents.stored_document(self._conn, *key)

    def put_snapshot(self, key: DocumentKey, snapshot: bytes, now_s: int) -> None:
        """See `DocumentRows`."""
        documents.put_snapshot(self._conn, key, snapshot, now_s)

    def append_update(self, key: DocumentKey, prev: int, seq: int, data: bytes) -> int:
        """See `DocumentRows`."""
        return documents.append_update(self._conn, key, prev, seq, data)

    def drop_updates_before(self, key: DocumentKey, number: int) -> None:
        """See `DocumentRows`."""
        documents.drop_updates_before(self._conn, key, number)

    def last_view(self, key: DocumentKey) -> tuple[int | None, int]:
        """See `DocumentRows`."""
        return documents.last_view(self._conn, key)

    def put_view(self, key: DocumentKey, number: int, view: DocumentView) -> None:
        """See `DocumentRows`."""
        documents.put_view(self._conn, key, number, view)

    def drop_views_before(self, key: DocumentKey, number: int) -> None:
        """See `DocumentRows`."""
        documents.drop_views_before(self._conn, key, number)

    def forget_views(self, entity: str, facts: str) -> None:
        """See `DocumentRows`."""
        documents.forget_views(self._conn, entity, facts)

    def drop_document(self, key: DocumentKey) -> None:
        """See `DocumentRows`."""
        documents.delete_document(self._conn, *key)

    def drop_documents(self, entity: str) -> None:
        """See `DocumentRows`."""
        documents.drop_entity(self._conn, entity)


class _Sessions:
    """`pylon.storage.core.transaction.SessionRows`."""

    __slots__ = ("_conn",)

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn

    def put_session(self, session: SessionRow) -> None:
        """See `SessionRows`."""
        sessions.put(self._conn, session)

    def drop_session(self, session_id: str) -> int:
        """See `SessionRows`."""
        return sessions.drop(self._conn, session_id)

    def end_sessions(
        self, where: Sequence[Condition], keep: Sequence[str], limit: int | None
    ) -> list[str]:
        """See `SessionRows`."""
        return sessions.end(self._conn, where, keep, limit)


class _Shards:
    """`pylon.storage.core.transaction.ShardRows`."""

    __slots__ = ("_conn",)

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn

    def claim_shard(
        self, shard_id: str, owner: str, lease: str, region: str, now_s: int
    ) -> int:
        """See `ShardRows`."""
        return shards.claim(self._conn, shard_id, now_s)

    def put_shard(
        self, shard_id: str, tick: int, data: bytes, now_s: int, generation: int | None
    ) -> None:
        """See `ShardRows`."""
        shards.put(self._conn, shard_id, tick, data, now_s, generation)

    def place_shard(
        self, shard_id: str, home: str | None, now_s: int, generation: int | None
    ) -> None:
        """See `ShardRows`."""
        shards.move(self._conn, shard_id, home, now_s, generation)

    def drop_shard(self, shard_id: str, generation: int | None) -> int:
        """See `ShardRows`."""
        return shards.drop(self._conn, shard_id, generation)

    def release_shard(self, shard_id: str, generation: int) -> None:
        """See `ShardRows`."""
        shards.release(self._conn, shard_id, generation)


class _Maintenance:
    """`pylon.storage.core.transaction.MaintenanceRows`."""

    __slots__ = ("_conn",)

    def __init__(self, conn: apsw.Connection) -> None:
        self._conn = conn

    def drop_session(self, session_id: str) -> int:
        """See `MaintenanceRows`."""
        return sessions.drop(self._conn, session_id)

    def note_sessions_used(self, session_ids: Sequence[str], note: SessionNote) -> int:
        """See `MaintenanceRows`."""
        return sessions.note_used(self._conn, session_ids, note)

    def expired_sessions(self, now_s: int, limit: int) -> list[str]:
        """See `MaintenanceRows`."""
        return sessions.expired(self._conn, now_s, limit)

    def unused_sessions(self, made_before_s: int, limit: int) -> list[str]:
        """See `MaintenanceRows`."""
        return sessions.unused(self._conn, made_before_s, limit)

    def list_sessions(
        self, after_id: str, limit: int, seen_before_s: int
    ) -> list[tuple[str, bool]]:
        """See `MaintenanceRows`."""
        return sessions.list_after(self._conn, after_id, limit, seen_before_s)

    def count_events(self) -> int:
        """See `MaintenanceRows`."""
        return log.count(self._conn)

    def oldest_events(self, limit: int) -> list[LoggedEvent]:
        """See `MaintenanceRows`."""
        return log.oldest(self._conn, limit)

    def drop_events(self, to_seq: int) -> int:
        """See `MaintenanceRows`."""
        return log.drop(self._conn, to_seq)

    def count_ops(self) -> int:
        """See `MaintenanceRows`."""
        return op_ids.count(self._conn)

    def drop_ops(self, limit: int, older_than_s: int, old_seq: int) -> int:
        """See `MaintenanceRows`."""
        return op_ids.drop(self._conn, limit, older_than_s, old_seq)
