"""Point-in-time recovery: the recovered server is on a new timeline, and Pylon opens an epoch.

A real server archives its WAL by `cp`, loses its data directory, and is set back to a moment.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import psycopg
import pytest

from pylon.clock import SystemClock
from pylon.policy.rules import compile_rules
from pylon.storage.postgres.backend import PostgresBackend
from tests.support import stores
from tests.support.document_store import ok
from tests.support.postgres import PostgresServer, find_programs
from tests.support.storage import MANIFEST, apply, row_id, task
from tests.support.wait import wait_until


@pytest.fixture
def server() -> Iterator[PostgresServer]:
    """A server of this test's own."""
    found = find_programs()
    version = stores.wanted_version(found)
    if version is None:
        pytest.skip("PostgreSQL is not installed (make test-tools)")
    made = PostgresServer(found[version])
    yield made
    made.close()


def ask(server: PostgresServer, sql: str) -> Any:
    with psycopg.connect(server.url, autocommit=True) as conn:
        statement: Any = sql
        found = conn.execute(statement).fetchone()
        return None if found is None else found[0]


def open_engine(server: PostgresServer) -> Any:
    backend = PostgresBackend(server.url, is_dev=True)
    return backend.open_writer(MANIFEST, compile_rules(MANIFEST), SystemClock())


def test_recovery_to_a_moment_voids_the_cursors_of_what_was_lost(
    server: PostgresServer
) -> None:
    archive, base = server.folder / "archive", server.folder / "base"
    archive.mkdir()
    shutil.chown(archive, server.data.owner())
    server.stop("fast")
    subprocess.run(["cp", "-a", server.data, base], check=True)
    server.options = ("archive_mode=on", f"archive_command=cp %p {archive}/%f")
    server.start()
    with closing(open_engine(server)) as engine:
        ok(*apply(engine, task(1), task(2)))
        kept_head = engine.head
    with closing(open_engine(server)) as engine:
        assert engine.head == kept_head, "no epoch without a reason"
    moment = ask(server, "SELECT clock_timestamp()::text")
    with closing(open_engine(server)) as engine:
        ok(*apply(engine, task(3), task(4)))
        lost_head = engine.head
    archive_all(server)
    timeline = ask(server, "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)")
    server.stop("immediate")

    shutil.rmtree(server.data)
    subprocess.run(["cp", "-a", base, server.data], check=True)
    (server.data / "recovery.signal").touch()
    shutil.chown(server.data / "recovery.signal", server.data.owner())
    server.options = (
        f"restore_command=cp {archive}/%f %p", f"recovery_target_time={moment}",
        "recovery_target_action=promote",
    )
    server.start()
    wait_until("the server is promoted", lambda: ask(server, "SELECT pg_is_in_recovery()") is False)
    assert ask(server, "SELECT count(*) FROM \"Task\"") == 2
    assert ask(server, "SELECT substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)") > timeline

    backend = PostgresBackend(server.url, is_dev=True)
    with closing(open_engine(server)) as engine, \
            closing(backend.open_reader(MANIFEST)) as reader:
        ((void_from, first_seq),) = reader.void_ranges()
        assert void_from == kept_head, "a client that lost nothing goes on"
        assert void_from < lost_head < first_seq, "a client that has seen lost events resyncs"
        (made,) = apply(engine, task(5))
        assert made.seq > first_seq
        assert [event.row_id for event in reader.events_after(kept_head, 10)] == [row_id(5)]


def archive_all(server: PostgresServer) -> None:
    """Have the server archive all that was written."""
    name = ask(server, "SELECT pg_walfile_name(pg_switch_wal())")
    wait_until("the WAL is archived", lambda: ask(
        server, f"SELECT last_archived_wal >= '{name}' FROM pg_stat_archiver"
    ) is True)
