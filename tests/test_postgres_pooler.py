"""PostgreSQL behind PgBouncer: session mode serves, a mode that shares sessions is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest

from pylon.clock import SystemClock
from pylon.errors import StartRefused
from pylon.policy.rules import compile_rules
from pylon.storage.postgres.backend import PostgresBackend
from pylon.storage.postgres.shared_sessions import refuse_shared_sessions
from tests.support.pooler import PROGRAM, pooled_database, pooler
from tests.support.postgres import PostgresServer
from tests.support.server import PylonServer
from tests.support.storage import MANIFEST
from tests.support.sync_client import SyncClient

pytestmark = pytest.mark.usefixtures("processes")

_WRITER = "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'pylon-writer/%'"


@pytest.fixture
def database(postgres_server: PostgresServer) -> Iterator[tuple[str, str]]:
    """The name of an empty database, and its URL without a pooler."""
    with pooled_database(postgres_server) as found:
        yield found


@pytest.mark.parametrize("mode", ["transaction", "statement"])
def test_a_pooler_that_shares_sessions_is_refused_by_a_start(
    program: Callable[[str, str], str], postgres_server: PostgresServer,
    database: tuple[str, str], mode: str,
) -> None:
    name, direct = database
    with pooler(program(PROGRAM, "pgbouncer"), postgres_server, name, mode) as url:
        for backend in (PostgresBackend(url), PostgresBackend(url, direct_url=direct)):
            with pytest.raises(StartRefused, match="transaction or statement mode is between"):
                backend.open_writer(MANIFEST, compile_rules(MANIFEST), SystemClock())


def test_without_a_pooler_no_second_connection_is_opened(database: tuple[str, str]) -> None:
    _, direct = database

    def open_other() -> psycopg.Connection[Any]:
        raise AssertionError("a second connection")

    with psycopg.connect(direct, autocommit=True) as conn:
        refuse_shared_sessions(conn, open_other, "DATABASE_URL")


def test_a_server_works_through_a_pooler_that_keeps_sessions(
    program: Callable[[str, str], str], postgres_server: PostgresServer,
    database: tuple[str, str], make_server: Callable[..., PylonServer],
) -> None:
    name, direct = database
    with pooler(program(PROGRAM, "pgbouncer"), postgres_server, name, "session") as url:
        server = make_server(
            DATABASE_URL=url, PYLON_SSE_WORKERS="0", PYLON_SHARD_WORKERS="0"
        ).start()
        token, user_id = server.guest()

        def insert(title: str) -> None:
            body = {"title": title, "ownerId": user_id, "shared": True}
            status, answer, _ = server.request("POST", "/api/entities/Note", body, token=token)
            assert status == 201, answer

        with SyncClient(server, "ws", token) as client:
            insert("before")
            with psycopg.connect(direct, autocommit=True) as conn:
                # More than one where the pooler has kept a connection of an earlier session.
                killed = conn.execute(_WRITER).fetchall()
                assert killed
                for row in killed:
                    conn.execute("SELECT pg_terminate_backend(%s)", row)
                insert("after")  # by another connection of the writer
                assert not set(killed) & set(conn.execute(_WRITER).fetchall())
            expected = server.rows("Note", token)
            assert sorted(row["title"] for row in expected.values()) == ["after", "before"]
            client.wait_rows({"Note": expected})
            assert client.problems == [] and client.resyncs == 0
        assert server.terminate() == 0, server.log()
