"""Two write engines on one PostgreSQL database, as two nodes have them, and a third connection.

Used by tests/test_postgres_writers.py and tests/test_postgres_faults.py.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import orjson
import psycopg

from pylon.clock import SystemClock
from pylon.manifest.model import Manifest
from pylon.policy.rules import compile_rules
from pylon.storage.events import ChangeEvent
from pylon.storage.ops import WriteOp, WriteReply, WriteRequest
from pylon.storage.postgres.connect import open_session
from pylon.storage.postgres.engine import PostgresEngine
from pylon.storage.postgres.locks import WRITER, lock_key
from pylon.storage.records import BatchResult
from tests.support.storage import MANIFEST
from tests.support.wait import wait_until

T = TypeVar("T")

_TIMEOUT_S = 30.0


class Writers:
    """Engines `a` and `b` on one schema, and `sql`: an open connection of nobody's."""

    def __init__(self, url: str, manifest: Manifest = MANIFEST) -> None:
        self.url = url
        self._ids = itertools.count(1)
        rules = compile_rules(manifest)
        self.a, self.b = (
            PostgresEngine.open(
                url, manifest, rules, SystemClock(), node=node, writer_id=node, wait_s=10.0,
                is_dev=True,
            )
            for node in ("a", "b")
        )
        self.sql = psycopg.connect(url, autocommit=True)
        session = open_session(url, "test", "key", SystemClock())
        self.key = lock_key(session, WRITER)
        session.close()

    def commit(self, engine: PostgresEngine, *ops: WriteOp) -> BatchResult:
        return engine.apply([WriteRequest(next(self._ids), op) for op in ops])

    def apply(self, engine: PostgresEngine, *ops: WriteOp) -> list[WriteReply]:
        return self.commit(engine, *ops).replies

    def codes(self, engine: PostgresEngine, *ops: WriteOp) -> list[str | None]:
        """Commit `ops` as one batch and return the error code of each, or None."""
        return [r.error.code if r.error else None for r in self.apply(engine, *ops)]

    def row(self, entity: str, row_id: str) -> dict[str, Any] | None:
        found = self.sql.execute(
            f'SELECT _json FROM "{entity}" WHERE id = %s', (row_id,)
        ).fetchone()
        return None if found is None else orjson.loads(found[0])

    def events(self, since: int = 0) -> list[ChangeEvent]:
        """Return the change log after a seq."""
        found = self.sql.execute(
            "SELECT seq, entity, row_id, kind, data, prev_data, timestamp FROM _pylon_change_log "
            "WHERE seq > %s ORDER BY seq", (since,)
        )
        return [
            ChangeEvent(seq, entity, row_id, kind, data and data.encode(),
                        prev_data and prev_data.encode(), at)
            for seq, entity, row_id, kind, data, prev_data, at in found
        ]

    def one(self, query: str, *params: object) -> Any:
        """Return the only value of a query."""
        found = self.sql.execute(query, params).fetchone()  # type: ignore[arg-type]
        return None if found is None else found[0]

    def pid_of(self, engine: PostgresEngine) -> int:
        """Return the server's process of an engine's writer."""
        node = "a" if engine is self.a else "b"
        return int(self.one(
            "SELECT pid FROM pg_stat_activity WHERE application_name = %s AND query LIKE %s "
            "ORDER BY backend_start DESC LIMIT 1", f"pylon-writer/{node}", "%",
        ))

    def end_connection(self, engine: PostgresEngine) -> None:
        """End the connection of an engine's writer, as a lost network does."""
        self.one("SELECT pg_terminate_backend(%s, 5000)", self.pid_of(engine))

    @contextmanager
    def overtaken(self, engine: PostgresEngine, *ops: WriteOp) -> Iterator[Overtaking]:
        """Begin a batch of `engine` and hold the lock of all writers, so that it waits for it with
        all its reads behind it. What the block does, comes before the batch."""
        self.sql.execute("BEGIN")
        self.sql.execute("SELECT pg_advisory_xact_lock(%s)", (self.key,))
        batch = Overtaking(lambda: self.commit(engine, *ops))
        wait_until("the batch waits for the lock", self._is_waiting)
        try:
            yield batch
            self.sql.execute("COMMIT")
        finally:
            if self.sql.info.transaction_status != psycopg.pq.TransactionStatus.IDLE:
                self.sql.execute("ROLLBACK")
        batch.join()

    def _is_waiting(self) -> bool:
        with psycopg.connect(self.url, autocommit=True) as other:
            found = other.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted "
                "AND ((classid::bigint << 32) | objid::bigint) = %s", (self.key,)
            ).fetchone()
        return found is not None and found[0] > 0

    def close(self) -> None:
        self.sql.close()
        self.a.close()
        self.b.close()


class Overtaking:
    """A batch in a thread of its own. `result`: after `join`."""

    def __init__(self, run: Callable[[], BatchResult]) -> None:
        self._result: BatchResult | None = None
        self._thread = threading.Thread(target=self._run, args=(run,))
        self._thread.start()

    def _run(self, run: Callable[[], BatchResult]) -> None:
        self._result = run()

    def join(self) -> None:
        self._thread.join(_TIMEOUT_S)
        assert not self._thread.is_alive(), "the batch did not end"

    @property
    def result(self) -> BatchResult:
        assert self._result is not None
        return self._result

    @property
    def codes(self) -> list[str | None]:
        return [r.error.code if r.error else None for r in self.result.replies]
