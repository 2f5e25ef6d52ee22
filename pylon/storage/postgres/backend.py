"""PostgreSQL backend: implements `pylon.storage.backend.Backend` for one database, which any number
of nodes share.

The database exists already; `provision` makes nothing, and a start brings its tables to the
manifest. Modules are imported when a process needs them: workers have no engine, and a writer no
pipe. Made by `pylon.storage.factory`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import psycopg
from psycopg import errors

from pylon import limits
from pylon.clock import Clock, RandomSource, SystemClock, SystemRandom
from pylon.database_url import shown_url
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.storage.backend import BareReads, Capabilities, ChangeSource
from pylon.storage.backups import BackupManager
from pylon.storage.interface import Reader, Store, WriteEngine
from pylon.storage.nodes import NodeFacts, NodeLink
from pylon.storage.postgres.connect import (
    RELAY_LIMITS,
    check_server,
    open_reader,
    open_session,
    translate,
    wait_for_server,
)
from pylon.storage.postgres.wire import BlockingSession
from pylon.storage.public_rows import public_store
from pylon.storage.schemas import SchemaManager
from pylon.storage.transfer import TransferManager

_CAPABILITIES: Final = Capabilities(own_writes_only=False, search=True)
_PACKAGE: Final = "pylon.storage.postgres"
_MS: Final = 1_000


class PostgresBackend:
    """See the module."""

    name = "postgresql"
    capabilities = _CAPABILITIES

    def __init__(
        self, url: str, *, direct_url: str | None = None, data_path: Path = Path(".pylon/app.db"),
        connections: int = 3, wait_s: float = 60.0, row_max_bytes: int = limits.BODY_BYTES,
        application: str = "", is_dev: bool = False,
    ) -> None:
        """
        Args:
            url: of the readers; may lead to a pooler (DATABASE_URL).
            direct_url: of the writer and the upkeep; None: `url` (PYLON_DATABASE_DIRECT_URL).
            data_path: files beside the data are named after it.
            connections: of a worker, for long reads.
            wait_s: how long a start waits for the server.
            row_max_bytes: of a row's JSON (PYLON_ROW_MAX_BYTES).
            application: the node, in the names of its connections.
            is_dev: a server without fsync will do.
        """
        self.url = url
        self.direct_url = direct_url or url
        self.data_path = data_path
        self.place = shown_url(url)
        self.application = application
        # The name of this node's writer in notifications, so that the node's own relay does
        # not read back what the writer hands over.
        self.writer_id = SystemRandom().token_hex(8)
        self._connections = connections
        self._wait_s = wait_s
        self._row_max_bytes = row_max_bytes
        self._is_dev = is_dev

    @cached_property
    def engine_version(self) -> str:
        """The version of the server; without a connection that of the client library."""
        try:
            session = open_session(self.direct_url, "plain", self.application, SystemClock())
        except psycopg.Error:
            return f"libpq {psycopg.pq.version()}"
        try:
            value = session.execute("SHOW server_version").get_value(0, 0) or b""
        finally:
            session.close()
        return value.decode()

    @cached_property
    def schema(self) -> SchemaManager:
        """See `Backend`."""
        manager: SchemaManager = _load("schema.manager").PostgresSchema(self.direct_url)
        return manager

    @cached_property
    def backups(self) -> BackupManager:
        """See `Backend`."""
        manager: BackupManager = _load("backup.manager").PostgresBackups(self.direct_url)
        return manager

    @cached_property
    def transfer(self) -> TransferManager:
        """See `Backend`."""
        manager: TransferManager = _load("transfer.manager").PostgresTransfer(self.direct_url)
        return manager

    def exists(self) -> bool:
        """See `Backend`. A database without Pylon's tables does not count."""
        try:
            session = open_session(self.direct_url, "plain", self.application, SystemClock())
        except psycopg.Error:
            return False
        try:
            found = session.execute("SELECT to_regclass('_pylon_meta') IS NOT NULL")
            return found.get_value(0, 0) == b"t"
        finally:
            session.close()

    @contextmanager
    def provision(self) -> Iterator[PostgresBackend]:
        """See `Backend`. The place of the data is the database, which is there."""
        yield self

    def worker_settings(self) -> Mapping[str, str]:
        """See `Backend`. A worker has the environment of its supervisor, the URL among it."""
        return {"PYLON_DB_PATH": str(self.data_path)}

    def open_writer(self, manifest: Manifest, rules: RuleSet, clock: Clock) -> WriteEngine:
        """See `Backend`. What the readers connect to is checked too, where it is another URL."""
        if self.url != self.direct_url:
            wait_for_server(self._check_readers, self.url, self._wait_s, SystemClock())
        engine: WriteEngine = _load("engine").PostgresEngine.open(
            self.direct_url, manifest, rules, clock, node=self.application,
            writer_id=self.writer_id, wait_s=self._wait_s,
            row_max_bytes=self._row_max_bytes, is_dev=self._is_dev,
        )
        return engine

    def capture_log(self, clock: Clock, random: RandomSource, interval_s: float) -> None:
        """See `Backend`."""

    def open_reader(self, manifest: Manifest) -> Reader:
        """See `Backend`."""
        clock = SystemClock()
        session = open_reader(
            self.url, self.application, clock, round(limits.READ_TIMEOUT_S * _MS)
        )
        reader: Reader = _load("reader").PostgresReader(session, manifest, clock)
        return reader

    def open_readers(self, manifest: Manifest, clock: Clock) -> Store:
        """See `Backend`."""
        store: Store = _load("store").PostgresStore(
            self.url, manifest, clock, connections=self._connections, node=self.application
        )
        return public_store(store, manifest)

    def open_bare_reads(self) -> BareReads:
        """See `Backend`."""
        reads: BareReads = _load("bare_reads").PostgresBareReads(self.url)
        return reads

    def changes(self, clock: Clock, random: RandomSource, poll_s: float) -> ChangeSource:
        """See `Backend`."""
        source: ChangeSource = _load("relay").PostgresChanges(
            lambda: open_session(
                self.direct_url, "relay", self.application, clock, RELAY_LIMITS, writes=False
            ),
            self.writer_id, clock, random, poll_s,
        )
        return source

    def nodes(self, facts: NodeFacts, clock: Clock, random: RandomSource) -> NodeLink:
        """See `Backend`."""
        link: NodeLink = _load("node_link").PostgresNodes(
            lambda: open_session(
                self.direct_url, "upkeep", self.application, clock, RELAY_LIMITS
            ),
            facts, clock, random,
        )
        return link

    def running_nodes(self) -> list[str]:
        """See `Backend`."""
        registry = _load("registry")
        try:
            session = open_session(self.direct_url, "plain", self.application, SystemClock())
            try:
                found = session.execute(*registry.others(NodeFacts("", "", (), "")))
            finally:
                session.close()
        except errors.UndefinedTable:
            return []  # no node has ever started
        except psycopg.Error as error:
            raise translate(error) from error
        return [facts.name for facts in registry.read_others(found)]

    def key_probe(self) -> str | None:
        """See `Backend`."""
        with self._plain_session() as session:
            probe: str | None = _load("key_probe").read_probe(session)
            return probe

    def put_key_probe(self, probe: str, before: str | None) -> str | None:
        """See `Backend`."""
        with self._plain_session() as session:
            stored: str | None = _load("key_probe").replace_probe(session, probe, before)
            return stored

    def _check_readers(self) -> None:
        with closing(open_session(
            self.url, "plain", self.application, SystemClock(), writes=False, is_first=True
        )) as session:
            check_server(session, self.url, is_dev=self._is_dev)

    @contextmanager
    def _plain_session(self) -> Iterator[BlockingSession]:
        """Open a session for the block, and convert the errors of psycopg."""
        try:
            with closing(
                open_session(self.direct_url, "plain", self.application, SystemClock())
            ) as session:
                yield session
        except psycopg.Error as error:
            raise translate(error) from error

    def sync(self) -> None:
        """See `Backend`. The server keeps what it has acknowledged."""


def _load(module: str) -> Any:
    """Import a module of this package that only some processes need."""
    return import_module(f"{_PACKAGE}.{module}")
