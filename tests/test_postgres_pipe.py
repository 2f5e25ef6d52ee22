"""The pipe of a worker (`pylon.storage.postgres.pipe`), on a real server: many greenlets share one
connection, errors and kills concern one of them, and a lost connection comes back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import gevent
import psycopg
import pytest
from psycopg import errors

from pylon import limits
from pylon.clock import SeededRandom, SystemClock
from pylon.errors import Unavailable
from pylon.storage.postgres.connect import Limits, open_session
from pylon.storage.postgres.pending_statements import PipeRefused
from pylon.storage.postgres.pipe import Pipe
from pylon.storage.postgres.wire import BlockingSession
from tests.support.postgres import PostgresServer

CLOCK = SystemClock()


def connect(url: str, statement_ms: int = 300) -> BlockingSession:
    return open_session(
        url, "reader", "test", CLOCK, Limits(statement_ms=statement_ms), writes=False
    )


def open_pipe(url: str, statement_ms: int = 300) -> Pipe:
    pipe = Pipe(partial(connect, url, statement_ms), CLOCK, SeededRandom(1))
    pipe.open()
    return pipe


@pytest.fixture
def pipe(postgres_url: str) -> Iterator[Pipe]:
    made = open_pipe(postgres_url)
    yield made
    made.close()


def ask(pipe: Pipe, number: int) -> int:
    return int(pipe.execute("SELECT $1::int * 2", [number]).get_value(0, 0) or 0)


def value(pipe: Pipe, text: str) -> bytes | None:
    return pipe.execute(text).get_value(0, 0)


def wait_connected(pipe: Pipe) -> None:
    with gevent.Timeout(30):
        while not pipe.is_connected:
            gevent.sleep(0.02)


def test_each_of_a_thousand_greenlets_gets_its_own_answer(postgres_url: str) -> None:
    pipe = open_pipe(postgres_url, 60_000)  # the limit of a statement counts from its pipeline
    jobs = [gevent.spawn(ask, pipe, number) for number in range(1_000)]
    with gevent.Timeout(60):
        gevent.joinall(jobs, raise_error=True)
    assert [job.value for job in jobs] == [2 * number for number in range(1_000)]
    assert value(pipe, "SELECT count(*) FROM pg_stat_activity WHERE pid = pg_backend_pid()") == b"1"
    pipe.close()


def test_other_greenlets_run_while_one_waits(pipe: Pipe) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        while True:
            gevent.sleep(0.01)
            ticks += 1

    ticker = gevent.spawn(tick)
    pipe.execute("SELECT pg_sleep(0.2)")
    ticker.kill()
    assert ticks > 5


def test_a_pipeline_has_a_result_for_each_statement(pipe: Pipe) -> None:
    results = pipe.pipeline([("SELECT $1::int", [number]) for number in range(100)])
    assert [result.get_value(0, 0) for result in results] == [b"%d" % n for n in range(100)]
    outcome = pipe.try_pipeline([("SELECT 1", ()), ("SELECT 1/0", ()), ("SELECT 2", ())])
    assert len(outcome.results) == 1
    assert isinstance(outcome.error, errors.DivisionByZero)


def test_a_failing_statement_fails_its_own_greenlet_only(pipe: Pipe) -> None:
    def fail(kind: int) -> str:
        texts = ("SELECT 1/0", "SELECT * FROM nothing_here", "SELECT $1::int")
        try:
            pipe.execute(texts[kind], ["no number"] if kind == 2 else ())
        except psycopg.Error as error:
            return type(error).__name__
        return ""

    for _ in range(3):
        jobs = [
            gevent.spawn(fail, number // 10 % 3) if number % 10 == 0
            else gevent.spawn(ask, pipe, number)
            for number in range(300)
        ]
        gevent.joinall(jobs, timeout=60)
        failed = [job.value for number, job in enumerate(jobs) if number % 10 == 0]
        assert failed == [
            ("DivisionByZero", "UndefinedTable", "InvalidTextRepresentation")[n % 3]
            for n in range(30)
        ]
        assert [job.value for number, job in enumerate(jobs) if number % 10] == [
            2 * number for number in range(300) if number % 10
        ]


def test_a_killed_greenlet_takes_nobody_elses_answer(pipe: Pipe) -> None:
    jobs = [gevent.spawn(ask, pipe, number) for number in range(200)]
    gevent.sleep(0)
    for job in jobs[::3]:
        job.kill(block=False)
    gevent.joinall(jobs, timeout=60)
    assert [job.value for number, job in enumerate(jobs) if number % 3] == [
        2 * number for number in range(200) if number % 3
    ]
    assert ask(pipe, 1) == 2


def test_a_time_out_of_a_greenlet_leaves_the_pipe_in_order(pipe: Pipe) -> None:
    with gevent.Timeout(0.05, False):
        pipe.execute("SELECT pg_sleep(0.2)")
    assert [ask(pipe, number) for number in range(5)] == [0, 2, 4, 6, 8]


def test_a_slow_statement_is_refused_from_then_on(pipe: Pipe) -> None:
    slow = "SELECT pg_sleep(5)"
    beside = gevent.spawn(ask, pipe, 4)
    with pytest.raises(PipeRefused):
        pipe.execute(slow)
    assert beside.get(timeout=10) == 8
    began_s = time.monotonic()
    with pytest.raises(PipeRefused):
        pipe.execute(slow)
    assert time.monotonic() - began_s < 0.1


def test_a_transaction_needs_a_connection_of_its_own(pipe: Pipe) -> None:
    with pytest.raises(PipeRefused):
        pipe.execute("BEGIN TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    assert ask(pipe, 2) == 4


def test_the_pipe_refuses_what_it_cannot_hold(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POINT_READS_WAITING", 50)
    jobs = [gevent.spawn(ask, pipe, number) for number in range(55)]
    gevent.joinall(jobs, timeout=60)
    refused = [job for job in jobs if isinstance(job.exception, Unavailable)]
    assert len(refused) == 5
    assert ask(pipe, 3) == 6


def test_a_statement_is_prepared_again_after_a_change_of_its_table(
    pipe: Pipe, postgres_url: str
) -> None:
    session = connect(postgres_url)
    session.execute_script("CREATE TABLE t (id text); INSERT INTO t VALUES ('a')")
    assert pipe.execute("SELECT * FROM t").nfields == 1
    session.execute_script("ALTER TABLE t ADD COLUMN more text")
    assert pipe.execute("SELECT * FROM t").nfields == 2
    session.close()


def test_large_parameters_and_answers_come_through(pipe: Pipe) -> None:
    def repeat(letter: str) -> bytes | None:
        return pipe.execute("SELECT $1::text || $1::text", [letter * 400_000]).get_value(0, 0)

    jobs = [gevent.spawn(repeat, letter) for letter in "abcdefghij"]
    gevent.joinall(jobs, timeout=60)
    assert [job.value for job in jobs] == [b"%s" % (c.encode() * 800_000) for c in "abcdefghij"]


def test_a_lost_connection_fails_those_that_wait_and_comes_back(
    pipe: Pipe, postgres_url: str
) -> None:
    pid = int(value(pipe, "SELECT pg_backend_pid()") or 0)
    other = connect(postgres_url)
    jobs = [gevent.spawn(pipe.execute, "SELECT pg_sleep(0.3)") for _ in range(20)]
    gevent.sleep(0)  # they are sent
    other.execute("SELECT pg_terminate_backend($1)", [pid])
    gevent.joinall(jobs, timeout=30)
    failed = [job.exception for job in jobs if not job.successful()]  # the first may have ended
    assert failed and all(isinstance(error, psycopg.OperationalError) for error in failed)
    wait_connected(pipe)
    assert ask(pipe, 5) == 10
    other.close()


def test_a_read_fails_whose_second_sending_meets_a_lost_connection(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, sent = pipe._send, []

    def send_once(pgconn: Any, question: Any) -> None:
        if question.text == "SELECT 7" and question.text in sent:
            raise psycopg.OperationalError("the server closed the connection")
        sent.append(question.text)
        send(pgconn, question)

    monkeypatch.setattr(pipe, "_send", send_once)
    jobs = [gevent.spawn(pipe.execute, text) for text in ("SELECT 1/0", "SELECT 7")]
    gevent.joinall(jobs, timeout=30)
    assert isinstance(jobs[0].exception, psycopg.errors.DivisionByZero)
    assert isinstance(jobs[1].exception, psycopg.OperationalError), "it does not wait for ever"
    wait_connected(pipe)


def test_a_connection_that_is_lost_while_idle_comes_back_before_anybody_asks(
    pipe: Pipe, postgres_url: str
) -> None:
    pid = int(value(pipe, "SELECT pg_backend_pid()") or 0)
    other = connect(postgres_url)
    other.execute("SELECT pg_terminate_backend($1)", [pid])
    other.close()
    with gevent.Timeout(30):
        while True:
            try:
                if int(value(pipe, "SELECT pg_backend_pid()") or 0) != pid:
                    break
            except psycopg.OperationalError:
                pass
            gevent.sleep(0.02)


def test_reads_fail_at_once_while_the_server_is_away(postgres_server: PostgresServer) -> None:
    pipe = open_pipe(postgres_server.url)
    assert ask(pipe, 1) == 2
    postgres_server.stop("immediate")
    try:
        with gevent.Timeout(10):
            while pipe.is_connected:
                gevent.sleep(0.01)
        began_s = time.monotonic()
        with pytest.raises(psycopg.OperationalError):
            ask(pipe, 1)
        assert time.monotonic() - began_s < 0.1
    finally:
        postgres_server.start()
    wait_connected(pipe)
    assert ask(pipe, 2) == 4
    pipe.close()


def test_a_server_that_answers_nothing_counts_as_lost(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "POINT_STALL_S", 0.2)
    pipe = Pipe(partial(connect, postgres_url, 0), CLOCK, SeededRandom(1))  # no limit of the server
    pipe.open()
    began_s = time.monotonic()
    with pytest.raises(psycopg.OperationalError, match="answered nothing"):
        pipe.execute("SELECT pg_sleep(3)")
    assert time.monotonic() - began_s < 2
    wait_connected(pipe)
    assert ask(pipe, 1) == 2
    pipe.close()


def test_a_closed_pipe_fails_those_that_wait(pipe: Pipe) -> None:
    job = gevent.spawn(pipe.execute, "SELECT pg_sleep(0.2)")
    gevent.sleep(0)
    pipe.close()
    job.join(10)
    assert isinstance(job.exception, psycopg.OperationalError)
