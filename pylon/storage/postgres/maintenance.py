"""PostgreSQL maintenance: retention, sessions, indexes and measurements of a shared database.

One node of all does the steps (`leader`); two that do them for a moment do no harm. They have a
connection of their own, so no batch waits for them, and pruning the log takes no lock. Only the end
of sessions does, since other nodes follow its marks in commit order. The server needs no
checkpoints and no note of a clean end.

Any thread may call any method; a lock gives them the connection one after the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

import psycopg

from pylon import limits
from pylon.clock import NS_PER_S, Clock
from pylon.errors import PylonError, StoreUnavailable, WriterUnavailable
from pylon.manifest.model import Manifest
from pylon.storage.core.log_size import LogSize
from pylon.storage.postgres import sequences, sessions
from pylon.storage.postgres.channels import payload
from pylon.storage.postgres.connect import (
    Limits,
    error_text,
    is_lost,
    open_session,
    translate,
)
from pylon.storage.postgres.record_rows import DIALECT
from pylon.storage.postgres.retention import prune_events, prune_marks, prune_ops
from pylon.storage.postgres.schema import search
from pylon.storage.postgres.schema.apply import transaction
from pylon.storage.postgres.schema.indexes import put_indexes
from pylon.storage.postgres.system_reads import EVENT_BYTES
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.postgres.writer_session import LOCK, WriterSession
from pylon.storage.records import (
    BatchRefusal,
    ConversionStep,
    GuestStep,
    IndexSpec,
    LogFacts,
    LogRetention,
    SessionNote,
    StoreSizes,
)
from pylon.storage.sql import record_sql

T = TypeVar("T")

_LIMITS: Final = Limits(lock_ms=5_000, statement_ms=30_000)
_INDEXES_S: Final = 3600.0  # building an index of a large table; nobody waits for it
_SIZES: Final = (
    f"SELECT seq, {EVENT_BYTES} "
    "FROM _pylon_change_log WHERE seq > $1 ORDER BY seq LIMIT $2"
)


class PostgresMaintenance:
    """See the module, and `pylon.storage.interface.Maintenance`."""

    def __init__(
        self, url: str, node: str, writer: WriterSession, writer_id: str, manifest: Manifest,
        clock: Clock, waits: Clock,
    ) -> None:
        """
        Args:
            writer: whose lock and channel the steps use.
            waits: the clock of time limits.
        """
        self._url = url
        self._node = node
        self._writer = writer
        self._writer_id = writer_id
        self._manifest = manifest
        self._clock = clock
        self._waits = waits
        self._turn = threading.Lock()
        self._session: BlockingSession | None = None
        self._log_size = LogSize()

    # --- Steps ---------------------------------------------------------------------------------

    def prune_log(self, step: LogRetention) -> int:
        """See `Maintenance`."""
        return self._run(lambda session: prune_events(session, step) + prune_ops(session, step))

    def prune_sessions(self, limit: int, unused_before_s: int) -> int:
        """See `Maintenance`. Also drops old marks of sessions."""
        now_s = self._clock.wall_ns() // NS_PER_S

        def prune(session: BlockingSession) -> int:
            prune_marks(session, now_s)
            ended, unused = session.pipeline([
                (sessions.EXPIRED, (now_s, limit)), (sessions.UNUSED, (unused_before_s, limit)),
            ])
            ids = [
                (result.get_value(n, 0) or b"").decode()
                for result in (ended, unused) for n in range(result.ntuples)
            ]
            if not ids:
                return 0
            results = session.pipeline([
                ("BEGIN", ()), (LOCK, (self._writer.key,)),
                (sessions.DROP_ALL, (ids, sessions.ENDED, now_s)),
                (sequences.NOTIFY, (
                    self._writer.channel, payload(0, self._writer_id, sessions=True)
                )),
                ("COMMIT", ()),
            ])
            return int(results[2].get_value(0, 0) or 0)

        return self._run(prune)

    def prune_guests(self, after_id: str, limit: int, seen_before_s: int) -> GuestStep:
        """See `Maintenance`."""
        now_s = self._clock.wall_ns() // NS_PER_S

        def prune(session: BlockingSession) -> GuestStep:
            found = session.execute(sessions.LIST_AFTER, (after_id, seen_before_s, limit))
            rows = [
                ((found.get_value(n, 0) or b"").decode(), found.get_value(n, 1) == b"t")
                for n in range(found.ntuples)
            ]
            last_id = rows[-1][0] if len(rows) == limit else ""
            idle = [session_id for session_id, is_idle in rows if is_idle]
            if not idle:
                return GuestStep(0, last_id)
            results = session.pipeline([
                ("BEGIN", ()), (LOCK, (self._writer.key,)),
                (sessions.DROP_IDLE, (idle, sessions.ENDED, now_s, seen_before_s)),
                (sequences.NOTIFY, (
                    self._writer.channel, payload(0, self._writer_id, sessions=True)
                )),
                ("COMMIT", ()),
            ])
            return GuestStep(int(results[2].get_value(0, 0) or 0), last_id)

        return self._run(prune)

    def prune_records(self, limit: int, now_s: int, kept_s: Mapping[str, int]) -> dict[str, int]:
        """See `Maintenance`. It has the writers' lock, since no record that a batch relies on may
        go before its commit."""

        def prune(session: BlockingSession) -> dict[str, int]:
            statements = record_sql.prunes(DIALECT, limit, now_s, kept_s)
            results = session.pipeline([
                ("BEGIN", ()), (LOCK, (self._writer.key,)), *statements.values(), ("COMMIT", ()),
            ])
            return {
                table: result.command_tuples or 0
                for table, result in zip(statements, results[2:-1], strict=True)
            }

        return self._run(prune)

    def note_sessions_used(self, session_ids: Sequence[str], note: SessionNote) -> int:
        """See `Maintenance`. Under the writers' lock, else row locks could meet in a circle."""

        def write(session: BlockingSession) -> int:
            ids = list(session_ids)
            results = session.pipeline([
                ("BEGIN", ()), (LOCK, (self._writer.key,)), (sessions.MARK_USED, (ids,)),
                (sessions.NOTE_USED, (*note, ids)), ("COMMIT", ()),
            ])
            return sum(result.command_tuples or 0 for result in results[2:4])

        return self._run(write)

    def note_keys_used(self, key_ids: Sequence[str], now_s: int) -> int:
        """See `Maintenance`."""

        def write(session: BlockingSession) -> int:
            results = session.pipeline([
                ("BEGIN", ()), (LOCK, (self._writer.key,)),
                *record_sql.note_keys_used(DIALECT, key_ids, now_s), ("COMMIT", ()),
            ])
            return sum(result.command_tuples or 0 for result in results[2:-1])

        return self._run(write)

    def put_indexes(self, indexes: Sequence[IndexSpec]) -> int:
        """See `Maintenance`."""
        return self._run(
            lambda session: put_indexes(session, self._manifest, indexes, self._clock), _INDEXES_S
        )

    def renew_search(self, entity: str, after_id: str, rows: int) -> tuple[int, str]:
        """See `Maintenance`."""
        def renew(session: BlockingSession) -> tuple[int, str]:
            with transaction(session):
                return search.renew(session, self._manifest, entity, after_id, rows)

        return self._run(renew)

    def convert_datetimes(self) -> ConversionStep | None:
        """See `Maintenance`. This store has had one notation from its beginning."""
        return None

    def end_run(self) -> None:
        """See `Maintenance`."""

    # --- Files and measures --------------------------------------------------------------------

    def checkpoint(self) -> None:
        """See `Maintenance`."""

    def end_checkpoints(self) -> None:
        """See `Maintenance`."""

    def flush_all(self) -> bool:
        """See `Maintenance`."""
        return True

    def list_blockers(self) -> list[str]:
        """See `Maintenance`."""
        return []

    def find_problem(self) -> BatchRefusal | None:
        """See `Maintenance`."""
        return self._writer.find_problem()

    def measure_log(self) -> LogFacts:
        """See `Maintenance`."""

        def measure(session: BlockingSession) -> LogFacts:
            oldest, head = (
                int(result.get_value(0, 0) or 0)
                for result in session.pipeline([(sequences.OLDEST, ()), (sequences.HEAD, ())])
            )

            def read(seq: int, limit: int) -> list[tuple[int, int]]:
                found = session.execute(_SIZES, (seq, limit))
                return [
                    (int(found.get_value(n, 0) or 0), int(found.get_value(n, 1) or 0))
                    for n in range(found.ntuples)
                ]

            return LogFacts(head, oldest, self._log_size.count(oldest, head, read))

        return self._run(measure)

    def log_seq_above(self, size_bytes: int) -> int:
        """See `Maintenance`."""
        return self._log_size.seq_above(size_bytes)

    def count_sessions(self) -> dict[str, int]:
        """See `Maintenance`."""

        def count(session: BlockingSession) -> dict[str, int]:
            counts = {"guest": 0, "user": 0}
            found = session.execute(sessions.COUNT_BY_KIND)
            for n in range(found.ntuples):
                kind = "guest" if found.get_value(n, 0) == b"t" else "user"
                counts[kind] = int(found.get_value(n, 1) or 0)
            return counts

        return self._run(count)

    def sizes(self) -> StoreSizes:
        """See `Maintenance`. The server's own log and disk are not known here."""
        try:
            data_bytes = self._run(lambda session: int(
                session.execute("SELECT pg_database_size(current_database())").get_value(0, 0) or 0
            ), limits.READ_TIMEOUT_S)
        except PylonError:
            data_bytes = 0
        return StoreSizes(data_bytes, 0, 0)

    def close(self) -> None:
        """Close the connection. Idempotent."""
        with self._turn:
            self._drop_session()

    def _run(
        self, step: Callable[[BlockingSession], T], timeout_s: float = limits.WRITE_TIMEOUT_S
    ) -> T:
        with self._next_turn(timeout_s):
            try:
                session = self._connect()
                return step(session)
            except psycopg.Error as error:
                self._tidy_up(error)
                known = translate(error)
                if isinstance(known, StoreUnavailable):
                    raise known from error
                raise StoreUnavailable(
                    f"the database refused a step of the upkeep: {error_text(error)}"
                ) from error

    @contextmanager
    def _next_turn(self, timeout_s: float) -> Iterator[None]:
        if not self._turn.acquire(timeout=timeout_s):
            raise WriterUnavailable(f"Another step of the upkeep took longer than {timeout_s:g} s")
        try:
            yield
        finally:
            self._turn.release()

    def _connect(self) -> BlockingSession:
        if self._session is not None and self._session.is_broken:
            self._drop_session()
        if self._session is None:
            self._session = open_session(self._url, "upkeep", self._node, self._waits, _LIMITS)
        return self._session

    def _tidy_up(self, error: psycopg.Error) -> None:
        session = self._session
        if session is None:
            return
        if is_lost(error) or session.is_broken:
            self._drop_session()
        elif session.is_in_transaction:
            try:
                session.execute("ROLLBACK")
            except psycopg.Error:
                self._drop_session()

    def _drop_session(self) -> None:
        if self._session is not None:
            self._session.close()
            self._session = None
