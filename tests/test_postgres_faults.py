"""Faults between a writer and a PostgreSQL server: every reply is true, and the writer goes on.

The faults are real: ended connections, a proxy that loses an answer, a server that is stopped, a
holder of the lock that stands still.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest

from pylon.clock import SystemClock
from pylon.errors import StartDelayed, StartRefused
from pylon.policy.rules import compile_rules
from pylon.storage.ops import OpKey, PutSession
from pylon.storage.postgres import batch, connect, failures
from pylon.storage.postgres.engine import PostgresEngine
from tests.support.postgres import PostgresServer, make_schema
from tests.support.storage import MANIFEST, row_id, task, update
from tests.support.two_writers import Writers
from tests.support.wait import wait_until


@pytest.fixture
def writers(postgres_url: str) -> Iterator[Writers]:
    made = Writers(postgres_url)
    yield made
    made.close()


# --- Lost connections ----------------------------------------------------------------------------


def test_connection_that_ended_between_two_batches_costs_no_write(writers: Writers) -> None:
    writers.apply(writers.a, task(1))
    writers.end_connection(writers.a)
    codes = writers.codes(writers.a, task(2), update("Task", 1, {"rank": 2}))
    assert codes == [None, None] and len(writers.events()) == 3


@pytest.mark.parametrize("is_update", [False, True])
def test_connection_that_is_lost_before_the_commit(writers: Writers, is_update: bool) -> None:
    writers.apply(writers.a, task(1))
    op = update("Task", 1, {"rank": 9}) if is_update else task(2)
    with writers.overtaken(writers.a, op, task(3)) as batch:
        writers.end_connection(writers.a)
    assert batch.codes == [None, None]
    assert len(writers.events()) == 3 and writers.a.head == 3


# Messages of the protocol: ReadyForQuery, and the ErrorResponse of an administrator's command.
_READY = b"Z\0\0\0\5I"
_FIELDS = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection\0\0"
_SHUTDOWN = b"E" + (len(_FIELDS) + 4).to_bytes(4, "big") + _FIELDS
_END_S = 0.1


class Proxy:
    """A Unix socket before a server's. `loses_answers`: nothing of the server's reaches the client;
    `refuses`: a new connection is closed at once; `ends_after_commit`: the server seems to end the
    connection behind its answer to the next COMMIT."""

    def __init__(self, folder: Path, server: Path) -> None:
        self._server = str(server / ".s.PGSQL.5432")
        self.url = f"postgresql://pylon@/postgres?host={quote(str(folder), safe='')}"
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(folder / ".s.PGSQL.5432"))
        self._listener.listen()
        self.loses_answers = threading.Event()
        self.refuses = threading.Event()
        self.ends_after_commit = threading.Event()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self.refuses.is_set():
                client.close()
                continue
            server = socket.socket(socket.AF_UNIX)
            server.connect(self._server)
            self._pairs.append((client, server))
            for source, target, is_answer in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pump, args=(source, target, is_answer), daemon=True
                ).start()

    def _pump(self, source: socket.socket, target: socket.socket, is_answer: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                if is_answer and self.ends_after_commit.is_set() and b"COMMIT\0" in data:
                    self.ends_after_commit.clear()
                    target.sendall(data.removesuffix(_READY) + _SHUTDOWN)
                    time.sleep(_END_S)  # libpq has the message before it sees the end
                    break
                if not (is_answer and self.loses_answers.is_set()):
                    target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """End all connections."""
        pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()


@pytest.fixture
def proxy(tmp_path: Path, postgres_server: PostgresServer) -> Iterator[Proxy]:
    folder = Path("/tmp") / f"pg-proxy-{tmp_path.parent.parent.name[-8:]}-{tmp_path.name[:20]}"
    folder.mkdir(exist_ok=True)
    made = Proxy(folder, postgres_server.folder)
    yield made
    made.close()
    (folder / ".s.PGSQL.5432").unlink()
    folder.rmdir()


def open_through(proxy: Proxy, url: str) -> PostgresEngine:
    place = proxy.url + "&options=" + url.partition("options=")[2]
    return PostgresEngine.open(
        place, MANIFEST, compile_rules(MANIFEST), SystemClock(), node="far", wait_s=5.0,
        is_dev=True,
    )


def test_connection_that_ends_behind_the_commit_costs_no_write(
    writers: Writers, proxy: Proxy
) -> None:
    engine = open_through(proxy, writers.url)
    writers.apply(engine, task(1))
    proxy.ends_after_commit.set()
    assert writers.codes(engine, task(2), task(3)) == [None, None]
    assert not proxy.ends_after_commit.is_set()
    assert writers.codes(engine, task(4)) == [None]
    assert len(writers.events()) == 4
    engine.close()



def test_commit_whose_answer_was_lost_is_acknowledged_once(
    writers: Writers, proxy: Proxy
) -> None:
    engine = open_through(proxy, writers.url)
    writers.apply(engine, task(1))
    proxy.loses_answers.set()
    results: list[Any] = []
    batch = (task(2), update("Task", 1, {"rank": 3}), task(3, op="x"))
    # The reads ahead of an update would be lost too, so the batch without one comes first.
    thread = threading.Thread(
        target=lambda: results.extend(writers.apply(engine, task(7), task(8)))
    )
    thread.start()
    wait_until("the server commits", lambda: writers.row("Task", row_id(8)))
    proxy.loses_answers.clear()
    proxy.cut()
    thread.join(30)
    assert [(r.error, r.seq) for r in results] == [(None, 2), (None, 3)]
    assert engine.head == 3 and [e.seq for e in writers.events()] == [1, 2, 3]
    assert writers.codes(engine, *batch) == [None] * 3
    assert [e.seq for e in writers.events()] == [1, 2, 3, 4, 5, 6]
    engine.close()


def test_outcome_that_nobody_can_tell_is_said_to_be_unknown(
    writers: Writers, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "SETTLE_S", 1.0)
    engine = open_through(proxy, writers.url)
    writers.apply(engine, task(9))
    proxy.loses_answers.set()
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.extend(writers.apply(engine, task(1))))
    thread.start()
    wait_until("the server commits", lambda: writers.row("Task", row_id(1)))
    proxy.refuses.set()
    proxy.cut()
    thread.join(30)
    assert [r.error.code for r in results] == ["OUTCOME_UNKNOWN"]
    assert not results[0].error.to_exception().retryable
    problem = engine.maintenance.find_problem()
    assert problem is not None and problem.reason == "database_unreachable"
    proxy.refuses.clear()
    proxy.loses_answers.clear()
    wait_until("the writer is back", lambda: writers.codes(engine, task(2)) == [None])
    assert engine.maintenance.find_problem() is None
    engine.close()


def test_batch_without_events_is_repeated(writers: Writers) -> None:
    with writers.overtaken(writers.a, PutSession("s", "ada", False, 1, 0, "")) as batch:
        writers.end_connection(writers.a)
    assert batch.codes == [None]
    assert writers.one("SELECT count(*) FROM _pylon_auth_sessions") == 1


# --- A server that is away -----------------------------------------------------------------------


def test_database_that_is_away_refuses_writes_until_it_is_back(
    postgres_server: PostgresServer
) -> None:
    server = PostgresServer(postgres_server.programs)
    try:
        writers = Writers(make_schema(server.url))
        writers.apply(writers.a, task(1))
        server.stop("immediate")
        result = writers.commit(writers.a, task(2))
        assert [r.error and r.error.code for r in result.replies] in (
            ["STORE_UNAVAILABLE"], ["OUTCOME_UNKNOWN"],
        )
        result = writers.commit(writers.a, task(2))
        assert [r.error and r.error.code for r in result.replies] == ["STORE_UNAVAILABLE"]
        assert result.refusal is not None and result.refusal.reason == "unavailable"
        problem = writers.a.maintenance.find_problem()
        assert problem is not None and problem.reason == "database_unreachable"
        server.start()
        wait_until("the writer is back", lambda: writers.codes(writers.a, task(3)) == [None])
        writers.sql = psycopg.connect(writers.url, autocommit=True)
        assert [e.row_id for e in writers.events()] == [row_id(1), row_id(3)]
        assert writers.codes(writers.b, task(4)) in ([None], ["STORE_UNAVAILABLE"])
        writers.close()
    finally:
        server.close()


def test_start_waits_for_a_server_and_then_gives_up(tmp_path: Path) -> None:
    url = f"postgresql://pylon@/postgres?host={quote(str(tmp_path), safe='')}"
    with pytest.raises(StartDelayed, match=r"did not answer within 0\.3 s"):
        PostgresEngine.open(
            url, MANIFEST, compile_rules(MANIFEST), SystemClock(), wait_s=0.3
        )


def test_start_is_refused_where_a_later_one_would_be_too(postgres_url: str) -> None:
    place = postgres_url.replace("/postgres?", "/missing?")
    with pytest.raises(StartRefused, match="does not exist"):
        PostgresEngine.open(
            place, MANIFEST, compile_rules(MANIFEST), SystemClock(), wait_s=60.0
        )


def test_unsafe_server_is_refused_outside_of_dev(postgres_server: PostgresServer) -> None:
    server = PostgresServer(postgres_server.programs, None, "fsync=off")
    try:
        session = connect.open_session(server.url, "test", "", SystemClock())
        with pytest.raises(StartRefused, match="fsync=off"):
            connect.check_server(session, server.url)
        assert connect.check_server(session, server.url, is_dev=True) >= connect.LOWEST_VERSION
        session.execute_script("CREATE DATABASE ascii ENCODING 'SQL_ASCII' LC_COLLATE 'C' "
                               "LC_CTYPE 'C' TEMPLATE template0")
        session.close()
        other = server.url.replace("/postgres?", "/ascii?")
        session = connect.open_session(other, "test", "", SystemClock())
        with pytest.raises(StartRefused, match="SQL_ASCII"):
            connect.check_server(session, other, is_dev=True)
        session.close()
    finally:
        server.close()


def test_commits_are_durable_whatever_the_servers_default(postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as conn:
        assert conn.execute("SELECT current_setting('synchronous_commit')").fetchone() == ("on",)
    loose = postgres_url.replace("options=", "options=-csynchronous_commit%3Doff%20")
    session = connect.open_writer(loose, "x", SystemClock())
    found = session.execute("SELECT current_setting('synchronous_commit'), "
                            "current_setting('application_name')")
    assert (found.get_value(0, 0), found.get_value(0, 1)) == (b"on", b"pylon-writer/x")
    session.close()


# --- A writer that stands still with the lock -----------------------------------------------------


def test_frozen_holder_of_the_lock_is_ended(writers: Writers) -> None:
    frozen = psycopg.connect(writers.url, autocommit=True, application_name="pylon-writer/frozen")
    frozen.execute("BEGIN")
    frozen.execute("SELECT pg_advisory_xact_lock(%s)", (writers.key,))
    assert writers.codes(writers.a, task(1)) == [None]
    with pytest.raises(psycopg.OperationalError):
        frozen.execute("SELECT 1")
    frozen.close()


def test_holder_that_is_no_writer_is_left_alone(
    writers: Writers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "LOCK_WAIT_S", 1.5)
    other = psycopg.connect(writers.url, autocommit=True, application_name="psql")
    other.execute("BEGIN")
    other.execute("SELECT pg_advisory_xact_lock(%s)", (writers.key,))
    result = writers.commit(writers.a, task(1))
    assert [r.error and r.error.code for r in result.replies] == ["STORE_UNAVAILABLE"]
    assert result.refusal is not None and result.refusal.reason == "busy"
    other.execute("COMMIT")
    other.close()
    assert writers.codes(writers.a, task(1)) == [None]


# --- Epochs --------------------------------------------------------------------------------------


def test_another_history_of_the_server_opens_an_epoch(writers: Writers) -> None:
    writers.apply(writers.a, task(1), task(2))
    known = writers.one("SELECT value FROM _pylon_meta WHERE key = 'history_id'")
    assert known.count("/") == 1 and writers.one("SELECT count(*) FROM _pylon_epochs") == 0
    writers.sql.execute("UPDATE _pylon_meta SET value = '1/00000009' WHERE key = 'history_id'")
    writers.end_connection(writers.a)
    wait_until("the writer is back", lambda: writers.codes(writers.a, task(3)) == [None])
    epochs = writers.sql.execute("SELECT void_from, first_seq FROM _pylon_epochs").fetchall()
    assert [low for low, _ in epochs] == [2]
    assert writers.events()[-1].seq == epochs[0][1] + 1 == writers.a.head
    assert writers.one("SELECT value FROM _pylon_meta WHERE key = 'history_id'") == known
    (reply,) = writers.apply(writers.b, task(4))
    assert reply.seq == epochs[0][1] + 2


def test_head_below_an_acknowledged_seq_opens_an_epoch(writers: Writers) -> None:
    writers.apply(writers.a, task(1), task(2), task(3))
    writers.sql.execute("DELETE FROM _pylon_change_log WHERE seq > 1")  # a lost tail
    writers.end_connection(writers.a)
    wait_until("the writer is back", lambda: writers.codes(writers.a, task(4)) == [None])
    assert writers.one("SELECT void_from FROM _pylon_epochs") == 1


def test_first_connection_opens_no_epoch(postgres_url: str) -> None:
    writers = Writers(postgres_url)
    writers.close()
    writers = Writers(postgres_url)
    assert writers.one("SELECT count(*) FROM _pylon_epochs") == 0
    writers.close()


def test_key_of_a_lost_batch_is_good_for_a_repetition(writers: Writers) -> None:
    keyed = task(1, op="k")
    with writers.overtaken(writers.a, keyed) as batch:
        writers.end_connection(writers.a)
    assert batch.codes == [None]
    (again,) = writers.apply(writers.b, keyed)
    assert again.replayed and again.seq == batch.result.replies[0].seq
    assert keyed.op == OpKey("", "k")
