"""PostgreSQL transfers: implements `pylon.storage.transfer.TransferManager` for one schema.

A long read hinders nobody here, so no copy is made: the source is a transaction of its own.

Made by `pylon.storage.postgres.backend`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from pylon import limits
from pylon.clock import Clock, SystemClock
from pylon.database_url import shown_url
from pylon.errors import MigrationRefused
from pylon.manifest.model import Manifest
from pylon.storage.postgres import registry
from pylon.storage.postgres.connect import Limits, open_session
from pylon.storage.postgres.locks import WRITER, lock_key
from pylon.storage.postgres.names import NAME_BYTES
from pylon.storage.postgres.transfer.rows import server_errors
from pylon.storage.postgres.transfer.source import PostgresSource
from pylon.storage.postgres.transfer.target import PostgresTarget
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.transfer import ValueLimits

_LIMITS: Final = ValueLimits(
    nul_in_texts=False, index_entry_bytes=limits.INDEXED_TEXT_BYTES, name_bytes=NAME_BYTES
)
_SESSION: Final = Limits(lock_ms=30_000, statement_ms=0, idle_in_transaction_ms=0)


class PostgresTransfer:
    """See the module."""

    limits = _LIMITS

    def __init__(self, url: str, clock: Clock | None = None) -> None:
        self._url = url
        self._place = shown_url(url)
        self._clock = clock or SystemClock()

    @contextmanager
    def hold_source(self, *, while_running: bool = False) -> Iterator[None]:
        """See `TransferManager`. Holds the lock of the writers: their batches fail with 503."""
        session = self._open()
        try:
            with server_errors(self._place):
                nodes = [] if while_running else _living_nodes(session)
                if nodes:
                    raise MigrationRefused(
                        f"servers run on {self._place}: {', '.join(nodes)}",
                        hint="stop them first (pylonctl stop; one that was killed counts for "
                        "10 s), or move it while they run (--online)",
                    )
                session.conn.execute(f"SELECT pg_advisory_lock({lock_key(session, WRITER)})")
            yield
        finally:
            session.close()

    def open_source(self, manifest: Manifest, *, copy: bool = False) -> PostgresSource:
        """See `TransferManager`."""
        return PostgresSource(self._open().conn, self._place, manifest)

    def forget_copy(self) -> None:
        """See `TransferManager`."""

    def open_target(self, manifest: Manifest) -> PostgresTarget:
        """See `TransferManager`."""
        return PostgresTarget(self._open(), self._place, manifest, self._clock)

    def _open(self) -> BlockingSession:
        with server_errors(self._place):
            return open_session(self._url, "migration", "", self._clock, _SESSION)

    def list_servers(self) -> list[str]:
        """See `TransferManager`."""
        session = self._open()
        try:
            with server_errors(self._place):
                return _living_nodes(session)
        finally:
            session.close()


def _living_nodes(session: BlockingSession) -> list[str]:
    found = session.conn.execute("SELECT to_regclass('_pylon_nodes') IS NOT NULL").fetchone()
    if found is None or not found[0]:
        return []
    statement: Any = registry.LIVING
    return [str(name) for (name,) in session.conn.execute(statement)]
