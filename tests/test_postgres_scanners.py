"""The scanners of a worker (`pylon.storage.postgres.scanners`), on a real server. Here a scan's
reader is the session itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gevent
import psycopg
import pytest

from pylon import limits
from pylon.clock import ManualClock, SystemClock
from pylon.errors import QueryTimeout, StoreUnavailable
from pylon.storage.postgres.connect import Limits, open_session, translate
from pylon.storage.postgres.scanners import Scanners, wait_in_loop
from pylon.storage.postgres.wire import BlockingSession
from tests.support.postgres import PostgresServer, count_running
from tests.support.wait import run_greenlets_until

HOLD = "SELECT pg_sleep(4)"  # below the limit of a statement; ended before by a kill


def connect(url: str, timeout_s: float = 10.0) -> BlockingSession:
    try:
        return open_session(
            url, "reader", node_of(url), SystemClock(), Limits(statement_ms=5_000), writes=False,
            timeout_s=timeout_s, wait=wait_in_loop,
        )
    except psycopg.Error as error:
        raise translate(error) from error


def node_of(url: str) -> str:
    """A node's name for the connections of one test: that of its schema."""
    return url.rpartition("%3D")[2][-20:].replace("_", "-")


def make_scanners(url: str, connections: int = 3, clock: Any = None) -> Scanners:
    def reader(session: BlockingSession) -> Any:
        return session

    return Scanners(partial(connect, url), reader, clock or SystemClock(), connections)


@pytest.fixture
def scanners(postgres_url: str) -> Iterator[Scanners]:
    made = make_scanners(postgres_url)
    yield made
    made.close()


def run(text: str) -> Callable[[Any], bytes | None]:
    """A read of one value, with the errors of a reader."""

    def read(session: BlockingSession) -> bytes | None:
        try:
            return session.execute(text).get_value(0, 0)
        except psycopg.Error as error:
            raise translate(error) from error

    return read


def count_connections(url: str) -> int:
    with psycopg.connect(url) as conn:
        found = conn.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = %s",
            (f"pylon-reader/{node_of(url)}",),
        ).fetchone()
    assert found is not None
    return int(found[0])


def test_other_greenlets_run_during_a_scan(scanners: Scanners) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    ticker = gevent.spawn(tick)
    scanners.scan(run("SELECT pg_sleep(0.3)"), "a")
    ticker.kill()
    assert ticks > 10


def test_a_scanner_is_opened_when_no_other_is_free(scanners: Scanners, postgres_url: str) -> None:
    assert count_connections(postgres_url) == 0
    for _ in range(3):
        assert scanners.scan(run("SELECT 1"), "a") == b"1"
    assert count_connections(postgres_url) == 1
    jobs = [gevent.spawn(scanners.scan, run("SELECT pg_sleep(0.3)"), name) for name in "abcdef"]
    run_greenlets_until("three scans run", lambda: count_connections(postgres_url) == 3)
    gevent.joinall(jobs, timeout=20)
    assert all(job.successful() for job in jobs)
    assert count_connections(postgres_url) == 3


def test_one_caller_leaves_a_scanner_to_the_others(
    scanners: Scanners, postgres_url: str
) -> None:
    greedy = [gevent.spawn(scanners.scan, run(f"{HOLD} -- greedy"), "greedy") for _ in range(10)]
    run_greenlets_until("it has all it gets", lambda: count_running(postgres_url, "greedy") == 2)
    assert scanners.scan(run("SELECT 1"), "modest") == b"1"
    assert not any(job.ready() for job in greedy)
    gevent.killall(greedy)


def test_a_scan_waits_for_its_turn_only_so_long(
    scanners: Scanners, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "READ_TIMEOUT_S", 0.1)
    jobs = [gevent.spawn(scanners.scan, run(f"{HOLD} -- turn"), name) for name in "abc"]
    run_greenlets_until("all are taken", lambda: count_running(postgres_url, "turn") == 3)
    with pytest.raises(QueryTimeout):
        scanners.scan(run("SELECT 1"), "d")
    gevent.killall(jobs)


def test_a_scan_after_a_long_turn_of_the_loop_has_its_whole_time(postgres_url: str) -> None:
    session = connect(postgres_url, timeout_s=0.5)
    gevent.sleep(0)
    time.sleep(0.7)  # blocks the loop, whose time is outdated then
    assert session.execute("SELECT pg_sleep(0.1)").ntuples == 1
    session.close()


def test_a_killed_scan_is_cancelled_before_its_connection_is_used_again(
    scanners: Scanners, postgres_url: str
) -> None:
    job = gevent.spawn(scanners.scan, run("SELECT pg_sleep(30)"), "a")
    run_greenlets_until("it runs", lambda: count_running(postgres_url, "pg_sleep(30)") == 1)
    job.kill(timeout=10)
    assert count_running(postgres_url, "pg_sleep(30)") == 0
    assert scanners.scan(run("SELECT 1"), "a") == b"1"
    assert count_connections(postgres_url) == 1


def test_an_open_transaction_ends_with_its_scan(scanners: Scanners) -> None:
    def fail(session: Any) -> None:
        session.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        scanners.scan(fail, "a")

    def is_in_transaction(session: Any) -> bool:
        return bool(session.is_in_transaction)

    assert scanners.scan(is_in_transaction, "a") is False


def test_a_scanner_closes_after_a_time_without_scans(postgres_url: str) -> None:
    clock = ManualClock()
    scanners = make_scanners(postgres_url, clock=clock)
    scanners.scan(run("SELECT 1"), "a")
    clock.advance(limits.SCANNER_IDLE_S - 1)
    scanners.close_expired()
    assert count_connections(postgres_url) == 1
    clock.advance(2)
    scanners.close_expired()
    run_greenlets_until("it is closed", lambda: count_connections(postgres_url) == 0)
    assert scanners.scan(run("SELECT 1"), "a") == b"1"
    scanners.close()


def test_a_scanner_that_was_lost_while_idle_fails_no_scan(postgres_server: PostgresServer) -> None:
    scanners = make_scanners(postgres_server.url)
    gevent.joinall(
        [gevent.spawn(scanners.scan, run("SELECT pg_sleep(0.1)"), name) for name in "abc"],
        timeout=20,
    )
    postgres_server.stop("immediate")
    postgres_server.start()
    assert scanners.scan(run("SELECT 1"), "a") == b"1"
    postgres_server.stop("immediate")
    try:
        with pytest.raises(StoreUnavailable):
            scanners.scan(run("SELECT 1"), "a")
    finally:
        postgres_server.start()
    assert scanners.scan(run("SELECT 1"), "a") == b"1"
    scanners.close()
