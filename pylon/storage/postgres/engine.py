"""PostgreSQL write engine: executes the batches of one node on the database that all nodes share.

`pylon.storage.core.engine` executes the batches on a `PostgresTransaction`. The upkeep has a
connection of its own, since the server has no single writer that it would have to wait for.

Made by `backend`. Called by the supervisor's writer thread, by the bench and by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import psycopg

from pylon import limits
from pylon.clock import Clock, SystemClock
from pylon.errors import StartRefused
from pylon.manifest.model import Manifest
from pylon.policy.rules import RuleSet
from pylon.query.predicate import Predicate
from pylon.storage.core.engine import BatchEngine
from pylon.storage.ops import WriteRequest
from pylon.storage.postgres.connect import (
    check_server,
    error_text,
    open_session,
    wait_for_server,
)
from pylon.storage.postgres.dialect import dialect_of, numbered
from pylon.storage.postgres.maintenance import PostgresMaintenance
from pylon.storage.postgres.parameters import Parameter
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.transaction import PostgresTransaction
from pylon.storage.postgres.writer_session import WriterSession
from pylon.storage.records import BatchResult
from pylon.storage.sql.compiler import CompiledCache, PredicateCompiler


class PostgresEngine:
    """`pylon.storage.interface.WriteEngine` of one node. `maintenance`: the upkeep of the store."""

    def __init__(
        self, writer: WriterSession, batches: BatchEngine, maintenance: PostgresMaintenance
    ) -> None:
        """Used by `open`."""
        self._writer = writer
        self._batches = batches
        self.maintenance = maintenance

    @classmethod
    def open(
        cls,
        url: str,
        manifest: Manifest,
        rules: RuleSet,
        clock: Clock,
        *,
        node: str = "",
        writer_id: str = "",
        wait_s: float = 60.0,
        row_max_bytes: int = limits.BODY_BYTES,
        is_dev: bool = False,
        waits: Clock | None = None,
    ) -> PostgresEngine:
        """Connect, bring the schema to the manifest and note the server's history.

        Args:
            node: in the names of the connections.
            writer_id: of the notifications.
            wait_s: how long to wait for the server.
            row_max_bytes: of a row's JSON (PYLON_ROW_MAX_BYTES).
            is_dev: a server without fsync will do.
            waits: the clock of time limits; None: the machine's.

        Raises:
            SchemaRefused: the schema cannot be reached by additive steps.
            StartRefused: the server cannot be used. StartDelayed: it may work later.
        """
        waits = waits or SystemClock()

        def prepare() -> dict[str, dict[str, object]]:
            session = open_session(url, "schema", node, waits, is_first=True)
            try:
                check_server(session, url, is_dev=is_dev)
                return prepare_store(session, manifest, clock).retained_columns
            finally:
                session.close()

        retained = wait_for_server(prepare, url, wait_s, waits)
        writer = WriterSession(url, node, waits, is_dev=is_dev)
        try:
            writer.connect()
            transaction = PostgresTransaction(
                writer, manifest, clock, writer_id, retained, _where_compiler(manifest), waits=waits
            )
            batches = BatchEngine(transaction, manifest, rules, clock, row_max_bytes)
        except psycopg.Error as error:
            writer.close()
            raise StartRefused(f"the database cannot be used: {error_text(error)}") from error
        except BaseException:
            writer.close()
            raise
        maintenance = PostgresMaintenance(url, node, writer, writer_id, manifest, clock, waits)
        return cls(writer, batches, maintenance)

    @property
    def head(self) -> int:
        """See `WriteEngine`."""
        return self._batches.head

    def apply(
        self, requests: Sequence[WriteRequest], *, large_bytes: int | None = None
    ) -> BatchResult:
        """See `WriteEngine`."""
        return self._batches.apply(requests, large_bytes=large_bytes)

    def close(self) -> None:
        """See `WriteEngine`."""
        self.maintenance.close()
        self._writer.close()


def _where_compiler(
    manifest: Manifest,
) -> Callable[[str, Predicate], tuple[str, Sequence[Parameter]]]:
    """Return what makes the text and the parameters of a condition of an entity."""
    cache, dialect = CompiledCache(), dialect_of(manifest)
    compilers = {
        entity.name: PredicateCompiler(dialect, entity, cache) for entity in manifest.entities
    }

    def compile_where(entity: str, where: Predicate) -> tuple[str, Sequence[Parameter]]:
        clause = compilers[entity].compile(where)
        parameters: Any = clause.params
        return numbered(clause.sql), parameters

    return compile_where
