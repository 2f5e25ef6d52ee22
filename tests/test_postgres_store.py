"""The readers of a worker on PostgreSQL (`pylon.storage.postgres.store`), with a real server: which
connection serves which read, what an outage does, and how long a process waits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import gevent
import orjson
import psycopg
import pytest

from pylon import limits
from pylon.clock import ManualClock, SystemClock
from pylon.errors import QueryTimeout, StoreUnavailable
from pylon.storage.interface import Reader
from pylon.storage.postgres.reader import PostgresReader
from pylon.storage.postgres.schema.apply import prepare_store
from pylon.storage.postgres.store import PostgresStore
from pylon.storage.postgres.wire import BlockingSession
from tests.support.postgres import PostgresServer
from tests.support.storage import MANIFEST, row_id
from tests.support.wait import run_greenlets_until

ROWS = 200
APPLICATION = "thousand"  # other tests may have readers on the same server


def fill(url: str) -> None:
    """Make the tables of the manifest, with notes in them."""
    session = BlockingSession(psycopg.connect(url, autocommit=True))
    prepare_store(session, MANIFEST, ManualClock())
    session.pipeline([
        ('INSERT INTO "Note" ("id", "text", "_seq", "_json") VALUES ($1, $2, $3, $4)', (
            row_id(number), f"t{number}", number,
            orjson.dumps({"id": row_id(number), "text": f"t{number}"}),
        ))
        for number in range(1, ROWS + 1)
    ])
    session.close()


@pytest.fixture
def store(postgres_url: str) -> Iterator[PostgresStore]:
    fill(postgres_url)
    made = PostgresStore(postgres_url, MANIFEST, SystemClock(), node=APPLICATION)
    yield made
    made.close()


def get(number: int) -> Callable[[Reader], object]:
    def read(reader: Reader) -> object:
        row = reader.get("Note", row_id(number))
        return None if row is None else orjson.loads(row)["text"]

    return read


def slow(reader: Reader) -> None:
    """A read that the tests make slow: `pg_sleep` as a reader's statement would be."""
    assert isinstance(reader, PostgresReader)
    reader._run("SELECT pg_sleep($1)", (1.3,))


@pytest.fixture
def server_store(postgres_server: PostgresServer) -> Iterator[PostgresStore]:
    """A store in the server's own schema, which survives a restart of the server."""
    session = BlockingSession(psycopg.connect(postgres_server.url, autocommit=True))
    session.execute_script("CREATE SCHEMA outage")
    url = f"{postgres_server.url}&options=-csearch_path%3Doutage"
    fill(url)
    made = PostgresStore(url, MANIFEST, SystemClock())
    yield made
    made.close()
    session.close()
    with psycopg.connect(postgres_server.url, autocommit=True) as conn:
        conn.execute("DROP SCHEMA outage CASCADE")


def wait_served(store: PostgresStore) -> None:
    with gevent.Timeout(30):
        while True:
            try:
                assert store.point(get(1)) == "t1"
            except StoreUnavailable:
                gevent.sleep(0.05)
            else:
                return


def test_a_thousand_greenlets_read_rows_over_two_connections(
    store: PostgresStore, postgres_url: str
) -> None:
    jobs = [
        gevent.spawn(store.point, get(number % ROWS + 1)) for number in range(1_000)
    ]
    with gevent.Timeout(60):
        gevent.joinall(jobs, raise_error=True)
    assert [job.value for job in jobs] == [f"t{number % ROWS + 1}" for number in range(1_000)]
    with psycopg.connect(postgres_url) as conn:
        found = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
            (f"pylon-reader/{APPLICATION}",),
        ).fetchone()
    assert found == (1,)


def test_a_read_of_one_commit_runs_on_a_connection_of_its_own(store: PostgresStore) -> None:
    def read(reader: Reader) -> tuple[object, int]:
        return reader.at_one_commit(lambda: (get(3)(reader), reader.head_seq()))

    assert store.point(read)[0] == "t3"
    jobs = [gevent.spawn(store.point, read) for _ in range(20)]
    with gevent.Timeout(30):
        gevent.joinall(jobs, raise_error=True)
    assert {job.value[0] for job in jobs} == {"t3"}


def test_a_slow_read_ends_on_a_scanner_and_delays_the_others_once(store: PostgresStore) -> None:
    assert store.point(slow) is None  # begun on the pipe, ended by its limit, run again
    began_s = time.monotonic()
    job = gevent.spawn(store.point, slow)
    gevent.sleep(0)
    assert store.point(get(5)) == "t5"
    assert time.monotonic() - began_s < 0.5
    job.get(timeout=20)


def nap(seconds: float) -> Callable[[Reader], None]:
    def read(reader: Reader) -> None:
        assert isinstance(reader, PostgresReader)
        reader._run(f"SELECT pg_sleep({seconds})")

    return read


def backend_of(reader: Reader) -> bytes:
    assert isinstance(reader, PostgresReader)
    return reader._run("SELECT pg_backend_pid()").get_value(0, 0) or b""


def wait_short(store: PostgresStore) -> bytes:
    """Wait until scans share a connection; its process in the server."""
    with gevent.Timeout(30):
        while store.scan(backend_of) != store.scan(backend_of) or store.scan(
            lambda reader: isinstance(reader._session, BlockingSession)  # type: ignore[attr-defined]
        ):
            gevent.sleep(0.02)
    return store.scan(backend_of)


def test_short_scans_share_a_connection_that_is_not_that_of_point_reads(
    store: PostgresStore,
) -> None:
    shared = wait_short(store)
    jobs = [gevent.spawn(store.scan, backend_of, caller=f"c{number}") for number in range(100)]
    with gevent.Timeout(30):
        gevent.joinall(jobs, raise_error=True)
    assert {job.value for job in jobs} == {shared}
    assert store.point(backend_of) != shared


def test_a_long_scan_moves_to_a_scanner_with_the_next_ones_of_its_caller(
    store: PostgresStore,
) -> None:
    shared = wait_short(store)
    assert store.scan(nap(0.2), caller="slow") is None  # ended on the pipe, run on a scanner
    assert store.scan(backend_of, caller="slow") != shared
    assert store.scan(backend_of, caller="other") == shared
    began_s = time.monotonic()
    job = gevent.spawn(store.scan, nap(0.2), caller="other")  # the same text: at once on a scanner
    gevent.sleep(0)
    assert store.scan(backend_of, caller="third") == shared
    assert time.monotonic() - began_s < 0.2
    job.get(timeout=20)


def test_a_scan_that_is_hard_to_interrupt_begins_on_a_scanner(store: PostgresStore) -> None:
    shared = wait_short(store)
    assert store.scan(backend_of, inline=False) != shared


def test_a_scan_is_ended_by_its_limit(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 0.2)
    monkeypatch.setattr(limits, "SHORT_SCAN_S", 0.05)
    fill(postgres_url)
    store = PostgresStore(postgres_url, MANIFEST, SystemClock())
    with pytest.raises(QueryTimeout):
        store.scan(slow)
    assert store.scan(get(7)) == "t7"
    store.close()


def test_an_inline_read_switches_no_greenlet(store: PostgresStore) -> None:
    ran: list[str] = []
    other = gevent.spawn(ran.append, "other")
    assert store.point_inline(get(2)) == "t2"
    answers: list[object] = []
    gevent.get_hub().loop.run_callback(lambda: answers.append(store.point_inline(get(4))))
    assert ran == []
    other.join()
    gevent.sleep(0)
    assert answers == ["t4"]


def test_inline_reads_wait_only_so_long_and_then_fail_at_once(
    postgres_server: PostgresServer, server_store: PostgresStore
) -> None:
    assert server_store.point_inline(get(2)) == "t2"
    gevent.sleep(1.1)
    with postgres_server.frozen():
        began_s = time.monotonic()
        for _ in range(50):
            with pytest.raises(StoreUnavailable):
                server_store.point_inline(get(2))
        assert time.monotonic() - began_s < 2 * limits.INLINE_READ_TIMEOUT_S
    with gevent.Timeout(30):
        while True:
            try:
                assert server_store.point_inline(get(2)) == "t2"
                break
            except StoreUnavailable:
                gevent.sleep(0.05)


def test_an_outage_fails_reads_at_once_and_ends_by_itself(
    postgres_server: PostgresServer, server_store: PostgresStore
) -> None:
    assert server_store.scan(get(1)) == "t1"
    assert server_store.point_inline(get(1)) == "t1"
    postgres_server.stop("immediate")
    try:
        began_s = time.monotonic()
        for read in (server_store.point, server_store.scan, server_store.point_inline) * 3:
            with pytest.raises(StoreUnavailable):
                read(get(1))  # type: ignore[operator]
        assert time.monotonic() - began_s < 2
    finally:
        postgres_server.start()
    wait_served(server_store)
    assert server_store.scan(get(1)) == "t1"


def test_a_server_that_hangs_stops_no_other_greenlet(
    postgres_server: PostgresServer, server_store: PostgresStore
) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    server_store.scan(get(1))  # connecting waits in psycopg, which gevent patches in workers only
    ticker = gevent.spawn(tick)
    with postgres_server.frozen():
        jobs = [gevent.spawn(server_store.point, get(1)) for _ in range(100)]
        jobs.append(gevent.spawn(server_store.scan, get(1)))
        run_greenlets_until("the loop turns", lambda: ticks > 25)
        assert not any(job.ready() for job in jobs)
    with gevent.Timeout(30):
        gevent.joinall(jobs, raise_error=True)
    ticker.kill()


def test_a_store_without_a_server_is_unavailable() -> None:
    with pytest.raises(StoreUnavailable):
        PostgresStore("postgresql://nobody@127.0.0.1:1/none", MANIFEST, SystemClock())


PATCHED_LATE = """
import psycopg
from gevent import monkey
monkey.patch_all()
from pylon.storage.postgres.store import check_patches
check_patches()
"""


@pytest.mark.usefixtures("processes")
def test_a_worker_refuses_a_driver_that_was_imported_before_the_patch() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PATCHED_LATE], capture_output=True, text=True, timeout=60
    )
    assert "psycopg was imported before gevent's patch" in done.stderr
    early = PATCHED_LATE.replace("import psycopg\n", "", 1)
    assert subprocess.run([sys.executable, "-c", early], timeout=60).returncode == 0
